"""From JSON to dataclasses: a value must be what the annotation of its field says, or it is refused.

Keys that no field has are ignored, so that a reader understands what a later writer adds. A float that is
not finite has no form in JSON, and stands there as one of three words.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from unshard.errors import printable

NOT_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
_SMALLEST, _LARGEST = -(1 << 63), (1 << 64) - 1  # seeds are numbers of 64 bits, with a sign or without

Decoder = Callable[[object], Any]  # what it gives is of the type that it was made for


class MisfitError(ValueError):
    """A value is not what its place needs; `place` says where it is, from the outside in."""

    def __init__(self, expected: str, value: object) -> None:
        self.place: list[str] = []
        self.expected = expected
        self.saw = _shown(value)
        super().__init__(expected)

    def __str__(self) -> str:
        where = ".".join(reversed(self.place)) or "the record"
        return f"`{printable(where)[:200]}` is {self.saw}, not {self.expected}"


@cache
def decoder_of(kind: object) -> Decoder:
    """Return the function that makes a value of the type `kind` of what JSON has, or raises MisfitError."""
    origin, inside = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda value: value
    if isinstance(kind, type) and is_dataclass(kind):
        return _dataclass(kind)
    if origin is Literal:
        return _one_of(inside)
    if origin in (Union, types.UnionType):
        return _optional(next(each for each in inside if each is not type(None)))
    if origin is tuple:
        return _sequence(decoder_of(inside[0]))
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(decoder_of(inside[1]))
    return _PLAIN[kind]


def _dataclass(kind: type) -> Decoder:
    hints = get_type_hints(kind)
    parts = [(field.name, decoder_of(hints[field.name]), is_required(field)) for field in fields(kind)]

    def decode(value: object) -> object:
        if not isinstance(value, dict):
            raise MisfitError("an object", value)
        found = {}
        for name, inner, is_required in parts:
            if name in value:
                try:
                    found[name] = inner(value[name])
                except MisfitError as error:
                    error.place.append(name)
                    raise
            elif is_required:
                raise MisfitError(f"an object with `{name}`", value)
        return kind(**found)

    return decode


def is_required(field: Field[object]) -> bool:
    """Return whether a record must have the field."""
    return field.default is MISSING and field.default_factory is MISSING


def _sequence(inner: Decoder) -> Decoder:
    def decode(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise MisfitError("a list", value)
        found = []
        for item in value:
            try:
                found.append(inner(item))
            except MisfitError as error:
                error.place.append(str(len(found)))
                raise
        return tuple(found)

    return decode


def _mapping(inner: Decoder) -> Decoder:
    def decode(value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise MisfitError("an object", value)
        found = {}
        for name, item in value.items():
            try:
                found[name] = inner(item)
            except MisfitError as error:
                error.place.append(name)
                raise
        return found

    return decode


def _optional(kind: object) -> Decoder:
    inner = decoder_of(kind)
    return lambda value: None if value is None else inner(value)


def _one_of(words: tuple[object, ...]) -> Decoder:
    def decode(value: object) -> object:
        if not isinstance(value, str) or value not in words:
            raise MisfitError(f"one of {', '.join(map(str, words))}", value)
        return value

    return decode


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise MisfitError("text", value)
    return value


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise MisfitError("true or false", value)
    return value


def _integer(value: object) -> int:
    if type(value) is not int or not _SMALLEST <= value <= _LARGEST:
        raise MisfitError("an integer of 64 bits", value)
    return value


def _number(value: object) -> float:
    if isinstance(value, str) and value in NOT_FINITE:
        return NOT_FINITE[value]
    if type(value) is int and _SMALLEST <= value <= _LARGEST:
        return float(value)
    if not isinstance(value, float):
        raise MisfitError("a number", value)
    return value


def _shown(value: object) -> str:
    """Return what a value is in a few words; it may be anybody's, and of any size."""
    match value:
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case int() if value.bit_length() > 64:
            return f"an integer of {value.bit_length():,} bits"
        case int() | float():
            return str(value)
        case str():
            return f"the text {printable(value[:40])!r}"
        case dict():
            return f"an object of {len(value):,} keys"
        case list():
            return f"a list of {len(value):,} values"
    return type(value).__name__


_PLAIN: Mapping[object, Decoder] = {str: _text, int: _integer, float: _number, bool: _truth}
