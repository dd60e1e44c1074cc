"""The training configuration as data, whatever the script keeps it in, without secrets.

a dataclass, or its class        with what is in it, nested
argparse.Namespace               and other plain objects that hold values
a mapping                        dicts, and what behaves like one: OmegaConf's, ml_collections'
TrainingArguments                of transformers, by `to_dict`, which masks tokens
a path                           of a YAML or JSON file, which is also kept as it is
several of these                 as a tuple: llama-recipes has one for training and one for FSDP
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import Any, Protocol, runtime_checkable

from unshard.errors import InputError, OptionError, printable
from unshard.findings import Finding, finding
from unshard.record.description import TrainingConfig
from unshard.record.json_text import format_json, parse_json
from unshard.record.secrets import secrets_in, without_secrets, without_secrets_in_text
from unshard.storage.files import InputFile

NAME = "unshard.training_config"
_LARGEST_BYTES = 16 << 20
_DEEPEST = 32  # a configuration that holds itself ends here
_LONGEST_LIST = 10_000
_BITS = 64
_HINT = "Give a dataclass, a namespace, a dict, TrainingArguments, or the path of a YAML or JSON file."


@runtime_checkable
class _ToDict(Protocol):
    def to_dict(self) -> Mapping[str, object]: ...


@dataclass(frozen=True, slots=True)
class GivenConfig:
    """A training configuration that was given.

    Attributes:
        config: It, as the record has it.
        files: What lies beside the record, by name.
        findings: What a person should know: where secrets kept a file from being copied.
    """

    config: TrainingConfig | None
    files: Mapping[str, bytes]
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class _One:
    name: str
    kind: str
    values: Mapping[str, object]
    suffix: str
    content: bytes
    finding: Finding | None = None


def read_training_config(config: object) -> GivenConfig:
    """Return the training configuration that a script gives.

    Raises:
        OptionError: It is nothing that a configuration can be, or a file that cannot be read.
    """
    if config is None:
        return GivenConfig(None, {})
    given = [_one(each) for each in (config if isinstance(config, tuple) else (config,))]
    kept = [each for each in given if each.finding is None]
    numbers = [""] if len(given) == 1 else [f".{n}" for n in range(1, len(given) + 1)]
    files = {
        f"{NAME}{number}{each.suffix}": each.content
        for number, each in zip(numbers, given, strict=True)
        if each in kept
    }
    values = given[0].values if len(given) == 1 else _by_name(given)
    kind = given[0].kind if len(given) == 1 else "several"
    told = tuple(each.finding for each in given if each.finding is not None)
    return GivenConfig(TrainingConfig(kind, values, tuple(files)), files, told)


def _by_name(given: list[_One]) -> dict[str, object]:
    """Return the values of several configurations, each by its name; of one name, by its number, too."""
    found: dict[str, object] = {}
    for number, each in enumerate(given, 1):
        found[each.name if each.name not in found else f"{each.name}.{number}"] = each.values
    return found


def _one(config: object) -> _One:
    if isinstance(config, str | os.PathLike):
        return _file(Path(config))
    kind = kind_of(config)
    if kind is None:
        saw = "no configuration" if config is None else f"a {type(config).__name__}"
        raise OptionError("config", "is nothing that a configuration can be", saw=saw, hint=_HINT)
    plain = plain_values(config)
    assert isinstance(plain, dict)
    values = without_secrets(plain)
    assert isinstance(values, dict)
    name = (config if isinstance(config, type) else type(config)).__name__
    return _One(name, kind, values, ".json", (format_json(values) + "\n").encode())


def kind_of(config: object) -> str | None:
    """Return what a configuration is given as, or None where it is none."""
    if isinstance(config, argparse.Namespace):
        return "namespace"
    if any(base.__name__ == "TrainingArguments" for base in type(config).__mro__):
        return "TrainingArguments"
    if is_dataclass(config):
        return "dataclass"
    if isinstance(config, Mapping) or (isinstance(config, _ToDict) and not isinstance(config, type)):
        return "mapping"
    return None


def _file(path: Path) -> _One:
    """Return what a file of YAML or JSON says.

    Raises:
        OptionError: It cannot be read.
    """
    suffix = ".json" if path.suffix.lower() == ".json" else ".yaml"
    try:
        file = InputFile.describe(path)
        if file.size > _LARGEST_BYTES:
            raise ValueError(f"{file.size:,} bytes, more than {_LARGEST_BYTES:,}")
        content = file.read(0, file.size)
        parsed = parse_json(content) if suffix == ".json" else _parse_yaml(content)
        plain = plain_values(parsed)
        if not isinstance(plain, dict):
            raise ValueError("no mapping at the top")
    except (InputError, ValueError) as error:
        saw = error.problem if isinstance(error, InputError) else printable(str(error))[:300]
        raise OptionError(path, "cannot be read as a training configuration", saw=saw, hint=_HINT) from error
    values = without_secrets(plain)
    assert isinstance(values, dict)
    return _One(path.stem, suffix[1:], values, suffix, content, _check_secrets(path, plain, content))


def _parse_yaml(content: bytes) -> object:
    import yaml

    try:
        return yaml.safe_load(content)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from error


def _check_secrets(path: Path, plain: object, content: bytes) -> Finding | None:
    """Return why a file must not be copied, or None where nothing in it looks like a secret."""
    places = list(secrets_in(plain))
    text = content.decode("utf-8", "replace")
    if not places and without_secrets_in_text(text) != text:
        places = ["a comment, or the name of a value"]
    if not places:
        return None
    return finding(
        "U720",
        subject=path.name,
        saw=f"what looks like a secret: {', '.join(places[:3])}"
        + (f" and {len(places) - 3} more" if len(places) > 3 else ""),
        expected="a configuration that may lie beside a published model",
        remedy="Keep secrets in environment variables. The record has all other values.",
    )


def plain_values(value: object, depth: int = 0) -> object:
    """Return values as JSON has them: dicts, lists, text, numbers, null.

    What has no plain form is told by the name of its class. Cycles end at a depth of 32.
    """
    if isinstance(value, Enum):
        return plain_values(value.value, depth + 1)
    if value is None or isinstance(value, bool | int | float | str):
        return _scalar(value)
    if isinstance(value, PurePath):
        return str(value)
    if depth >= _DEEPEST:
        return f"<{type(value).__name__}, nested too deeply>"
    items = _items(value)
    if items is not None:
        return {str(key): plain_values(item, depth + 1) for key, item in items}
    if isinstance(value, set | frozenset):
        value = sorted(value, key=repr)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview | range):
        shown = [plain_values(item, depth + 1) for item in value[:_LONGEST_LIST]]
        more = len(value) - len(shown)
        return [*shown, *([f"<{more:,} more>"] if more else [])]
    return _named(value)


def _scalar(value: object) -> object:
    """Return a scalar as exactly the type that JSON knows, not a subclass of it; large integers as text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value) if value.bit_length() <= _BITS else f"<an integer of {value.bit_length():,} bits>"
    if isinstance(value, str):
        return str(value).encode("utf-8", "replace").decode()  # surrogates have no form in UTF-8
    return float(value) if isinstance(value, float) else value


