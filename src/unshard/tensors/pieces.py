"""The pieces of a tensor: which of them a range meets, and how they are put together.

A range of a tensor is a few *slabs*: rows that follow one another below one index of the dimensions
before them, whole in the dimensions after them. What a slab takes of a piece is one stretch of that
piece. In the slab these elements lie together where the piece is as wide as the tensor; otherwise, as
tensor-parallel columns do, they lie in as many places as there are rows. Those are read as the long
stretch that they are and then scattered, never row by row.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from unshard.tensors.boxes import Box, box_ranges, row_major_strides, split_range
from unshard.tensors.sources import Run, Source
from unshard.tensors.strided import SHORTEST_RUN_BYTES, contiguous_stretch

if TYPE_CHECKING:
    import numpy as np

# What is scattered at a time: half of what a core's nearest large cache holds.
_SCRATCH_BYTES = 512 << 10

_scratch = threading.local()


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a tensor, and the source that holds its elements in the same row-major order."""

    box: Box
    source: Source


class Part(NamedTuple):
    """What one piece gives to a range of the tensor.

    Attributes:
        source: The piece's source.
        start: Its first element that is wanted.
        stop: The element after the last one; all between them are wanted.
        position: Element of the range at which the first row that the part lies in begins.
        rows: In how many rows it lies.
        row: The shape of a whole row.
        inside: Where in every row it lies, or None where it is the whole row.
    """

    source: Source
    start: int
    stop: int
    position: int
    rows: int
    row: tuple[int, ...]
    inside: Box | None


class Arrangement:
    """Pieces in the order of their rows, so that those of some rows are found without asking all.

    Memory:
        Two or three integers for every piece; the pieces are asked for again when they are needed.
    """

    def __init__(self, shape: tuple[int, ...], pieces: Sequence[Piece]) -> None:
        """Look at every piece once.

        Args:
            shape: The tensor's; it has a dimension.
            pieces: They cover it exactly once.
        """
        self._shape = shape
        self._pieces = pieces
        rows = [(piece.box.start[0], piece.box.stop[0]) for piece in pieces]
        self._order: Sequence[int] = range(len(rows))
        if any(a[0] > b[0] for a, b in pairwise(rows)):
            self._order = sorted(self._order, key=rows.__getitem__)
            rows.sort()
        self._starts = [start for start, _ in rows]
        # How far the pieces up to here reach: none before the first that reaches a row can hold it.
        self._reach = list(accumulate((stop for _, stop in rows), max))

    def parts(self, start: int, stop: int) -> Iterator[Part]:
        """Yield what elements `start` to `stop` of the tensor are made of."""
        position = 0
        for slab in split_range(self._shape, start, stop):
            yield from self._parts_of_slab(slab, position)
            position += slab.volume

    def _parts_of_slab(self, slab: Box, position: int) -> Iterator[Part]:
        """Yield the parts of a slab that begins at element `position` of the range.

        This is written out in integers: a tensor in columns has many parts, and each is soon read.
        """
        shape, start, stop = self._shape, slab.start, slab.stop
        d = max((d for d, n in enumerate(shape) if stop[d] - start[d] != n), default=0)  # rows lie along it
        row = shape[d + 1 :]
        width = math.prod(row)
        for i in range(bisect_right(self._reach, start[0]), bisect_left(self._starts, stop[0])):
            piece = self._pieces[self._order[i]]
            low, high = piece.box.start, piece.box.stop
            first, last = max(start[d], low[d]), min(stop[d], high[d])
            if first >= last or not all(a <= b < c for a, b, c in zip(low, start[:d], high, strict=False)):
                continue
            skipped = 0  # rows of the piece that come before
            for a, b, c in zip(low, (*start[:d], first), high, strict=False):
                skipped = skipped * (c - a) + b - a
            inside = Box(low[d + 1 :], high[d + 1 :])
            own = width if (is_whole := inside.stop == row and not any(inside.start)) else inside.volume
            yield Part(
                piece.source,
                skipped * own,
                (skipped + last - first) * own,
                position + (first - start[d]) * width,
                last - first,
                row,
                None if is_whole else inside,
            )


