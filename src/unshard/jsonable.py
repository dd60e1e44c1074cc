"""Results as plain values, for `--json` and the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath

from unshard.dtypes import DType


def to_json(value: object) -> object:
    """Return `value` as dicts, lists, strings and numbers; dataclasses by their fields.

    Raises:
        TypeError: Something in it has no plain form.
    """
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, DType | PurePath | Enum | str):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no plain form")
