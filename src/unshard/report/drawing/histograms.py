"""How numbers are distributed: bars, and where they begin."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from unshard.measures import Statistics

# Magnitudes that fewer than this share of all numbers have are not drawn.
_RARE = 1e-7
# A dtype's exponents may span 2**-1074 to 2**1023; more bars than this cannot be told apart.
_MOST_BARS = 64
# Deltas are counted by half an order of magnitude.
_PER_DECADE = 2
# Half decades beyond these, 1e-10 and 1e3, are counted with them.
_LEAST, _MOST = -20, 6


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: what it counts, how much that is, and how long it is beside the longest, 0 to 1."""

    label: str
    text: str
    length: float


@dataclass(frozen=True, slots=True)
class Magnitudes:
    """The magnitudes of numbers, by powers of two.

    Attributes:
        first: The exponent of the first bar.
        heights: Of every bar beside the highest of its row, 0 to 1.
    """

    first: int
    heights: tuple[float, ...]


def exponent_range(statistics: Iterable[Statistics]) -> range:
    """Return the powers of two that nearly all numbers are between."""
    counts = _counted(statistics)
    total = sum(counts.values())
    common = sorted(e for e, count in counts.items() if count > total * _RARE)
    if not common:
        return range(0)
    return range(max(common[0], common[-1] + 1 - _MOST_BARS), common[-1] + 1)


def magnitudes(statistics: Iterable[Statistics], exponents: range) -> Magnitudes:
    """Return how many of the numbers have which magnitude, as heights of bars."""
    counts = _counted(statistics)
    highest = max((counts[e] for e in exponents), default=0)
    return Magnitudes(exponents.start, tuple(counts[e] / highest if highest else 0.0 for e in exponents))


def _counted(statistics: Iterable[Statistics]) -> Counter[int]:
    """Return how many of the numbers have which exponent."""
    counts: Counter[int] = Counter()
    for one in statistics:
        for exponent, count in one.magnitudes:
            counts[exponent] += count
    return counts


def change_bars(changes: Sequence[float]) -> list[Bar]:
    """Return how many tensors have changed how much: unchanged ones, then rising by half a decade."""
    finite = [change for change in changes if 0.0 < change < math.inf]
    counts = Counter(_half_decade(change) for change in finite)
    rows = [("unchanged", sum(change == 0.0 for change in changes))]
    if counts:
        rows += [(_between(at), counts[at]) for at in range(min(counts), max(counts) + 1)]
    if infinite := sum(math.isinf(change) for change in changes):
        rows.append(("from nothing", infinite))
    longest = max(count for _, count in rows)
    return [Bar(label, f"{count:,}", count / longest if longest else 0.0) for label, count in rows]


def _half_decade(change: float) -> int:
    return max(_LEAST, min(_MOST, math.floor(math.log10(change) * _PER_DECADE)))


def _between(at: int) -> str:
    return f"{_power(at)} to {_power(at + 1)}"


def _power(at: int) -> str:
    """Return half a decade in percent, as a number that people would choose: 0.1 %, 0.32 %, 1 %."""
    return f"{float(f'{10 ** (at / _PER_DECADE) * 100:.2g}'):,g} %"
