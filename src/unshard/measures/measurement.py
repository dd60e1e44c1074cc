"""What one pass over the elements of a tensor tells, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Statistics:
    """The numbers of one tensor.

    Attributes:
        count: How many there are.
        nans: How many are not a number.
        infinities: How many are infinite.
        zeros: How many are zero.
        subnormals: How many are smaller than the smallest normal number of their dtype, and not zero.
        minimum: The smallest finite one; 0.0 where there is none.
        maximum: The largest finite one; 0.0 where there is none.
        mean: Of the finite ones; 0.0 where there are none.
        deviation: Their standard deviation, of the whole population.
        magnitudes: How many finite ones, zeros aside, lie in [2**e, 2**(e + 1)) in magnitude, by e; rising.
        digest: Equal for tensors whose bytes are equal, and for hardly any others.
    """

    count: int
    nans: int
    infinities: int
    zeros: int
    subnormals: int
    minimum: float
    maximum: float
    mean: float
    deviation: float
    magnitudes: tuple[tuple[int, int], ...]
    digest: int

    @property
    def is_constant(self) -> bool:
        """Whether all numbers are finite and the same."""
        return self.nans == self.infinities == 0 and self.count > 0 and self.minimum == self.maximum

    @property
    def norm(self) -> float:
        """The square root of the sum of the squares of the finite ones."""
        finite = self.count - self.nans - self.infinities
        return math.sqrt(finite) * math.hypot(self.mean, self.deviation)


@dataclass(frozen=True, slots=True)
class Delta:
    """How far one tensor is from another of its shape. Numbers that are not finite on a side are left out.

    Attributes:
        count: How many elements there are.
        changed: How many differ in value, compared exactly, whatever their dtypes.
        survived: How many still differ from the other tensor, cast to the same dtype, after the cast that
            the tensor has in the result; equal to `changed` where it has none.
        dot: The sum of the products.
        norm: Of the tensor itself.
        other_norm: Of the other one.
        distance: The norm of the difference.
        largest: The largest difference, in magnitude.
    """

    count: int
    changed: int
    survived: int
    dot: float
    norm: float
    other_norm: float
    distance: float
    largest: float

    @property
    def cosine(self) -> float:
        """The cosine of the angle between the two; 1.0 where both are zero, 0.0 where one is."""
        if self.norm == 0.0 or self.other_norm == 0.0:
            return 1.0 if self.norm == self.other_norm else 0.0
        return max(-1.0, min(1.0, self.dot / (self.norm * self.other_norm)))

    @property
    def relative(self) -> float:
        """The distance in units of the other one's norm; infinite where that is zero and this is not."""
        if self.other_norm == 0.0:
            return 0.0 if self.distance == 0.0 else math.inf
        return self.distance / self.other_norm


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one pass over a tensor, and over another one beside it, has told.

    Attributes:
        statistics: The numbers of the tensor, before any cast.
        delta: How far it is from the other one, or None where there is none of its shape.
    """

    statistics: Statistics
    delta: Delta | None = None
