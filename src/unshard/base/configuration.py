"""config.json: read strictly, and asked about what stands at different places in different families."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unshard.errors import BaseModelError, InputError
from unshard.recipes.ties import tied_by_default
from unshard.storage.files import InputFile

Config = Mapping[str, object]

TIE_FLAG = "tie_word_embeddings"

_LARGEST_BYTES = 64 << 20

# A model of several parts keeps the language model's keys below one of these.
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "thinker_config", "decoder")

# One meaning, and the keys that families give it.
_SYNONYMS: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim", "model_dim"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "num_key_value_heads": ("num_key_value_heads", "num_kv_heads", "multi_query_group_num"),
    "intermediate_size": ("intermediate_size", "n_inner", "d_ff", "ffn_dim", "moe_intermediate_size"),
    "vocab_size": ("vocab_size", "padded_vocab_size"),
    "num_experts": ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    "dtype": ("dtype", "torch_dtype"),
    "rope_theta": ("rope_theta", "rotary_emb_base"),
    "partial_rotary_factor": ("partial_rotary_factor", "rotary_pct", "rope_pct"),
}


def read_config(path: Path) -> tuple[bytes, dict[str, object]]:
    """Return a configuration, byte for byte and parsed.

    Raises:
        BaseModelError: It cannot be read, is not a JSON object, or has a key twice.
    """
    try:
        file = InputFile.describe(path)
        if file.size > _LARGEST_BYTES:
            raise BaseModelError(path, "is too large for a configuration", saw=f"{file.size} bytes")
        content = file.read(0, file.size)
    except InputError as error:
        saw = error.problem + ("" if error.saw is None else f": {error.saw}")
        raise BaseModelError(path, "cannot be read", saw=saw) from error
    return content, parse_config(content, path)


def parse_config(content: bytes, path: Path) -> dict[str, object]:
    """Return the configuration that a text is; `path` is what messages call it.

    Raises:
        BaseModelError: It is not a JSON object, or has a key twice.
    """
    try:
        parsed = json.loads(content.decode("utf-8"), object_pairs_hook=_without_repeats)
    except (UnicodeDecodeError, RecursionError) as error:
        raise BaseModelError(path, "cannot be read", saw=str(error) or type(error).__name__) from error
    except ValueError as error:
        raise BaseModelError(
            path,
            "is not valid JSON",
            saw=str(error),
            hint="Copy the file again from the model it belongs to.",
        ) from error
    if not isinstance(parsed, dict):
        raise BaseModelError(
            path, "is not a configuration", saw=type(parsed).__name__, expected="a JSON object"
        )
    _require_meaning(path, parsed)
    return parsed


# What every engine takes for a number of things, and what it takes for names.
_COUNTS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def _require_meaning(path: Path, config: Config) -> None:
    """Raise unless the keys that decide what model this is have values of the right kind.

    Raises:
        BaseModelError: They have not; all of them are named.
    """
    wrong = []
    for place, level in text_levels(config):
        expected: dict[str, tuple[bool, str]] = {}
        for key in _COUNTS:
            value = level.get(key)
            expected[key] = (value is None or (type(value) is int and value > 0), "a positive number")
        names = level.get("architectures")
        expected["model_type"] = (isinstance(level.get("model_type"), str | None), "a name")
        expected["architectures"] = (
            names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names)),
            "a list of names",
        )
        wrong += [
            f"`{'.'.join((*place, key))}` is {level[key]!r}, not {kind}"
            for key, (right, kind) in expected.items()
            if not right
        ]
    if wrong:
        raise BaseModelError(
            path,
            "has values that mean nothing",
            saw="; ".join(wrong),
            hint="Copy the file again from the model that training started from.",
        )


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dict; programs disagree about which of two equal keys counts."""
    plain = dict(pairs)
    if len(plain) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} stands twice")
    return plain


def text_levels(config: Config) -> list[tuple[tuple[str, ...], Config]]:
    """Return (path, mapping) of every level that may describe the language model, the top first."""
    levels: list[tuple[tuple[str, ...], Config]] = [((), config)]
    for path, level in levels:
        for key in _TEXT_CONFIGS:
            inner = level.get(key)
            if isinstance(inner, Mapping):
                levels.append(((*path, key), inner))
    return levels


def lookup(config: Config, meaning: str) -> object:
    """Return what the configuration says of the language model, or None: the deepest level counts."""
    for _, level in reversed(text_levels(config)):
        for key in _SYNONYMS.get(meaning, (meaning,)):
            if level.get(key) is not None:
                return level[key]
    return None


def lookup_int(config: Config, meaning: str) -> int | None:
    """Return a whole number that the configuration gives, or None."""
    value = lookup(config, meaning)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def places_of(config: Config, meaning: str) -> Iterator[tuple[str, object]]:
    """Yield (dotted key, value) of every level of the language model that has the key."""
    for path, level in text_levels(config):
        for key in _SYNONYMS.get(meaning, (meaning,)):
            if key in level:
                yield ".".join((*path, key)), level[key]


def tie_flag(config: Config) -> bool | None:
    """Return whether embedding and output head are one weight, as said or by default; None if unknown.

    What is said at the top counts, then what is said of the language model.
    """
    levels = text_levels(config)
    said = (level[TIE_FLAG] for _, level in levels if isinstance(level.get(TIE_FLAG), bool))
    defaults = (tied_by_default(level.get("model_type")) for _, level in levels)
    return next((flag for flag in (*said, *defaults) if isinstance(flag, bool)), None)


def all_levels(config: Config, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Config]]:
    """Yield (path, mapping) of every mapping inside the configuration, itself first."""
    yield path, config
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from all_levels(value, (*path, key))
