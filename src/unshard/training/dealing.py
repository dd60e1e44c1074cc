"""Who gives what: elements that several ranks hold are dealt out among them, so that nobody gives all.

Every rank computes the same from what all ranks have told, and asks nobody again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from unshard.tensors import Box
from unshard.tensors.boxes import row_ranges, split_range

# What is smaller is not cut: it is one rank's, and another rank has the next.
_SMALLEST_BYTES = 64 << 10


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

    def deal(self, held: Sequence[Sequence[Box]], itemsize: int, *, alike: bool) -> list[Share]:
        """Return who gives which boxes of one tensor, in the order in which they begin.

        Args:
            held: The boxes that every rank holds, by rank.
            itemsize: Bytes of an element.
            alike: Whether ranks that hold a box hold the same elements; else the first rank's are taken.
        """
        holders: dict[Box, list[tuple[int, int]]] = {}
        for rank, boxes in enumerate(held):
            for part, box in enumerate(boxes):
                if box.volume:
                    holders.setdefault(box, []).append((rank, part))
        shares = [
            share
            for box, among in holders.items()
            for share in self._dealt(box, among if alike else among[:1], itemsize)
        ]
        return sorted(shares, key=lambda share: share.box.start)

    def _dealt(self, box: Box, among: Sequence[tuple[int, int]], itemsize: int) -> Iterator[Share]:
        """Yield a box whole if one rank has it or it is small; else in rows, as many to each."""
        most = box.volume
        if len(among) > 1:
            most = max(-(-box.volume // len(among)), _SMALLEST_BYTES // itemsize)
        for start, stop in row_ranges(box.shape, 0, box.volume, most):
            rank, part = min(among, key=lambda holder: self._given[holder[0]])
            self._given[rank] += (stop - start) * itemsize
            for inside in split_range(box.shape, start, stop):
                yield Share(_shifted(inside, box.start), rank, part)


def _shifted(box: Box, origin: tuple[int, ...]) -> Box:
    """Return a box of a box, in the coordinates of the whole tensor."""
    return Box(
        tuple(a + o for a, o in zip(box.start, origin, strict=True)),
        tuple(b + o for b, o in zip(box.stop, origin, strict=True)),
    )
