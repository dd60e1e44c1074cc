"""Values of a checkpoint as short text, safe to show: bounded, without control characters."""

from __future__ import annotations

import shlex
from pathlib import Path

from unshard.errors import printable
from unshard.readers.unpickling import Entries, Global, PersistentId, Record, bytes_of

_LONGEST_TEXT = 60
_LONGEST_INTEGER_BITS = 128


def shown(value: object) -> str:
    """Return a value of a pickle in a few words; a collection is only counted."""
    match value:
        case None | bool() | float():
            return repr(value)
        case int():
            bits = value.bit_length()
            return str(value) if bits <= _LONGEST_INTEGER_BITS else f"an integer of {bits} bits"
        case str():
            return cut(value)
        case Entries() | Global() | PersistentId():
            return repr(value).strip("<>")
        case list() | tuple():
            return f"{len(value)} values"
        case Record():
            content = bytes_of(value)
            return cut(value.kind) if content is None else f"{len(content)} bytes"
        case bytes():
            return f"{len(value)} bytes"
    return type(value).__name__


def cut(text: str) -> str:
    """Return text that may come from anybody, on one line and not too long."""
    text = printable(text).replace("\n", "\\n")
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + "..."


def listed(names: list[str], *, at_most: int = 3) -> str:
    """Return the first few of many names, and how many more there are."""
    more = len(names) - at_most
    return ", ".join(names[:at_most]) + (f" and {more} more" if more > 0 else "")


def as_argument(path: Path) -> str:
    """Return a path as a person would type it for a command; some names begin with dashes."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)
