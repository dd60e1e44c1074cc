"""What the tensors prove wrong in the base's config.json, and nothing else of it."""

from __future__ import annotations

from collections.abc import Mapping

from unshard.base.configuration import TIE_FLAG, Config, all_levels, places_of, text_levels
from unshard.dtypes import DTYPES, DType
from unshard.findings import Finding, finding

Edits = dict[str, object]

# The first version of transformers that writes `dtype` where those before wrote `torch_dtype`.
_DTYPE_SINCE = (4, 56)


def dtype_edits(config: Config, dtype: DType | None, *, uniform: bool) -> Edits:
    """Return the edits that make the configuration name the dtype that most of the tensors have.

    A configuration that names none means float32, and gets a key only for another one.

    Args:
        config: The base's configuration.
        dtype: The dtype that most of the tensors have.
        uniform: Whether all floating tensors have it, so that no part of the model has another.
    """
    if dtype is None:
        return {}
    levels = all_levels(config) if uniform else text_levels(config)
    places = {
        ".".join((*path, key)): level[key]
        for path, level in levels
        for key in ("torch_dtype", "dtype")
        if key in level and (not path or _plain(level[key]) in DTYPES)
    }
    if not places:
        return {} if dtype.name == "float32" else {_dtype_key(config): dtype.name}
    return {key: dtype.name for key, value in places.items() if _plain(value) != dtype.name}


def _plain(value: object) -> str:
    return str(value).removeprefix("torch.")


def _dtype_key(config: Config) -> str:
    """Return the key that the version of transformers which wrote the configuration uses."""
    numbers = str(config.get("transformers_version", "")).split(".")[:2]
    if len(numbers) == 2 and all(number.isdigit() for number in numbers):
        return "dtype" if tuple(map(int, numbers)) >= _DTYPE_SINCE else "torch_dtype"
    return "torch_dtype"


def tie_edits(config: Config, *, tied: bool | None, diverged: bool) -> Edits:
    """Return the edits that make the tie flag true to the tensors, wherever an engine may read it.

    What the flag means where it is absent varies by family, so it is always written at the top.

    Args:
        config: The base's configuration.
        tied: Whether embedding and head are one tensor in the result; None where there is no pair.
        diverged: Whether the base ties them and the checkpoint does not: then no level may be silent.
    """
    if tied is None:
        return {}
    edits: Edits = {} if config.get(TIE_FLAG) is tied else {TIE_FLAG: tied}
    for path, level in text_levels(config)[1:]:
        if level.get(TIE_FLAG, tied) is not tied or (diverged and TIE_FLAG not in level):
            edits[".".join((*path, TIE_FLAG))] = tied
    return edits


def cache_edits(config: Config) -> Edits:
    """Return the edits that switch on the cache which training switched off."""
    return {key: True for key, value in places_of(config, "use_cache") if value is False}


def architecture_edits(config: Config) -> Edits:
    """Return the edit that removes FSDP's name from that of the model class."""
    names = config.get("architectures")
    if not isinstance(names, list) or not any(str(name).startswith("FSDP") for name in names):
        return {}
    return {"architectures": [str(name).removeprefix("FSDP") for name in names]}


def quantisation_edits(config: Config, *, plain: bool) -> Edits:
    """Return the edits that remove the quantisation of the base from a result that has none."""
    if not plain:
        return {}
    paths = [
        (*path, "quantization_config") for path, level in all_levels(config) if "quantization_config" in level
    ]
    return {".".join(path): None for path in paths}


def check_edits(config: Config, edits: Mapping[str, object]) -> list[Finding]:
    """Return one finding for every edited key, with the value before and after."""
    return [
        finding(
            "U501",
            subject=key,
            saw=_rendered(_value(config, key)),
            expected="no such key" if value is None else _rendered(value),
        )
        for key, value in edits.items()
    ]


def _value(config: object, key: str) -> object:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config


def _rendered(value: object) -> str:
    if value is None:
        return "no such key"
    if isinstance(value, Mapping):
        return f"{len(value)} settings"
    return str(value).lower() if isinstance(value, bool) else str(value)
