"""Versions of packages as numbers, and ranges of them as far as a comparison needs them.

2.13.0, 2.6.0+cu124, 5.0.0rc1       one version; what follows its numbers does not order it here
>=2.5,<2.10                         a range, as requirements write it
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Release = tuple[int, ...]

_NUMBERS = re.compile(r"v?(\d{1,9}(?:\.\d{1,9}){0,5})(?![\d.])")
_BOUNDS = re.compile(r"(>=|<)(\d{1,9}(?:\.\d{1,9}){0,5})")
# What may stand in a line of requirements.txt after `==`: PEP 440, an epoch aside.
_PINNABLE = re.compile(
    r"\d{1,9}(\.\d{1,9}){0,5}((a|b|rc)\d{1,9})?(\.post\d{1,9})?(\.dev\d{1,9})?(\+[A-Za-z0-9.]{1,40})?"
)


@dataclass(frozen=True, slots=True)
class VersionRange:
    """Versions from `least` up to, and without, `below`; None where that side is open.

    Attributes:
        least: The first version in it.
        below: The first one after it that is not.
        is_exact: Whether it is one version, which is `least`.
    """

    least: Release | None = None
    below: Release | None = None
    is_exact: bool = False

    def __str__(self) -> str:
        bounds = ((">=", self.least), ("<", self.below))
        return ",".join(sign + ".".join(map(str, release)) for sign, release in bounds if release is not None)

    @property
    def is_possible(self) -> bool:
        """Whether a version can be in it."""
        return self.least is None or self.below is None or self.least < self.below

    def and_(self, other: VersionRange) -> VersionRange:
        """Return the versions that are in both."""
        least = [bound for bound in (self.least, other.least) if bound is not None]
        below = [bound for bound in (self.below, other.below) if bound is not None]
        return VersionRange(max(least, default=None), min(below, default=None))

    def contains(self, release: Release) -> bool:
        """Return whether a release is in it."""
        if self.is_exact:
            return release == self.least
        above = self.least is None or release >= self.least
        return above and (self.below is None or release < self.below)

    def is_above(self, release: Release, digits: int = 2) -> bool:
        """Return whether all of it is newer than a release, to so many of their numbers."""
        return self.least is not None and release[:digits] < self.least[:digits]

    def is_below(self, release: Release, digits: int = 2) -> bool:
        """Return whether all of it is older than a release, to so many of their numbers."""
        if self.is_exact:
            return self.least is not None and self.least[:digits] < release[:digits]
        return self.below is not None and release >= self.below


def parse_release(version: str | None) -> Release | None:
    """Return the numbers that a version begins with, trailing zeros dropped, or None where it has none."""
    found = _NUMBERS.match(version.strip()) if version is not None else None
    return None if found is None else _release(found[1])


def parse_range(text: str | None) -> VersionRange | None:
    """Return the range that a version or its bounds stand for, or None where a text is neither."""
    if text is None:
        return None
    if (release := parse_release(text)) is not None:
        return VersionRange(release, None, is_exact=True)
    bounds = {sign: _release(numbers) for sign, numbers in _BOUNDS.findall(text)}
    found = VersionRange(bounds.get(">="), bounds.get("<"))
    return found if bounds and str(found) == text else None


def is_pinnable(version: str) -> bool:
    """Return whether a version is one that pip takes as it is; it may come from anybody's file."""
    return _PINNABLE.fullmatch(version) is not None


def _release(numbers: str) -> Release:
    """Return numbers as a release that is at least two long: 2.0 and 2 are one, and so are 2.1.0 and 2.1."""
    parts = [int(number) for number in numbers.split(".")]
    while len(parts) > 2 and parts[-1] == 0:
        parts.pop()
    return tuple(parts) if len(parts) > 1 else (*parts, 0)
