"""Blocks of elements as float64, and what is counted and summed of a block.

Every number of every dtype is a float64, but for integers beyond 2**53, which are rounded; and all but
the subnormal ones of float64 itself are normal there. So one pass over the bits of a block, a count of its
exponents, tells zeros, numbers that are subnormal in their own dtype, infinities, NaN and magnitudes.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from unshard.dtypes import DType

if TYPE_CHECKING:
    import numpy as np

# BLAS would put threads of its own to work on longer vectors, and float32 adds up errors.
_ROW = {8: 1 << 13, 4: 1 << 10}  # by bytes of a number
LOWEST = -1074  # the exponent of the smallest subnormal float64
EXPONENTS = 1024 - LOWEST
_MANTISSA_BITS, _SPECIAL = 52, 2047


@dataclass(slots=True)
class Counts:
    """What may be added up in any order.

    Attributes:
        exponents: How many finite numbers, zeros aside, have each exponent, from -1074 on.
    """

    exponents: np.ndarray
    nans: int = 0
    infinities: int = 0
    zeros: int = 0
    minimum: float = math.inf
    maximum: float = -math.inf

    def add(self, other: Counts) -> None:
        """Take in what was counted elsewhere."""
        self.exponents += other.exponents
        self.nans += other.nans
        self.infinities += other.infinities
        self.zeros += other.zeros
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)

    def see_extremes(self, finite: np.ndarray) -> None:
        """Take in the smallest and the largest of finite numbers."""
        if finite.size:  # adding zero takes the sign of a zero, which would depend on the order
            self.minimum = min(self.minimum, float(finite.min()) + 0.0)
            self.maximum = max(self.maximum, float(finite.max()) + 0.0)

    def magnitudes(self) -> tuple[tuple[int, int], ...]:
        """Return the exponents that occur and how often, rising."""
        return tuple((int(i) + LOWEST, int(self.exponents[i])) for i in self.exponents.nonzero()[0])


def new_counts() -> Counts:
    """Return counts of nothing."""
    import numpy as np

    return Counts(np.zeros(EXPONENTS, np.int64))


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean, and the sum of squared distances from the mean."""

    count: int = 0
    mean: float = 0.0
    spread: float = 0.0

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of both together.

        Source:
            Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
            variances", 1979.
        """
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        step, share = other.mean - self.mean, other.count / count
        spread = self.spread + other.spread + step * step * self.count * share
        return Moments(count, self.mean + step * share, spread)


def number_dtype(dtype: DType) -> np.dtype:
    """Return the dtype of the numbers of which tensors of `dtype` consist; a complex one is two of them."""
    import numpy as np

    return np.dtype(f"<f{dtype.itemsize // 2}" if dtype.kind == "complex" else dtype.numpy)


def scalars(raw: memoryview, dtype: DType) -> np.ndarray:
    """Return the numbers of a block in their own dtype; a complex number is two of them."""
    import numpy as np

    return np.frombuffer(raw, number_dtype(dtype))


def as_floats(values: np.ndarray, into: np.ndarray) -> np.ndarray:
    """Return `values` in the first elements of `into`, which is of float64, or of float32."""
    import numpy as np

    out = into[: values.size]
    if values.dtype.itemsize == 1:
        # A cast of ml_dtypes takes 9 ns for a number of 8 bits, and a look into a table one.
        table = values_of_bits(values.dtype, into.dtype)
        np.take(table, values.view(np.uint8), out=out, mode="clip")
    else:
        np.copyto(out, values, casting="unsafe")
    return out


@cache
def values_of_bits(dtype: np.dtype, wide: np.dtype) -> np.ndarray:
    """Return what all patterns of 8 or 16 bits mean, as `wide`; for bool, anything but zero is true."""
    import numpy as np

    bits = np.arange(1 << 8 * dtype.itemsize, dtype=f"<u{dtype.itemsize}")
    with np.errstate(all="ignore"):
        return bits.view(dtype).astype(wide)


def count_block(values: np.ndarray, scratch: np.ndarray, counts: Counts) -> np.ndarray:
    """Add what a block of float64 holds to `counts`, and return the finite numbers of it."""
    import numpy as np

    bits = scratch[: values.size].view(np.uint64)
    np.right_shift(values.view(np.uint64), np.uint64(_MANTISSA_BITS), out=bits)
    both = np.bincount(bits.view(np.int64), minlength=2 * (_SPECIAL + 1))
    found = both[: _SPECIAL + 1] + both[_SPECIAL + 1 :]  # the sign is the highest bit
    counts.exponents[EXPONENTS - (_SPECIAL - 1) :] += found[1:_SPECIAL]
    if found[0]:
        _count_smallest(values, int(found[0]), counts)
    if found[_SPECIAL]:
        nans = int(np.count_nonzero(np.isnan(values)))
        counts.nans += nans
        counts.infinities += int(found[_SPECIAL]) - nans
        values = values[np.isfinite(values)]
    counts.see_extremes(values)
    return values


def _count_smallest(values: np.ndarray, found: int, counts: Counts) -> None:
    """Count zeros and the subnormal numbers of float64, of which `found` are in the block."""
    import numpy as np

    zeros = values.size - int(np.count_nonzero(values))
    counts.zeros += zeros
    if zeros < found:
        small = values[(np.abs(values) < sys.float_info.min) & (values != 0)]
        exponents = np.frexp(small)[1] - 1 - LOWEST
        counts.exponents += np.bincount(exponents, minlength=EXPONENTS)


def moments_of(values: np.ndarray, scratch: np.ndarray) -> Moments:
    """Return the moments of a block of finite float64."""
    import numpy as np

    if not values.size:
        return Moments()
    mean = float(np.add.reduce(values)) / values.size
    apart = np.subtract(values, mean, out=scratch[: values.size])
    return Moments(values.size, mean, dot(apart, apart))


def dot(a: np.ndarray, b: np.ndarray) -> float:
    """Return the sum of the products of two blocks, added in one order whatever the machine is doing.

    Those of float32 are added in short rows, and what rows add up to in float64.
    """
    import numpy as np

    row = _ROW[a.itemsize]
    whole = a.size // row * row
    rows = np.matmul(a[:whole].reshape(-1, 1, row), b[:whole].reshape(-1, row, 1))
    total = float(np.add.reduce(rows, axis=None, dtype=np.float64))
    return total if whole == a.size else total + float(np.dot(a[whole:], b[whole:]))


def bounded(value: float) -> float:
    """Return `value`, or the nearest number where it is too large for a float64."""
    if math.isnan(value):
        return sys.float_info.max
    return max(-sys.float_info.max, min(sys.float_info.max, value))


@cache
def smallest_normal_exponent(dtype: DType) -> int:
    """Return the exponent of the smallest normal number of a dtype; integers have none below it."""
    import ml_dtypes

    if dtype.kind not in ("float", "complex"):
        return LOWEST
    parts = scalars(memoryview(bytes(dtype.itemsize)), dtype)
    smallest = ml_dtypes.finfo(parts.dtype).smallest_normal  # type: ignore[no-untyped-call]
    return math.frexp(float(smallest))[1] - 1
