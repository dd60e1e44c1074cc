"""The pieces of a tensor: which of them a range meets, and how they are put together.

A range of a tensor is a few boxes that lie one after the other (`split_range`). Where such a box meets
a piece, the elements are one stretch of the piece; in the box they lie together, or in as many parts as
there are rows. Tensor-parallel columns are the latter: they are read as long stretches and scattered,
never row by row.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from unshard.tensors.boxes import Box, box_ranges, row_major_strides, split_range
from unshard.tensors.sources import Run, Source

if TYPE_CHECKING:
    import numpy as np

# What is scattered at a time; a core's cache holds it beside the rows it goes to.
_SCRATCH_BYTES = 256 << 10
# Runs that are shorter on average cost more to copy one by one than to read together.
_SHORTEST_RUN_BYTES = 64 << 10

_scratch = threading.local()


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a tensor, and the source that holds its elements in the same row-major order."""

    box: Box
    source: Source


@dataclass(frozen=True, slots=True)
class Part:
    """What one piece gives to a range.

    Attributes:
        source: The piece's source.
        start: The first element of it.
        position: Element of the range at which the surrounding box begins.
        whole: Shape of that box.
        inside: The part of that box.
    """

    source: Source
    start: int
    position: int
    whole: tuple[int, ...]
    inside: Box

    @property
    def count(self) -> int:
        """Elements."""
        return self.inside.volume

    @property
    def stretch(self) -> int:
        """Elements that lie together in the range; all of them where the part is of whole rows."""
        length = 1
        for size, full in zip(reversed(self.inside.shape), reversed(self.whole), strict=True):
            length *= size
            if size != full:
                break
        return length

    @property
    def first(self) -> int:
        """Element of the range at which the part begins."""
        strides = row_major_strides(self.whole)
        return self.position + sum(i * s for i, s in zip(self.inside.start, strides, strict=True))


class Arrangement:
    """Pieces in the order of their rows, so that those of some rows are found without asking all.

    Memory:
        Two integers for every piece; the pieces themselves are looked at again when they are needed.
    """

    def __init__(self, shape: tuple[int, ...], pieces: Sequence[Piece]) -> None:
        """Look at every piece once.

        Args:
            shape: The tensor's; it has a dimension, or one piece.
            pieces: They cover it exactly once.
        """
        self._shape = shape
        self._pieces = pieces
        rows = [(box.start[0], box.stop[0]) if (box := piece.box).start else (0, 1) for piece in pieces]
        self._order: Sequence[int] = range(len(rows))
        if any(a[0] > b[0] for a, b in pairwise(rows)):
            self._order = sorted(self._order, key=rows.__getitem__)
            rows.sort()
        self._starts = [start for start, _ in rows]
        # How far the pieces up to here reach: none before the first that reaches a row can hold it.
        self._reach = list(accumulate((stop for _, stop in rows), max))

    def parts(self, start: int, stop: int) -> Iterator[Part]:
        """Yield what elements `start` to `stop` of the tensor are made of, by rows."""
        position = 0
        for wanted in split_range(self._shape, start, stop):
            first, last = (wanted.start[0], wanted.stop[0]) if wanted.start else (0, 1)
            shape = wanted.shape
            for i in range(bisect_right(self._reach, first), bisect_left(self._starts, last)):
                piece = self._pieces[self._order[i]]
                common = wanted.intersect(piece.box)
                if common is not None:
                    inside, strides = common.relative_to(piece.box.start), row_major_strides(piece.box.shape)
                    begin = sum(i * s for i, s in zip(inside.start, strides, strict=True))
                    yield Part(piece.source, begin, position, shape, common.relative_to(wanted.start))
            position += wanted.volume


def read_part(part: Part, into: memoryview, itemsize: int) -> None:
    """Fill what a part gives of the buffer `into`, which holds the whole range.

    Memory:
        A part of whole rows is read straight into the buffer, any other one through 256 KiB.
    """
    count = part.count
    if part.stretch == count:
        begin = part.first * itemsize
        part.source.read(part.start, part.start + count, into[begin : begin + count * itemsize])
        return
    # Numbers are moved as the bytes they are, so that rows are copied as blocks.
    begin, length = part.position * itemsize, math.prod(part.whole) * itemsize
    import numpy as np

    box = np.frombuffer(into[begin : begin + length], np.uint8).reshape(*part.whole, itemsize)
    _scatter(part, box[tuple(map(slice, part.inside.start, part.inside.stop))], itemsize)


def _scatter(part: Part, target: np.ndarray, itemsize: int) -> None:
    """Read a part in long stretches, and put each where it belongs in `target`."""
    import numpy as np

    buffer = _buffer()
    shape = part.inside.shape
    count = part.count
    step = _step(shape, len(buffer) // itemsize)
    for begin in range(0, count, step):
        end = min(count, begin + step)
        raw = buffer[: (end - begin) * itemsize]
        part.source.read(part.start + begin, part.start + end, raw)
        values, done = np.frombuffer(raw, np.uint8), 0
        for box in split_range(shape, begin, end):
            length = box.volume * itemsize
            target[tuple(map(slice, box.start, box.stop))] = values[done : done + length].reshape(
                *box.shape, itemsize
            )
            done += length


def _step(shape: Sequence[int], most: int) -> int:
    """Return how many elements of `shape` to take at a time: whole rows, planes, ... if `most` allows."""
    for stride in row_major_strides(shape):
        if stride <= most:
            return most // stride * stride
    return most


def _buffer() -> memoryview:
    """Return this thread's buffer."""
    if not hasattr(_scratch, "view"):
        _scratch.view = memoryview(bytearray(_SCRATCH_BYTES))
    view: memoryview = _scratch.view
    return view


def runs_of_parts(parts: Iterator[Part], itemsize: int) -> list[Run] | None:
    """Return the bytes to copy for parts, in the order of the range; None where reading is faster."""
    found: list[tuple[int, list[Run]]] = []
    total = count = 0
    for part in parts:
        if part.stretch < part.count and part.stretch * itemsize < _SHORTEST_RUN_BYTES:
            return None
        begin = part.start
        for start, stop in box_ranges(part.whole, part.inside):
            runs = part.source.runs(begin, begin + stop - start)
            if runs is None:
                return None
            found.append((part.position + start, runs))
            begin += stop - start
            count += len(runs)
        total += part.count
    if count > 1 and total * itemsize < count * _SHORTEST_RUN_BYTES:
        return None
    return [run for _, runs in sorted(found, key=lambda each: each[0]) for run in runs]
