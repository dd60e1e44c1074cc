"""The JSON Schema of a record, made from the dataclasses that a record is read into."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from unshard.record.decoding import NOT_FINITE, is_required
from unshard.record.description import VERSION, Record

_ATTRIBUTE = re.compile(r"^    (\w+): (.+(?:\n        .+)*)", re.MULTILINE)
_PLAIN: Mapping[object, str] = {str: "string", int: "integer", bool: "boolean"}


def record_schema() -> dict[str, Any]:
    """Return the schema of `unshard.record.json`, in JSON Schema of 2020-12.

    Keys that it does not name are allowed: a later writer may add some, and readers pass over them.
    """
    definitions: dict[str, Any] = {}
    for kind in (Record, *dataclasses_in(Record)):
        definitions[kind.__name__] = _schema_of_dataclass(kind)
    definitions["BoxDigest"]["properties"]["sha256"]["pattern"] = "^[0-9a-f]{64}$"
    record = definitions.pop("Record")
    version = {
        "type": "integer",
        "minimum": 1,
        "maximum": VERSION,
        "description": "The version of this layout.",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "unshard.record.json",
        "description": record["description"],
        "type": "object",
        "properties": {"record": version, **record["properties"]},
        "required": ["record", *record["required"]],
        "$defs": definitions,
    }


def dataclasses_in(kind: type) -> Iterator[type]:
    """Yield every dataclass that the fields of a dataclass are made of, each once, in their order."""
    found: dict[type, None] = {}
    pending = [kind]
    while pending:
        for hint in get_type_hints(pending.pop()).values():
            for each in _parts(hint):
                if is_dataclass(each) and isinstance(each, type) and each not in found:
                    found[each] = None
                    pending.append(each)
    yield from found


def descriptions_of(kind: type) -> tuple[str, dict[str, str]]:
    """Return what a dataclass is, and what each of its fields is, by its docstring."""
    text = inspect.getdoc(kind) or ""
    attributes = text.partition("Attributes:\n")[2]
    told = {name: " ".join(words.split()) for name, words in _ATTRIBUTE.findall(attributes)}
    return text.partition("\n")[0], told


def _parts(hint: object) -> Iterator[object]:
    yield hint
    for inner in get_args(hint):
        yield from _parts(inner)


def _schema_of_dataclass(kind: type) -> dict[str, Any]:
    title, told = descriptions_of(kind)
    hints = get_type_hints(kind)
    properties = {
        field.name: {**_schema_of(hints[field.name]), **_described(told.get(field.name))}
        for field in fields(kind)
    }
    required = [field.name for field in fields(kind) if is_required(field)]
    return {"description": title, "type": "object", "properties": properties, "required": required}


def _described(words: str | None) -> dict[str, str]:
    return {} if words is None else {"description": words}


def _schema_of(hint: object) -> dict[str, Any]:
    origin, inside = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if isinstance(hint, type) and is_dataclass(hint):
        return {"$ref": f"#/$defs/{hint.__name__}"}
    if origin is Literal:
        return {"enum": list(inside)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema_of(each) for each in inside if each is not type(None)] + [{"type": "null"}]}
    if origin is tuple:
        return {"type": "array", "items": _schema_of(inside[0])}
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _schema_of(inside[1])}
    if hint is float:
        return {"anyOf": [{"type": "number"}, {"enum": list(NOT_FINITE)}]}
    return {"type": _PLAIN[hint]}
