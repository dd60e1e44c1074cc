"""A vector whose ranges lie in several files, and the tensors that are parts of it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from unshard.dtypes import DType
from unshard.tensors import Box, DescribedTensor, Piece, RangeSource, Source
from unshard.tensors.boxes import split_range
from unshard.tensors.sources import FileSource


@dataclass(frozen=True, slots=True)
class Stretch:
    """A range of a vector that lies in one place.

    Attributes:
        start: Where in the vector it begins.
        stop: Where in the vector it stops.
        source: Its elements, and maybe more after them.
    """

    start: int
    stop: int
    source: Source


@dataclass(frozen=True, slots=True)
class Vector:
    """A vector, whole.

    Attributes:
        dtype: Number format.
        stretches: Its ranges, which follow one another without a gap from 0.
    """

    dtype: DType
    stretches: tuple[Stretch, ...]

    @property
    def count(self) -> int:
        """How many elements it has."""
        return self.stretches[-1].stop if self.stretches else 0

    def part(self, start: int, shape: Sequence[int]) -> DescribedTensor:
        """Return the tensor of `shape` whose elements, in row-major order, begin at `start`."""
        full, stop = tuple(shape), start + math.prod(shape)
        pieces: list[Piece] = []
        begins = [stretch.start for stretch in self.stretches]
        for stretch in self.stretches[max(bisect_right(begins, start) - 1, 0) :]:
            if stretch.start >= stop:
                break
            first, last = max(start, stretch.start), min(stop, stretch.stop)
            pieces += cut_pieces(stretch.source, first - stretch.start, full, first - start, last - start)
        return DescribedTensor(full, self.dtype, tuple(pieces))


def cut_pieces(source: Source, offset: int, shape: tuple[int, ...], start: int, stop: int) -> list[Piece]:
    """Return elements `start` to `stop` of a tensor, which are those of `source` from `offset` on."""
    pieces = []
    for box in split_range(shape, start, stop):
        pieces.append(Piece(box, _range(source, offset, box)))
        offset += box.volume
    return pieces


def _range(source: Source, offset: int, box: Box) -> Source:
    """Return the elements of a box, which are as many of `source` from `offset` on."""
    if isinstance(source, FileSource) and source.is_contiguous and source.byte_order == "little":
        begin = source.offset + offset * source.dtype.itemsize
        return FileSource.contiguous(source.file, begin, box.shape, source.dtype)
    return RangeSource(source, offset, offset + box.volume)
