"""config.json and generation_config.json of a model in training: right for inference, and portable.

A configuration that transformers writes anew lacks keys, or spells them in ways, that other engines need.
So the base's own text is kept, and what training changed in memory is edited into it. What training
changes for itself (the cache switched off, the dtype it loads) is not the model's.

Source:
    transformers 5.23, configuration_utils.py (`PreTrainedConfig.to_json_string`, `from_dict`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.nn import Module

from unshard.base.configuration import Config, read_config
from unshard.errors import BaseModelError
from unshard.findings import Finding, finding
from unshard.match.config_edits import spelling_edits
from unshard.writers.json_editing import edit_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# What training sets for itself, or what is decided from the tensors.
_NOT_OF_THE_MODEL = frozenset(
    (
        "_name_or_path",
        "_commit_hash",
        "_attn_implementation",
        "_attn_implementation_internal",
        "_experts_implementation",
        "attn_implementation",
        "transformers_version",
        "architectures",
        "auto_map",
        "dtype",
        "torch_dtype",
        "use_cache",
        "gradient_checkpointing",
        "quantization_config",
    )
)
_ROPE = "rope_parameters"
_OLDER_ROPE = (
    "rope_theta",
    "rope_scaling",
    "partial_rotary_factor",
    "rope_local_base_freq",
    "rotary_emb_base",
    "rotary_pct",
)
# Kept where everything is that transformers gives every configuration by default.
_ALWAYS = frozenset(("architectures", "model_type", "dtype", "tie_word_embeddings", "transformers_version"))


@dataclass(frozen=True, slots=True)
class ConfigurationFile:
    """A config.json.

    Attributes:
        content: Its text.
        findings: What a person should know of how it came about.
    """

    content: bytes
    findings: tuple[Finding, ...] = ()


def given_configuration(given: Mapping[str, object] | str | Path, architecture: str) -> ConfigurationFile:
    """Return the configuration that was given as data or as a file; that of a file byte for byte.

    Raises:
        BaseModelError: It cannot be read.
    """
    if not isinstance(given, Mapping):
        path = Path(given)
        return ConfigurationFile(read_config(path / "config.json" if path.is_dir() else path)[0])
    return ConfigurationFile(_text({"architectures": [architecture], **given}))


def configuration_file(
    config: PreTrainedConfig, folder: Path | None, *, architecture: str | None
) -> ConfigurationFile:
    """Return config.json for a configuration in memory.

    Args:
        config: The configuration.
        folder: The model that training started from, or None where it is not at hand.
        architecture: The class of the model, or None where the configuration tells it.

    Raises:
        BaseModelError: The base's own configuration is damaged.
    """
    if folder is not None:
        edited = _edited(config, folder, architecture)
        if edited is not None:
            return edited
    content = _text(_anew(config, architecture))
    told = finding(
        "U151",
        subject="config.json",
        saw="written anew" if folder is None else f"written anew: that of {folder.name} is another model's",
        expected="the text of the base's own, with what training changed",
        remedy="Name the model that training started from with base=, if it is at hand.",
    )
    return ConfigurationFile(content, (told,))


def _edited(config: PreTrainedConfig, folder: Path, architecture: str | None) -> ConfigurationFile | None:
    """Return the base's text with what training changed, or None where that makes another model of it."""
    content, raw = read_config(folder / "config.json")
    live, before = as_loaded(config), _loaded(config, raw)
    if before is None or raw.get("model_type", live.get("model_type")) != live.get("model_type"):
        return None
    edits = dict(_edits(live, before, raw, ()))
    if architecture is not None and raw.get("architectures") != [architecture]:
        edits["architectures"] = [architecture]
    try:
        edited = edit_json(content, edits)
    except ValueError:
        return None
    after = _loaded(config, json.loads(edited))
    if after is None or _of_the_model(after) != _of_the_model(live):
        return None
    return ConfigurationFile(edited, tuple(_told(edits, raw)))


