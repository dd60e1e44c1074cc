"""What a job counts of the numbers of a tensor, by how wide they are."""

from __future__ import annotations

from typing import Protocol, Self

from unshard.dtypes import DType
from unshard.measures.buffers import BLOCK, Buffers
from unshard.measures.histograms import Histogram
from unshard.measures.numbers import Counts, Moments, as_floats, count_block, moments_of, new_counts, scalars


class Tally(Protocol):
    """Numbers counted and summed, of a part of a tensor or of all of it."""

    def add(self, raw: memoryview, buffers: Buffers) -> None:
        """Take in the numbers that come next."""

    def merge(self, other: Self) -> None:
        """Take in what another part holds."""

    def told(self) -> tuple[Counts, Moments]:
        """Return what all parts together tell, in whatever order they came."""


class WideTally:
    """Numbers that are too many to be told apart, a block of float64 at a time."""

    def __init__(self, dtype: DType, start: int) -> None:
        """Begin at element `start`."""
        self._dtype = dtype
        self._counts = new_counts()
        self._moments = {start: Moments()}
        self._start = start

    def add(self, raw: memoryview, buffers: Buffers) -> None:
        """Take in the numbers that come next."""
        values = scalars(raw, self._dtype)
        for i in range(0, values.size, BLOCK):
            block = as_floats(values[i : i + BLOCK], buffers.ours64)
            finite = count_block(block, buffers.scratch, self._counts)
            self._moments[self._start] += moments_of(finite, buffers.scratch)

    def merge(self, other: WideTally) -> None:
        """Take in what another part holds."""
        self._counts.add(other._counts)
        self._moments |= other._moments

    def told(self) -> tuple[Counts, Moments]:
        """Return what all parts together tell."""
        return self._counts, sum((self._moments[start] for start in sorted(self._moments)), Moments())


def new_tally(dtype: DType, start: int) -> Tally:
    """Return what counts the numbers of a tensor of `dtype` from element `start` on."""
    return Histogram(dtype) if Histogram.fits(dtype) else WideTally(dtype, start)
