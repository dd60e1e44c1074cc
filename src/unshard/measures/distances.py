"""How far a block of one tensor is from the same block of another one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unshard.dtypes import DType
from unshard.measures.buffers import Buffers
from unshard.measures.measurement import Delta
from unshard.measures.numbers import as_floats, bounded, dot
from unshard.tensors import cast_block

if TYPE_CHECKING:
    import numpy as np

# A sum of squares of a block in float32 that may have lost numbers whose squares are too small for it:
# all of them together are less than 2**-30 of it.
_LEAST = 2.0**-80


@dataclass(frozen=True, slots=True)
class Sums:
    """What the blocks of two tensors add up to, in their order."""

    changed: int = 0
    survived: int = 0
    dot: float = 0.0
    norm: float = 0.0
    other_norm: float = 0.0
    distance: float = 0.0
    largest: float = 0.0

    def __add__(self, other: Sums) -> Sums:
        """Return the sums of both together; norms and distance are still squares."""
        return Sums(
            self.changed + other.changed,
            self.survived + other.survived,
            self.dot + other.dot,
            self.norm + other.norm,
            self.other_norm + other.other_norm,
            self.distance + other.distance,
            max(self.largest, other.largest),
        )

    def delta(self, count: int) -> Delta:
        """Return the distance of two tensors of `count` numbers."""
        return Delta(
            count=count,
            changed=self.changed,
            survived=self.survived,
            dot=bounded(self.dot),
            norm=bounded(self.norm) ** 0.5,
            other_norm=bounded(self.other_norm) ** 0.5,
            distance=bounded(self.distance) ** 0.5,
            largest=bounded(self.largest),
        )


def no_distance(values: np.ndarray, buffers: Buffers) -> Sums:
    """Return the sums of a block that is the same on both sides, given in its own dtype."""
    import numpy as np

    for wide in _wides(values):
        floats = as_floats(values, buffers.ours64.view(wide))
        square = dot(floats, floats)
        if _is_within(wide, square):
            break
    if not math.isfinite(square):
        finite = floats[np.isfinite(floats)]
        square = dot(finite, finite)
    return Sums(dot=square, norm=square, other_norm=square)


def distance_of(ours: np.ndarray, theirs: np.ndarray, buffers: Buffers) -> Sums:
    """Return the sums of a block on two sides, each given in its own dtype."""
    for wide in _wides(ours, theirs):
        a = as_floats(ours, buffers.ours64.view(wide))
        b = as_floats(theirs, buffers.theirs64.view(wide))
        changed = count_changed(ours, theirs, a, b)
        sums = _sums_of(a, b, changed, buffers.scratch.view(wide))
        if _is_within(wide, sums.norm, sums.other_norm, *([sums.distance] if changed else [])):
            break
    return sums


def _wides(*sides: np.ndarray) -> tuple[str, ...]:
    """Return the dtypes to compute in, the next one where sums are beyond one: numbers are exact in all."""
    return ("f4", "f8") if all(side.itemsize <= 2 for side in sides) else ("f8",)


def _is_within(wide: str, *squares: float) -> bool:
    """Return whether sums of squares are far from where a dtype overflows, or loses small ones."""
    return wide == "f8" or all(_LEAST < square < math.inf for square in squares)


def _sums_of(ours: np.ndarray, theirs: np.ndarray, changed: int, scratch: np.ndarray) -> Sums:
    """Return the sums of a block of floats on two sides; what is not finite is left out in float64 only."""
    import numpy as np

    squares = dot(ours, ours), dot(theirs, theirs)
    if not math.isfinite(sum(squares)) and ours.itemsize == 8:
        both = np.isfinite(ours) & np.isfinite(theirs)
        ours, theirs = ours[both], theirs[both]
        squares = dot(ours, ours), dot(theirs, theirs)
    apart = np.subtract(ours, theirs, out=scratch[: ours.size])
    largest = max(float(apart.max(initial=0.0)), -float(apart.min(initial=0.0)))
    distance = dot(apart, apart)
    # By the law of cosines what is lost in rounding moves norms and product alike, so that the cosine of
    # two that are close is as far from one as it should be. Of others it would lose digits.
    is_close = distance <= min(squares)
    product = (sum(squares) - distance) / 2 if is_close else dot(ours, theirs)
    return Sums(changed, changed, product, *squares, distance, largest)


def count_changed(ours: np.ndarray, theirs: np.ndarray, ours64: np.ndarray, theirs64: np.ndarray) -> int:
    """Return how many numbers differ in value; zeros have no sign, and NaN is NaN.

    Args:
        ours: A block in its own dtype.
        theirs: The same block of the other tensor, in its own.
        ours64: The first as float64, or as float32 where that holds all numbers of both dtypes.
        theirs64: The second.
    """
    import numpy as np

    differs = ours64 != theirs64
    if ours64.itemsize == 8 and (ours.dtype.kind in "iu" or theirs.dtype.kind in "iu"):
        differs |= _differ_as_integers(ours, theirs, ours64, theirs64)
    count = int(np.count_nonzero(differs))
    if not count or not math.isnan(ours64.max()):  # which is NaN where any number is
        return count
    return count - int(np.count_nonzero(np.isnan(ours64) & np.isnan(theirs64)))


def _differ_as_integers(
    ours: np.ndarray, theirs: np.ndarray, ours64: np.ndarray, theirs64: np.ndarray
) -> np.ndarray:
    """Return where an integer, which float64 may have rounded, is not what the other side says."""
    import numpy as np

    pair: tuple[np.ndarray, np.ndarray] = (ours, theirs)  # numpy compares any two kinds of integers exactly
    if ours.dtype.kind not in "iu":
        pair = (ours64.astype(theirs.dtype), theirs)
    elif theirs.dtype.kind not in "iu":
        pair = (ours, theirs64.astype(ours.dtype))
    differs: np.ndarray = np.not_equal(*pair)
    return differs


def count_survivors(ours: np.ndarray, theirs: np.ndarray, dtype: DType, scratch: list[np.ndarray]) -> int:
    """Return how many numbers still differ when both sides are cast to `dtype`.

    Args:
        ours: A block in its own dtype.
        theirs: The same block of the other tensor, in its own.
        dtype: A floating one.
        scratch: Two buffers of float64 to work in.
    """
    import numpy as np

    cast = []
    for side, buffer in zip((ours, theirs), scratch, strict=True):
        rounded = np.empty(side.size, dtype.numpy)
        if side.dtype == rounded.dtype:
            rounded = side
        else:
            cast_block(side, rounded)
        cast.append((rounded, as_floats(rounded, buffer)))
    (a, a64), (b, b64) = cast
    return count_changed(a, b, a64, b64)
