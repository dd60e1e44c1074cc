"""Sizes as people write and read them."""

from __future__ import annotations

import re

from unshard.errors import OptionError

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}


def parse_size(text: str) -> int:
    """Return the bytes that `text` means: `5GB` is 5 * 10**9, `5GiB` is 5 * 2**30.

    Raises:
        OptionError: It is not a positive number followed by a unit.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = found and _UNITS.get(found[2].lower())
    size = round(float(found[1]) * unit) if found and unit else 0
    if size <= 0:
        raise OptionError(text, "is not a size", expected="a number and a unit, such as 5GB or 512MiB")
    return size


def format_size(count: int) -> str:
    """Return `count` bytes in decimal units, with three significant digits: 2.20 GB."""
    value, units = float(count), iter(("bytes", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 999.5 and unit != "TB":
        value /= 1000
        unit = next(units)
    if unit == "bytes":
        return f"{count} byte{'' if count == 1 else 's'}"
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {unit}"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: 1 tensor, 201 tensors."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def format_count(count: int) -> str:
    """Return a large count as people say it: 1.10 B, 135 M, 272."""
    for limit, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if count >= limit:
            value = count / limit
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    return f"{count:,}"