def _items(value: object) -> Iterable[tuple[object, object]] | None:
    """Return the names and values in what holds some, or None where it holds none."""
    if isinstance(value, Mapping):
        return _entries(value)
    if isinstance(value, argparse.Namespace):
        return vars(value).items()
    if kind_of(value) != "TrainingArguments" and is_dataclass(value):
        # Of a class, the defaults: llama-recipes changes them in place.
        return [(f.name, getattr(value, f.name)) for f in fields(value) if hasattr(value, f.name)]
    if isinstance(value, _ToDict) and not isinstance(value, type):
        try:
            return value.to_dict().items()
        except Exception:  # noqa: BLE001 - it is somebody's own code, and no reason to lose a save
            return None
    return None


def _entries(values: Mapping[Any, object]) -> Iterable[tuple[object, object]]:
    """Yield what a mapping holds; OmegaConf's raise for values that are demanded and were not given."""
    for key in values:
        try:
            yield key, values[key]
        except Exception as error:  # noqa: BLE001 - as above
            yield key, f"<{type(error).__name__}>"


def _named(value: object) -> str:
    """Return the name of a class, a function, or a dtype; of anything else, that of its class."""
    kind = type(value)
    if kind.__module__ == "torch" and kind.__name__ in ("dtype", "device"):
        return str(value).removeprefix("torch.")
    named: Any = value if isinstance(getattr(value, "__qualname__", None), str) else kind
    return f"<{named.__module__}.{named.__qualname__}>"
