"""Steps of one colour for numbers over many orders of magnitude."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

STEPS = 8
# Changes that are smaller than the largest by more than this are all in the first step.
_WIDEST = 1e5


@dataclass(frozen=True, slots=True)
class Scale:
    """Steps that grow by one factor each.

    Attributes:
        low: Where the first step begins; everything below, but zero, is in it, too.
        high: Where the last step ends.
    """

    low: float
    high: float

    def step(self, value: float) -> int:
        """Return the step of a number: 0 for zero, 1 to `STEPS` for others, the last one for infinity."""
        if value <= 0.0 or math.isnan(value):
            return 0
        if value >= self.high:
            return STEPS
        if value <= self.low:
            return 1
        at = math.log(value / self.low) / math.log(self.high / self.low)
        return min(STEPS, 1 + int(at * STEPS))

    @property
    def bounds(self) -> tuple[float, ...]:
        """Where steps begin, and the end of the last one."""
        ratio = self.high / self.low
        return tuple(self.low * ratio ** (i / STEPS) for i in range(STEPS + 1))


def scale_for(values: Iterable[float]) -> Scale | None:
    """Return the scale that fits numbers; None where none is above zero and finite."""
    found = [value for value in values if 0.0 < value < math.inf]
    if not found:
        return None
    high = max(found)
    low = max(min(found), high / _WIDEST)
    return Scale(low if low < high else high / 2, high)
