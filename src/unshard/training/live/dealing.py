"""Who gives what: elements that several ranks hold are dealt out among them, so that nobody gives all.

Every rank computes the same from what all ranks have told, and asks nobody again.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from unshard.tensors import Box
from unshard.tensors.boxes import box_range, row_ranges, split_range

# What is smaller is not cut: it is one rank's, and another rank has the next.
_SMALLEST_BYTES = 64 << 10


# A rank, and which of its parts of the tensor.
Holder = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Share:
    """A box that one rank gives.

    Attributes:
        box: The box.
        rank: The rank.
        part: Which of that rank's parts of the tensor it lies in.
    """

    box: Box
    rank: int
    part: int


class Dealer:
    """Deals out tensors one after the other, each time to the ranks that have given least so far."""

    def __init__(self, ranks: int) -> None:
        """Begin with nothing given."""
        self._given = [0] * ranks

    def deal(
        self, shape: Sequence[int], held: Sequence[Sequence[Box]], itemsize: int, *, alike: bool
    ) -> list[Share]:
        """Return who gives which boxes of one tensor, in the order in which they begin.

        Args:
            shape: The tensor's.
            held: The boxes that every rank holds, by rank.
            itemsize: Bytes of an element.
            alike: Whether ranks that hold a box hold the same elements; else the first rank's are taken.
        """
        holders: dict[Box, list[Holder]] = {}
        for rank, boxes in enumerate(held):
            for part, box in enumerate(boxes):
                if box.volume:
                    holders.setdefault(box, []).append((rank, part))
        if sum(box.volume for box in holders) > math.prod(shape):
            holders = _cut_alike(shape, holders)
        shares = [
            share
            for box, among in holders.items()
            for share in self._dealt(box, among if alike else among[:1], itemsize)
        ]
        return sorted(shares, key=lambda share: share.box.start)

    def _dealt(self, box: Box, among: Sequence[Holder], itemsize: int) -> Iterator[Share]:
        """Yield a box whole if one rank has it or it is small; else in rows, as many to each."""
        most = box.volume
        if len(among) > 1:
            most = max(-(-box.volume // len(among)), _SMALLEST_BYTES // itemsize)
        for start, stop in row_ranges(box.shape, 0, box.volume, most):
            rank, part = min(among, key=lambda holder: self._given[holder[0]])
            self._given[rank] += (stop - start) * itemsize
            for inside in split_range(box.shape, start, stop):
                yield Share(_shifted(inside, box.start), rank, part)


def _cut_alike(shape: Sequence[int], holders: Mapping[Box, list[Holder]]) -> dict[Box, list[Holder]]:
    """Return boxes that do not overlap, with all who hold each; those given are cut where any begins or ends.

    Copies are cut in several ways where FSDP1 flattens them behind others that tensor parallelism has cut
    into uneven parts. Each box then is one range of the tensor; others are left as they are.
    """
    ranges = [(box_range(shape, box), among) for box, among in holders.items()]
    known = sorted((each, among) for each, among in ranges if each is not None)
    if len(known) < len(ranges):
        return dict(holders)
    found: dict[Box, list[Holder]] = {}
    active: list[tuple[int, list[Holder]]] = []
    waiting = deque(known)
    for start, stop in itertools.pairwise(sorted({at for each, _ in known for at in each})):
        active = [(end, among) for end, among in active if end > start]
        while waiting and waiting[0][0][0] == start:
            (_, end), among = waiting.popleft()
            active.append((end, among))
        everyone = sorted(holder for _, among in active for holder in among)
        if everyone:
            found.update(dict.fromkeys(split_range(shape, start, stop), everyone))
    return found


def _shifted(box: Box, origin: tuple[int, ...]) -> Box:
    """Return a box of a box, in the coordinates of the whole tensor."""
    return Box(
        tuple(a + o for a, o in zip(box.start, origin, strict=True)),
        tuple(b + o for b, o in zip(box.stop, origin, strict=True)),
    )
