"""Names of a folder as findings show them: a few of many, on one line."""

from __future__ import annotations

from collections.abc import Iterable

from unshard.errors import listed, printable

_LONGEST = 80


def quoted(name: str) -> str:
    """Return one name, which may be anything, as it can be shown."""
    text = printable(name).replace("\n", "\\n")
    return f"`{text if len(text) <= _LONGEST else text[: _LONGEST - 3] + '...'}`"


def named(names: Iterable[str]) -> str:
    """Return the first few names, and how many more there are."""
    return listed([quoted(name) for name in names])
