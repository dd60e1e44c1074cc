"""Which rank writes which bytes of the files: every byte once, and no page by two ranks.

Bytes that lie together and that one rank holds are written by that rank. What several ranks hold in turns —
columns, and the page in which the bytes of one rank end and those of the next begin — is written by one of
them, and the others send it theirs: on file systems that keep pages in every client (NFS), two ranks that
write one page can undo each other's writes. Ranks that do not see the files write nothing.

Nothing but arithmetic on numbers that all ranks know alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

PAGE_BYTES = 4096
# What is assembled at a time from what several ranks send; a multiple of a page.
SHARED_BYTES = 256 << 10
# What one rank sends, or is sent, at a time.
ROUND_BYTES = 4 << 20

# The owner of bytes that all ranks know.
ANYBODY = -1


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes `start` to `stop` of a file, and who holds them.

    Attributes:
        start: The first byte.
        stop: The byte after the last one.
        owner: The rank that holds all of them; `ANYBODY`; or None where ranks hold short parts in turns.
    """

    start: int
    stop: int
    owner: int | None


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes `start` to `stop` of one of the files, and the rank that writes them."""

    file: int
    start: int
    stop: int
    writer: int

    @property
    def length(self) -> int:
        """How many bytes there are."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Division:
    """All bytes of the files, divided among ranks.

    Attributes:
        own: Those whose writer holds them.
        shared: Those that others send, or some of them; each at most 256 KiB.
    """

    own: tuple[Stretch, ...]
    shared: tuple[Stretch, ...]


def divide(files: Sequence[Sequence[Extent]], writers: Sequence[int]) -> Division:
    """Return who writes what.

    Args:
        files: What is in every file, by rising offset, nothing twice; gaps are written by anybody.
        writers: The ranks that may write.
    """
    joined = [_joined(extents, writers[0]) for extents in files]
    own = [list(_whole_pages(extents, set(writers))) for extents in joined]
    load = dict.fromkeys(writers, 0)
    for start, stop, writer in (each for ranges in own for each in ranges):
        load[writer] += stop - start
    turns = cycle(writers)
    shared = list[Stretch]()
    for number, (extents, taken) in enumerate(zip(joined, own, strict=True)):
        for start, stop, owners in _left(extents, taken):
            able = [] if None in owners else sorted(rank for rank in writers if rank in owners)
            writer = min(able, key=load.__getitem__) if able else next(turns)
            load[writer] += stop - start
            shared.append(Stretch(number, start, stop, writer))
    written = (Stretch(number, *each) for number, ranges in enumerate(own) for each in ranges)
    return Division(tuple(written), tuple(shared))


def rounds_of(
    shared: Sequence[Stretch], contributed: Callable[[Stretch], Mapping[int, int]]
) -> Iterator[list[Stretch]]:
    """Yield shared stretches in the rounds in which they are exchanged and written.

    Args:
        shared: All of them.
        contributed: How many bytes every rank has of one.

    Memory:
        In every round a rank sends at most 4 MiB and is sent at most 4 MiB.
    """
    taken = list[Stretch]()
    sent, filled = Counter[int](), Counter[int]()
    for stretch in shared:
        parts = {rank: size for rank, size in contributed(stretch).items() if rank != stretch.writer}
        new = sum(parts.values())
        too_much = any(sent[rank] + size > ROUND_BYTES for rank, size in parts.items())
        if taken and (too_much or filled[stretch.writer] + new > ROUND_BYTES):
            yield taken
            taken = []
            sent.clear()
            filled.clear()
        taken.append(stretch)
        sent.update(parts)
        filled[stretch.writer] += new
    if taken:
        yield taken


@dataclass(slots=True)
class _Joined:
    """Neighbouring extents of one owner."""

    start: int
    stop: int
    owner: int | None


def _joined(extents: Sequence[Extent], anybody: int) -> list[_Joined]:
    """Return extents without gaps and without bytes of anybody: their neighbour has them."""
    joined = list[_Joined]()
    for extent in extents:
        if extent.start == extent.stop:
            continue
        last = joined[-1] if joined else None
        if last is None:
            joined.append(_Joined(extent.start, extent.stop, extent.owner))
        elif extent.owner in (ANYBODY, last.owner):
            last.stop = extent.stop
        elif last.owner == ANYBODY:
            last.stop, last.owner = extent.stop, extent.owner
        else:
            last.stop = extent.start
            joined.append(_Joined(extent.start, extent.stop, extent.owner))
    if joined and joined[0].owner == ANYBODY:
        joined[0].owner = anybody
    return joined


def _whole_pages(extents: Sequence[_Joined], writers: set[int]) -> Iterator[tuple[int, int, int]]:
    """Yield (start, stop, owner) of what a writer holds in pages that nobody else has a byte of."""
    for index, extent in enumerate(extents):
        start = extent.start if index == 0 else -(-extent.start // PAGE_BYTES) * PAGE_BYTES
        is_last = index == len(extents) - 1
        stop = extent.stop if is_last else extent.stop // PAGE_BYTES * PAGE_BYTES
        if start < stop and extent.owner is not None and extent.owner in writers:
            yield start, stop, extent.owner


def _left(
    extents: Sequence[_Joined], taken: Sequence[tuple[int, int, int]]
) -> Iterator[tuple[int, int, set[int | None]]]:
    """Yield (start, stop, owners) of what lies between what is taken, in stretches of bounded length."""
    if not extents:
        return
    edges = [extents[0].start, *(edge for start, stop, _ in taken for edge in (start, stop))]
    edges.append(extents[-1].stop)
    first = 0
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        while start < stop:
            end = min(stop, (start // SHARED_BYTES + 1) * SHARED_BYTES)
            while extents[first].stop <= start:
                first += 1
            last = first
            owners = set[int | None]()
            while last < len(extents) and extents[last].start < end:
                owners.add(extents[last].owner)
                last += 1
            yield start, end, owners
            start = end
