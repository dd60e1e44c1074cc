"""What a checkpoint holds beside tensors: plain values, shown; and files of a model, given as they were.

Every value is a blob of its own, a file of torch.save without tensors. Small ones are read as data. Where
Composer trained a model of Hugging Face, its configuration and its tokenizer are among them:

    state.integrations.huggingface.model.config.content.<key>         one value each, or all in one
    state.integrations.huggingface.tokenizer.<stem>.file_extension    and .content

Source:
    torch/distributed/checkpoint/planner.py (`resolve_bytes`);
    composer/models/huggingface.py (`HuggingFaceModel.get_metadata`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from unshard.checkpoint import Extra
from unshard.errors import InputError
from unshard.readers.dcp.tables import NOWHERE, ItemRow, Tables
from unshard.readers.folders import Folder
from unshard.readers.rendering import cut, shown
from unshard.readers.torch_save.contents import value_kind
from unshard.readers.torch_save.torch_zip import describe_torch_zip
from unshard.readers.unpickling import Entries, bytes_of
from unshard.storage.files import InputFile

_LARGEST_VALUE, _LARGEST_FILES = 64 << 10, 16 << 20
_MOST_SHOWN, _MOST_OF_A_KIND, _MOST_OF_FILES = 200, 24, 4000
_FILES = ("integrations", "huggingface")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True, slots=True)
class Items:
    """The items of a checkpoint, read.

    Attributes:
        extras: One for each, or for many of a kind.
        files: Content of files of a model folder, by name.
    """

    extras: tuple[Extra, ...]
    files: Mapping[str, bytes]


def read_items(tables: Tables, items: Iterable[ItemRow], folder: Folder) -> Items:
    """Return the items: small ones as values, others by their sizes."""
    of_files, kinds = list[ItemRow](), dict[str, list[ItemRow]]()
    for item in items:
        keys = _keys(tables, item)
        if "integrations" in keys[:3]:
            of_files.append(item)
        else:
            kinds.setdefault(keys[0], []).append(item)
    extras: list[Extra] = []
    for kind, alike in kinds.items():
        if len(alike) > _MOST_OF_A_KIND or len(extras) + len(alike) > _MOST_SHOWN:
            extras.append(_summed(kind, alike))
        else:
            extras += (_extra(tables, item, folder) for item in alike)
    if of_files:
        size = sum(item.length for item in of_files)
        extras.append(Extra("integrations", "value", size, f"{len(of_files)} values"))
    return Items(tuple(extras), _files(tables, of_files, folder))


def _summed(kind: str, alike: list[ItemRow]) -> Extra:
    """Return many items whose names begin alike as one."""
    counted = f"{len(alike)} value{'s' * (len(alike) != 1)}"
    return Extra(cut(kind), "value", sum(item.length for item in alike), counted)


def _extra(tables: Tables, item: ItemRow, folder: Folder) -> Extra:
    value = _value(tables, item, folder, _LARGEST_VALUE)
    kind = value_kind(_keys(tables, item)[-1])
    return Extra(cut(item.name), kind, item.length, None if value is _UNREAD else shown(value))


def _keys(tables: Tables, item: ItemRow) -> tuple[str, ...]:
    path = tables.paths.get(item.name)
    return tuple(map(str, path)) if path else tuple(item.name.split("."))


_UNREAD = object()


def _value(tables: Tables, item: ItemRow, folder: Folder, at_most: int) -> object:
    """Return the value of an item, or `_UNREAD`: what cannot be read here keeps nobody from the model."""
    if item.file == NOWHERE or item.length > at_most or item.start < 0 or item.transforms:
        return _UNREAD
    name = tables.files[item.file]
    if name not in folder.files:
        return _UNREAD
    try:
        file = InputFile.describe(folder.at(name))
        return describe_torch_zip(file, item.start, item.start + item.length).value
    except InputError:
        return _UNREAD


def _files(tables: Tables, items: list[ItemRow], folder: Folder) -> dict[str, bytes]:
    """Return the files of a model of Hugging Face that Composer kept."""
    if len(items) > _MOST_OF_FILES or sum(item.length for item in items) > _LARGEST_FILES:
        items = [item for item in items if "config" in _keys(tables, item)]
    tree: dict[str, object] = {}
    for item in items[:_MOST_OF_FILES]:
        value = _value(tables, item, folder, _LARGEST_FILES)
        if value is not _UNREAD:
            _put(tree, tables.paths.get(item.name) or _keys(tables, item), value)
    kept = _below(tree, ("state", *_FILES)) or _below(tree, _FILES)
    files: dict[str, bytes] = {}
    if isinstance(config := _below(kept, ("model", "config", "content")), dict) and "model_type" in config:
        files |= _as_file("config.json", ".json", config)
    if isinstance(tokenizer := _below(kept, ("tokenizer",)), dict):
        for stem, one in tokenizer.items():
            extension, content = _below(one, ("file_extension",)), _below(one, ("content",))
            if type(stem) is str and type(extension) is str and _PLAIN_NAME.fullmatch(stem + extension):
                files |= _as_file(stem + extension, extension, content)
    return files


def _put(tree: dict[str, object], keys: Iterable[str | int], value: object) -> None:
    """Put a value where its keys lead; lists become dictionaries until they are whole."""
    *above, last = keys
    for key in above:
        inner = tree.setdefault(str(key), {})
        if not isinstance(inner, dict):
            return
        tree = inner
    tree[str(last)] = value


def _below(value: object, keys: Iterable[str]) -> object:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _as_file(name: str, extension: str, content: object) -> dict[str, bytes]:
    """Return a file by its name, or nothing where its content cannot have been one."""
    if extension == ".model":
        raw = bytes_of(content)
        return {} if raw is None else {name: raw}
    try:
        plain = _plain(content)
        if extension == ".json" and isinstance(plain, dict | list):
            return {name: json.dumps(plain, indent=2, ensure_ascii=False).encode()}
        if extension in (".txt", ".jinja") and isinstance(plain, list):
            return {name: "\n".join(plain).encode()}
    except (TypeError, ValueError, RecursionError):  # no such file could have been there
        pass
    return {}


def _plain(value: object) -> object:
    """Return a value as JSON has it.

    Raises:
        TypeError: It holds something that JSON has not.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict) and not (type(value) is Entries and value.others):
        if value and all(type(key) is str and key == str(i) for i, key in enumerate(value)):
            return [_plain(one) for one in value.values()]  # a list that was saved item by item
        return {key: _plain(one) for key, one in value.items()}
    raise TypeError(type(value).__name__)
