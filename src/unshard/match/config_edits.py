"""What the tensors prove wrong in the base's config.json, and nothing else of it."""

from __future__ import annotations

from collections.abc import Mapping

from unshard.base.configuration import TIE_FLAG, Config, all_levels, places_of, text_levels
from unshard.dtypes import DTYPES, DType
from unshard.findings import Finding, finding

Edits = dict[str, object]

# The first version of transformers that writes `dtype` where those before wrote `torch_dtype`.
_DTYPE_SINCE = (4, 56)
# What a family called the base of its rotary embeddings, and the share of a head that is rotated.
_ROPE_KEYS = {"gpt_neox": ("rotary_emb_base", "rotary_pct")}
_COUNTED_EXPERTS = frozenset(("qwen2_moe", "qwen3_moe", "qwen3_next", "olmoe"))


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


def spelling_edits(config: Config) -> Edits:
    """Return the edits that add the older spelling of what only transformers 5 reads as it is spelt.

    Both stand side by side then: transformers 5 takes its own, every other engine the older one.

    Source:
        transformers 5.23, modeling_rope_utils.py (`convert_rope_params_to_dict`) and the configuration
        classes of gemma3 and gpt_neox; transformers 4.57, the same classes.
    """
    edits: Edits = {}
    for path, level in text_levels(config):
        added = {**_older_rope(level), **_older_experts(level)}
        edits |= {".".join((*path, key)): value for key, value in added.items() if key not in level}
    return edits


def _older_rope(level: Config) -> Edits:
    """Return the keys that stood in the place of `rope_parameters`."""
    rope = level.get("rope_parameters")
    if not isinstance(rope, Mapping) or not rope:
        return {}
    if isinstance(full := rope.get("full_attention"), Mapping):  # one set for every kind of layer
        local = rope.get("sliding_attention")
        edits: Edits = {**_older_rope({**level, "rope_parameters": full})}
        edits.pop("rope_scaling", None)  # one setting cannot speak of both kinds
        return edits | (
            {"rope_local_base_freq": local.get("rope_theta")} if isinstance(local, Mapping) else {}
        )
    theta, partial = _ROPE_KEYS.get(str(level.get("model_type")), ("rope_theta", "partial_rotary_factor"))
    apart = {theta: rope.get("rope_theta"), partial: rope.get("partial_rotary_factor")}
    edits = {key: value for key, value in apart.items() if value is not None}
    if rope.get("rope_type", "default") != "default" or "mrope_section" in rope:
        inner = {k: v for k, v in rope.items() if k not in ("rope_theta", "partial_rotary_factor")}
        edits["rope_scaling"] = {**inner, "type": inner.get("type", inner.get("rope_type"))}
    return edits


def _older_experts(level: Config) -> Edits:
    """Return the key that counts experts in the published configurations of Qwen and OLMoE."""
    count = level.get("num_local_experts")
    return {"num_experts": count} if level.get("model_type") in _COUNTED_EXPERTS and count is not None else {}


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
