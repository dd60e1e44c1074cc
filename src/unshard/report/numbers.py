"""Numbers as people read them: few digits, one unit, and signs that say what they are."""

from __future__ import annotations

import math

from unshard.errors import printable

_MINUS, _TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
# The smallest share that is told in percent; below, zeros would have to be counted.
_SMALLEST_PERCENT = 1e-6


def percent(share: float) -> str:
    """Return a share in percent with three significant digits: 1.84 %, 0.00310 %, 4.2e-9."""
    if math.isnan(share):
        return "not a number"
    if math.isinf(share):
        return "∞"
    if share == 0.0:
        return "0"
    if abs(share) < _SMALLEST_PERCENT:
        return f"{share:.1e}"
    return f"{_significant(share * 100)} %"


def share_of(count: int, total: int) -> str:
    """Return how much of `total` a count is, in percent; never 100 % or 0 where it is not all or none."""
    if total == 0:
        return "0"
    text = percent(count / total)
    if count < total and text in ("100 %", "100.0 %"):
        return "> 99.9 %"
    return text


def number(value: float) -> str:
    """Return a number with four significant digits."""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return f"{_MINUS}∞" if value < 0 else "∞"
    return f"{value:.4g}".replace("-", _MINUS)


def cosine(value: float) -> str:
    """Return a cosine, with as many digits as tell how far from one it is."""
    return f"{value:.6f}".replace("-", _MINUS)


def visible(text: object) -> str:
    """Return text that came from a file, on one line, with everything spelled out that does not print."""
    return printable(str(text)).replace("\n", "\\n")


def shape_text(shape: tuple[int, ...]) -> str:
    """Return a shape as people write it: 4096 × 1024; `scalar` where there are no dimensions."""
    return f" {_TIMES} ".join(map(str, shape)) or "scalar"


def _significant(value: float) -> str:
    """Return a positive number with three significant digits, and no exponent."""
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    rounded = float(f"{value:.3g}")
    return f"{rounded:.{max(0, 2 - math.floor(math.log10(abs(rounded))))}f}"
