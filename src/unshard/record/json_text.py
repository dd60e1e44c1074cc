"""JSON that anybody may have made, read strictly; and JSON that people can read, written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import NoReturn

_DEEPEST = 64
_WIDTH = 100


def parse_json(content: bytes) -> object:
    """Return what the text says.

    Raises:
        ValueError: It is not UTF-8 or no JSON, has a number that is not finite or one key twice, or is nested
            too deeply; the message says which.
    """
    try:
        value = json.loads(
            content.decode("utf-8"), object_pairs_hook=_without_repeats, parse_constant=_not_finite
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if _is_deep(value):
        raise ValueError(f"it is nested more than {_DEEPEST} levels deep")
    return value


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return the pairs as a dict; programs disagree about which of two equal keys counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {repeated[:60]!r} stands twice")
    return found


def _not_finite(word: str) -> NoReturn:
    raise ValueError(f"it has {word}, which JSON does not")


def _is_deep(value: object) -> bool:
    level: list[object] = [value]
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _collections_in(outer)]
        if not level:
            return False
    return True


def _collections_in(value: object) -> list[object]:
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [inner for inner in values if isinstance(inner, dict | list)]


def format_json(value: object, margin: str = "") -> str:
    """Return plain values as JSON text: what is short on one line, rows of numbers too.

    Args:
        value: Dicts, lists, text and numbers; a float that is not finite becomes the word for it.
        margin: What lines after the first one begin with.
    """
    inner = margin + "  "
    if isinstance(value, Mapping) and not _is_short(value):
        parts = [f"{_compact(str(key))}: {format_json(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(inner + part for part in parts) + f"\n{margin}}}"
    if isinstance(value, list | tuple) and not _is_short(value) and not _is_row(value):
        parts = [format_json(item, inner) for item in value]
        return "[\n" + ",\n".join(inner + part for part in parts) + f"\n{margin}]"
    return _compact(value)


def _is_short(value: object) -> bool:
    """Return whether a value fits on a line; what holds more than a few values is not even written."""
    size, pending = 0, [value]
    while pending:
        item = pending.pop()
        size += 4 + (len(item) if isinstance(item, str) else 0)
        if isinstance(item, Mapping):
            size += sum(len(str(key)) + 4 for key in item)
            pending += item.values()
        elif isinstance(item, list | tuple):
            pending += item
        if size + 4 * len(pending) > _WIDTH:
            return False
    return True


def _is_row(value: list[object] | tuple[object, ...]) -> bool:
    return all(item is None or isinstance(item, bool | int | float) for item in value)


def _compact(value: object) -> str:
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
