"""Small JSON files of a folder that anybody may have made: bounded, and refused where readers disagree."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from unshard.errors import InputError
from unshard.model_folder.description import JsonFile, Unreadable
from unshard.readers.rendering import cut
from unshard.storage.files import InputFile

_LARGEST_BYTES = 64 << 20
_DEEPEST = 64
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_COPY = "Copy the file again from the model it belongs to."


def read_json_file(path: Path, name: str) -> JsonFile | Unreadable | None:
    """Return a JSON file that is an object, or why it cannot be read; None where it is something else.

    NaN and Infinity are read, as Python's readers do and as some configurations have them.

    Args:
        path: Where it lies.
        name: Its name in the folder.
    """
    try:
        file = InputFile.describe(path)
        if file.size > _LARGEST_BYTES:
            return Unreadable(name, f"is too large for such a file: {file.size:,} bytes")
        content = file.read(0, file.size)
    except InputError as error:
        saw = "" if error.saw is None else f": {error.saw}"
        return Unreadable(name, error.problem + saw, error.hint)
    return parse_json_file(content, name)


def parse_json_file(content: bytes, name: str) -> JsonFile | Unreadable | None:
    """Return what the content of a JSON file is; as `read_json_file`."""
    if not content:
        return Unreadable(name, "is empty", _COPY)
    if content.startswith(_BYTE_ORDER_MARK):
        hint = f"Save it as UTF-8 without a byte order mark: sed -i '1s/^\\xef\\xbb\\xbf//' {name}"
        return Unreadable(name, "begins with a byte order mark, which readers of JSON refuse", hint)
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_without_repeats)
    except UnicodeDecodeError as error:
        return Unreadable(name, f"is not UTF-8: {cut(str(error))}", _COPY)
    except RecursionError:
        return Unreadable(name, "is nested too deeply", _COPY)
    except ValueError as error:
        return Unreadable(name, f"is not valid JSON: {cut(str(error))}", _COPY)
    if not isinstance(value, dict):
        return None
    if _is_deep(value):
        return Unreadable(name, f"is nested more than {_DEEPEST} levels deep", _COPY)
    return JsonFile(name, content, value)


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return the pairs as a dict; programs disagree about which of two equal keys counts."""
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key `{cut(key)}` stands twice")
        found[key] = value
    return found


def _is_deep(value: Mapping[str, object]) -> bool:
    level: list[object] = [value]
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: object) -> list[object]:
    """Return the collections in a collection."""
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [inner for inner in values if isinstance(inner, dict | list)]
