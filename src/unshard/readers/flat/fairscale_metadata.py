"""What fairscale says of its flat parameters, read as data.

    param_metadata: [{
        fsdp_path           the wrapped module
        params              {flat_param_0: {names, shapes, numels: one for each parameter; padding}}
        shared_param_info   [(a parameter, another name of it)]
        no_broadcast_optim_state    whether every rank has parameters of its own
    }]
    buffer_names

Names are relative to the wrapped module. All numbers are checked before they are used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from unshard.errors import UnsafeFileError
from unshard.readers.rendering import cut, shown
from unshard.readers.torch_save.contents import entries_of
from unshard.readers.unpickling import Entries, Record

_KEY = "param_metadata"
_TOO_MANY = 1 << 62
_MOST_DIMENSIONS = 32

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Backing:
    """A flat parameter, or one that was sharded by itself, and the parameters in it.

    Attributes:
        name: Its name in the state dict.
        parameters: The shapes of what it holds by name, in their order.
        padding: Elements at the end of this rank's range that belong to no parameter.
        is_own: Whether every rank has parameters of its own under these names.
    """

    name: str
    parameters: Mapping[str, Shape]
    padding: int
    is_own: bool

    @property
    def count(self) -> int:
        """Elements of its parameters together."""
        return sum(map(math.prod, self.parameters.values()))


@dataclass(frozen=True, slots=True)
class FairscaleMetadata:
    """What one rank says.

    Attributes:
        backings: Its flat parameters by name.
        shared: Other names of parameters, and those they repeat.
    """

    backings: Mapping[str, Backing]
    shared: Mapping[str, str]


def find_metadata(saved: object) -> Entries | None:
    """Return fairscale's metadata in a saved object, or None where there is none."""
    for value in (entries_of(saved) or {}).values():
        entries = entries_of(value)
        if entries is not None and _KEY in entries:
            return entries
    return None


def read_metadata(entries: Entries, path: Path) -> FairscaleMetadata:
    """Return what metadata say.

    Args:
        entries: The metadata.
        path: The file they are in.

    Raises:
        UnsafeFileError: They are not what fairscale writes.
    """
    backings: dict[str, Backing] = {}
    shared: dict[str, str] = {}
    homes: set[str] = set()
    for module in _list(path, _KEY, entries[_KEY]):
        fields = _entries(path, _KEY, module)
        before = _text(path, "fsdp_path", fields.get("fsdp_path"))
        before = f"{before}." if before else ""
        for key, params in _entries(path, "params", fields.get("params")).items():
            described = _entries(path, key, params)
            parameters = dict(_parameters(path, before, described))
            if len(parameters) != len(_list(path, "names", described.get("names"))):
                raise _odd(path, "names", "one name twice")
            twice = homes & parameters.keys()
            if twice or before + key in backings:
                raise _odd(path, "names", f"`{cut(min(twice, default=before + key))}` in two places")
            homes |= parameters.keys()
            padding = _count(path, "padding", described.get("padding"))
            is_own = fields.get("no_broadcast_optim_state") is True
            backings[before + key] = Backing(before + key, parameters, padding, is_own)
        for pair in _list(path, "shared_param_info", fields.get("shared_param_info", [])):
            kept, again = _pair(path, pair)
            shared[before + again] = before + kept
    return FairscaleMetadata(backings, shared)


def _parameters(path: Path, before: str, described: Entries) -> Iterator[tuple[str, Shape]]:
    """Yield the parameters of a flat parameter, in their order."""
    lists = [_list(path, key, described.get(key)) for key in ("names", "shapes", "numels")]
    if len({len(items) for items in lists}) != 1:
        raise _odd(path, "names", "lists of different lengths")
    for name, shape, numel in zip(*lists, strict=True):
        full = _shape(path, shape)
        if math.prod(full) != _count(path, "numels", numel):
            raise _odd(path, "numels", f"{shown(numel)} for shape {list(full)}")
        yield before + _text(path, "names", name), full


def _shape(path: Path, value: object) -> Shape:
    sizes = value.args[0] if isinstance(value, Record) and len(value.args) == 1 else value
    if not isinstance(sizes, tuple) or len(sizes) > _MOST_DIMENSIONS:
        raise _odd(path, "shapes", shown(value))
    full = tuple(_count(path, "shapes", size) for size in sizes)
    if math.prod(full) > _TOO_MANY:
        raise _odd(path, "shapes", f"{list(full)}")
    return full


def _pair(path: Path, value: object) -> tuple[str, str]:
    if not isinstance(value, tuple) or len(value) != 2:
        raise _odd(path, "shared_param_info", shown(value))
    return _text(path, "shared_param_info", value[0]), _text(path, "shared_param_info", value[1])


def _count(path: Path, key: str, value: object) -> int:
    if type(value) is not int or not 0 <= value <= _TOO_MANY:
        raise _odd(path, key, shown(value))
    return value


def _text(path: Path, key: str, value: object) -> str:
    if not isinstance(value, str) or not (value.isprintable() or not value):
        raise _odd(path, key, shown(value))
    return value


def _list(path: Path, key: str, value: object) -> list[object]:
    if not isinstance(value, list | tuple):
        raise _odd(path, key, shown(value))
    return list(value)


def _entries(path: Path, key: str, value: object) -> Entries:
    entries = entries_of(value)
    if entries is None:
        raise _odd(path, key, shown(value))
    return entries


def _odd(path: Path, key: str, saw: str) -> UnsafeFileError:
    hint = "fairscale writes no such file. Copy it again, or ask whoever made it."
    return UnsafeFileError(path, f"has metadata whose `{cut(key)}` cannot be", saw=saw, hint=hint)