def read_part(part: Part, into: memoryview, itemsize: int) -> None:
    """Fill what a part gives of the buffer `into`, which holds the whole range.

    Memory:
        A part of whole rows is read straight into the buffer, any other one through 512 KiB.
    """
    begin = part.position * itemsize
    if part.inside is None:
        part.source.read(part.start, part.stop, into[begin : begin + (part.stop - part.start) * itemsize])
        return
    import numpy as np

    # Numbers are moved as the bytes they are, so that rows are copied as blocks.
    shape = (part.rows, *part.row[:-1], part.row[-1] * itemsize)
    rows = np.frombuffer(into[begin : begin + math.prod(shape)], np.uint8).reshape(shape)
    start, stop = part.inside.start, part.inside.stop
    columns = (*map(slice, start[:-1], stop[:-1]), slice(start[-1] * itemsize, stop[-1] * itemsize))
    _scatter(part.source, part.start, rows[:, *columns], itemsize)


def _scatter(source: Source, start: int, target: np.ndarray, itemsize: int) -> None:
    """Fill an array of bytes, whose rows lie apart, with the elements of `source` from `start` on."""
    import numpy as np

    buffer = _buffer()
    length = math.prod(target.shape[1:])  # bytes of a row
    step = len(buffer) // max(length, 1)
    if step == 0:
        for row in target:
            _scatter(source, start, row, itemsize)
            start += length // itemsize
        return
    for first in range(0, len(target), step):
        rows = target[first : first + step]
        raw = buffer[: rows.size]
        source.read(start, start + rows.size // itemsize, raw)
        rows[...] = np.frombuffer(raw, np.uint8).reshape(rows.shape)
        start += rows.size // itemsize


def _buffer() -> memoryview:
    """Return this thread's buffer."""
    if not hasattr(_scratch, "view"):
        _scratch.view = memoryview(bytearray(_SCRATCH_BYTES))
    view: memoryview = _scratch.view
    return view


def runs_of_parts(parts: Iterator[Part], itemsize: int) -> list[Run] | None:
    """Return the bytes to copy for parts, in the order of the range; None where reading is faster."""
    found: list[tuple[int, list[Run]]] = []
    for part in parts:
        stretches = _stretches(part, itemsize)
        if stretches is None:
            return None
        start = part.start
        for position, length in stretches:
            runs = part.source.runs(start, start + length)
            if runs is None:
                return None
            found.append((position, runs))
            start += length
    joined = _joined(run for _, runs in sorted(found, key=itemgetter(0)) for run in runs)
    is_short = sum(run.length for run in joined) < len(joined) * SHORTEST_RUN_BYTES
    return None if is_short and len(joined) > 1 else joined


def _stretches(part: Part, itemsize: int) -> Iterable[tuple[int, int]] | None:
    """Return (position, length) of what lies together in the range; None where that is too short."""
    if part.inside is None:
        return [(part.position, part.stop - part.start)]
    length = contiguous_stretch(part.inside.shape, row_major_strides(part.row))
    if length * itemsize < SHORTEST_RUN_BYTES:
        return None
    box = Box((0, *part.inside.start), (part.rows, *part.inside.stop))
    return ((part.position + a, b - a) for a, b in box_ranges((part.rows, *part.row), box))


def _joined(runs: Iterable[Run]) -> list[Run]:
    """Return runs in their order, each joined with the one before where it continues that in the file."""
    joined: list[Run] = []
    for run in runs:
        last = joined[-1] if joined else None
        if last is not None and last.file == run.file and last.offset + last.length == run.offset:
            joined[-1] = Run(last.file, last.offset, last.length + run.length)
        else:
            joined.append(run)
    return joined
