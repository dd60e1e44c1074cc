"""How often each number occurs, for dtypes of so few bits that all of them can be told apart.

To count words of 16 bits is the quickest exact pass over such a tensor: all else that is told of its
numbers follows from the counts, and counts may be added up in any order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unshard.dtypes import DType
from unshard.measures.buffers import Buffers
from unshard.measures.numbers import LOWEST, Counts, Moments, dot, new_counts, number_dtype, values_of_bits

if TYPE_CHECKING:
    import numpy as np


class Histogram:
    """The numbers of a part of a tensor, or of all of it, counted one by one."""

    def __init__(self, dtype: DType) -> None:
        """Begin with none; the numbers of `dtype` have at most 16 bits."""
        import numpy as np

        self._dtype = number_dtype(dtype)
        self._counts = np.zeros(1 << 8 * self._dtype.itemsize, np.int64)

    @staticmethod
    def fits(dtype: DType) -> bool:
        """Return whether the numbers of a dtype can be counted one by one."""
        return number_dtype(dtype).itemsize <= 2

    def add(self, raw: memoryview, buffers: Buffers) -> None:
        """Count the numbers in `raw`; those of 8 bits by pairs, which takes half the time."""
        import numpy as np

        words, step = np.frombuffer(raw[: len(raw) // 2 * 2], "<u2"), buffers.indices.size
        for start in range(0, words.size, step):
            block = words[start : start + step]
            indices = buffers.indices[: block.size]
            np.copyto(indices, block)
            found = np.bincount(indices, minlength=1 << 16)
            if self._dtype.itemsize == 1:
                pairs = found.reshape(256, 256)
                found = pairs.sum(axis=0) + pairs.sum(axis=1)
            self._counts += found
        if len(raw) % 2:
            self._counts[raw[-1]] += 1

    def merge(self, other: Histogram) -> None:
        """Take in what was counted elsewhere."""
        self._counts += other._counts

    def told(self) -> tuple[Counts, Moments]:
        """Return what the counts tell."""
        import numpy as np

        occurring = self._counts.nonzero()[0]
        numbers, times = values_of_bits(self._dtype, np.dtype(float))[occurring], self._counts[occurring]
        is_finite = np.isfinite(numbers)
        counts = new_counts()
        counts.nans = int(times[np.isnan(numbers)].sum())
        counts.infinities = int(times[~is_finite].sum()) - counts.nans
        counts.zeros = int(times[numbers == 0].sum())
        numbers, times = numbers[is_finite], times[is_finite]
        counts.see_extremes(numbers)
        some = numbers != 0
        np.add.at(counts.exponents, np.frexp(numbers[some])[1] - 1 - LOWEST, times[some])
        return counts, _moments(numbers, times)


def _moments(numbers: np.ndarray, times: np.ndarray) -> Moments:
    """Return the moments of numbers that occur so many times."""
    count = int(times.sum())
    if not count:
        return Moments()
    often = times.astype(float)
    mean = dot(numbers, often) / count
    apart = numbers - mean
    return Moments(count, mean, dot(apart * apart, often))