def _told(edits: Mapping[str, object], raw: Config) -> Iterator[Finding]:
    """Yield what was edited."""
    if edits:
        shown = ", ".join(f"{key}: {_short(value)}" for key, value in list(edits.items())[:4])
        more = f" and {len(edits) - 4} more" if len(edits) > 4 else ""
        yield finding("U150", subject="config.json", saw=shown + more)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def as_loaded(config: PreTrainedConfig) -> dict[str, Any]:
    """Return everything that a configuration says, as JSON has it."""
    data: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return data


def _loaded(config: PreTrainedConfig, raw: Config) -> dict[str, Any] | None:
    """Return everything that a text says to the class of a configuration, or None where it says nothing."""
    kind: Any = type(config)
    try:
        return as_loaded(kind.from_dict(json.loads(json.dumps(raw))))
    except Exception:  # noqa: BLE001 a class of another model fails in any way it likes
        return None


def _of_the_model(config: Config) -> dict[str, Any]:
    return {
        key: _of_the_model(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in _NOT_OF_THE_MODEL
    }


def _edits(live: Config, before: Config, raw: Config, path: tuple[str, ...]) -> Iterator[tuple[str, object]]:
    """Yield what has to be edited of a text so that it says what the configuration in memory says."""
    for key in dict.fromkeys((*live, *before)):
        value = live.get(key)
        if key in _NOT_OF_THE_MODEL or value == before.get(key):
            continue
        inner = raw.get(key)
        if key == _ROPE and isinstance(value, Mapping):
            yield from _rope_edits(value, raw, path)
        elif isinstance(value, Mapping) and isinstance(inner, Mapping) and "model_type" in value:
            known = before.get(key)
            yield from _edits(value, known if isinstance(known, Mapping) else {}, inner, (*path, key))
        else:
            yield ".".join((*path, key)), value


def _rope_edits(rope: Mapping[str, Any], raw: Config, path: tuple[str, ...]) -> Iterator[tuple[str, object]]:
    """Yield the settings of rotary embeddings in the spellings that the text has."""
    bare = {key: value for key, value in raw.items() if key not in (*_OLDER_ROPE, _ROPE)}
    older = {key: value for key, value in spelling_edits({**bare, _ROPE: rope}).items() if "." not in key}
    if _ROPE in raw:
        yield ".".join((*path, _ROPE)), rope
    for key in _OLDER_ROPE:
        if key in raw or (key in older and _ROPE not in raw):
            yield ".".join((*path, key)), older.get(key)


def _anew(config: PreTrainedConfig, architecture: str | None) -> dict[str, Any]:
    """Return a whole configuration without what transformers gives every one of them."""
    from transformers import PreTrainedConfig

    general = as_loaded(PreTrainedConfig())
    data = {
        key: value
        for key, value in as_loaded(config).items()
        if key in _ALWAYS or not (key.startswith("_") or (key in general and general[key] == value))
    }
    data.pop("quantization_config", None)
    if architecture is not None:
        data["architectures"] = [architecture]
    return data


def _text(config: Config) -> bytes:
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def generation_file(bare: Module, folder: Path | None) -> bytes | None:
    """Return generation_config.json: the base's own where it says the same, or None where there is none."""
    settings: Any = getattr(bare, "generation_config", None)
    if settings is None or not hasattr(settings, "to_json_string"):
        return None
    live = json.loads(settings.to_json_string(use_diff=True))
    own = None if folder is None else folder / "generation_config.json"
    if own is not None and own.is_file():
        try:
            content, raw = read_config(own)
            if _generation(json.loads(type(settings)(**raw).to_json_string(use_diff=True))) == _generation(
                live
            ):
                return content
        except (BaseModelError, TypeError, ValueError):
            pass
    return _text(live | ({"use_cache": True} if live.get("use_cache") is False else {}))


def _generation(settings: Config) -> dict[str, Any]:
    """Return what settings say of generation, and not of the training or the program."""
    left = ("transformers_version", "_from_model_config", "use_cache")
    return {key: value for key, value in settings.items() if key not in left}
