"""The configuration of a model folder against its base's: what computes otherwise.

A setting that has another value than in the base, without training that made it so, gives a model that
loads, talks, and is wrong. One that only one side has counts as what the class assumes without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from unshard.base.configuration import Config, text_levels
from unshard.checks.evidence import Check, Evidence
from unshard.checks.words import named, quoted
from unshard.errors import printable
from unshard.findings import Finding, finding
from unshard.recipes.settings import COMPUTING, DERIVED, OTHER, SYNONYMS, default_of

Settings = Mapping[str, object]
_ROPE = "rope scaling "
_EOS = "eos_token_id"
_ABSENT = object()
_REMEDY = "Unless training changed it on purpose, write the value of the base into config.json."


@dataclass(frozen=True, slots=True)
class _Pair:
    """The settings of both sides by dotted keys, those of the language model by the key alone."""

    ours: Settings
    theirs: Settings
    is_nested: bool

    def is_unlike(self, key: str) -> bool:
        ours, theirs = _in_effect(self.ours, key), _in_effect(self.theirs, key)
        return not _is_same(key, ours, theirs)

    def is_known(self, key: str) -> bool:
        """Return whether both sides say it, or what it means where one does not."""
        return all(key in side or default_of(key, side)[0] for side in (self.ours, self.theirs))


def _check_settings(evidence: Evidence) -> Iterator[Finding]:
    """Yield settings of the folder's configuration that are not those of the base."""
    folder, base = evidence.folder, evidence.base
    config = None if folder is None else folder.json("config.json")
    if folder is None or base is None or config is None:
        return
    is_nested = len(text_levels(base.config)) > 1 or len(text_levels(config)) > 1
    pair = _Pair(_settings(config), _settings(base.config), is_nested)
    told = folder.json("generation_config.json") or {}
    unlike = [key for key in sorted({*pair.ours, *pair.theirs}) if pair.is_unlike(key)]
    serious = [key for key in unlike if _computes(key, pair, told)]
    for key in serious:
        yield finding(
            "U517",
            subject=quoted(printable(key)),
            saw=_shown(key, pair.ours),
            expected=f"{_shown(key, pair.theirs)}, as in {base.reference}",
            remedy=_REMEDY,
        )
    both = pair.ours.keys() & pair.theirs.keys()
    other = [key for key in unlike if key not in serious and (key in both or _is_computing(key))]
    if other:
        yield finding(
            "U518",
            subject=named(other),
            saw=", ".join(_shown(key, pair.ours) for key in other[:3]),
            expected=", ".join(_shown(key, pair.theirs) for key in other[:3]),
        )


def _is_computing(key: str) -> bool:
    return key.rpartition(".")[2] in COMPUTING or key.startswith(_ROPE) or key == _EOS


def _computes(key: str, pair: _Pair, told: Config) -> bool:
    """Return whether a setting that differs makes the model compute something else."""
    ours, theirs = pair.ours, pair.theirs
    if not _is_computing(key) or (key in DERIVED and not (key in ours and key in theirs)):
        return False
    if key == _EOS:  # an end that generation knows as well was changed on purpose
        return key in ours and key in theirs and not _ids(ours[key]) <= _ids(told.get(_EOS))
    if key.endswith("sliding_window") and _is_longer(ours.get(key), theirs.get(key)):
        return False
    if key in ("sliding_window", "max_window_layers") and ours.get("use_sliding_window") is False:
        return False
    if key == "layer_types" and _is_beginning(ours[key], theirs[key]):
        return False
    if key.startswith(_ROPE):
        return pair.is_known(key) or key not in ours or _ROPE + "type" not in theirs
    # Of a model of several parts, published configurations say only what is not the class's own.
    return pair.is_known(key) or not (pair.is_nested or "." in key)


def _is_longer(ours: object, theirs: object) -> bool:
    """Return whether more of a text is seen through a window; without one, all of it."""
    return theirs is not None and (
        ours is None or (isinstance(ours, int) and isinstance(theirs, int) and ours > theirs)
    )


def _is_beginning(ours: object, theirs: object) -> bool:
    """Return whether a list is the beginning of another, as where last layers were removed."""
    return isinstance(ours, list) and isinstance(theirs, list) and theirs[: len(ours)] == ours


def _ids(value: object) -> set[object]:
    return {number for number in (value if isinstance(value, list) else [value]) if type(number) is int}


def _settings(config: Config) -> dict[str, object]:
    """Return the settings of every level; what transformers 5 spells otherwise, as before."""
    found: dict[str, object] = {}
    text = {path for path, _ in text_levels(config)}
    levels: list[tuple[tuple[str, ...], Config]] = [((), config)]
    for path, level in levels:
        prefix = "" if path in text else "".join(f"{key}." for key in path)
        for key, value in level.items():
            if key in ("rope_scaling", "rope_parameters") and isinstance(value, Mapping) and not prefix:
                found |= _rope(value)
            elif key in OTHER or (key == _EOS and prefix):
                continue
            elif isinstance(value, Mapping):
                levels.append(((*path, key), value))
            elif (name := prefix + SYNONYMS.get(key, key)) not in found or value is not None:
                found[name] = value
    return found


def _rope(parameters: Mapping[str, object]) -> dict[str, object]:
    """Return the parameters of rotary embeddings under names that both spellings share."""
    found: dict[str, object] = {}
    for key, value in parameters.items():
        if isinstance(value, Mapping):  # one set for every kind of layer
            inner = _rope({k: v for k, v in value.items() if not isinstance(v, Mapping)})
            whole = key == "full_attention"
            found |= inner if whole else {_LOCAL.get(k, f"{k} of {key}"): v for k, v in inner.items()}
        elif key in ("rope_type", "type"):
            if value not in ("default", "mrope"):
                found[_ROPE + "type"] = "longrope" if value == "su" else value
        elif SYNONYMS.get(key, key) in COMPUTING:
            found[SYNONYMS.get(key, key)] = value
        else:
            found[_ROPE + key] = value
    return found


_LOCAL = {"rope_theta": "rope_local_base_freq"}


def _in_effect(settings: Settings, key: str) -> object:
    """Return the value that counts: what is said, else what the class assumes."""
    is_known, default = default_of(key, settings)
    value = settings.get(key, _ABSENT)
    return default if is_known and value in (_ABSENT, None) else None if value is _ABSENT else value


def _is_same(key: str, ours: object, theirs: object) -> bool:
    if key == _EOS:
        return _ids(ours) == _ids(theirs)
    numbers = (int, float)
    return ours == theirs and (isinstance(ours, numbers) or type(ours) is type(theirs))


def _shown(key: str, settings: Settings) -> str:
    value, (is_known, default) = settings.get(key, _ABSENT), default_of(key, settings)
    if value is not _ABSENT:
        return _text(value)
    return f"absent: means {_text(default)}" if is_known else "absent"


def _text(value: object) -> str:
    text = "not set" if value is None else str(value)
    text = printable(text.lower() if isinstance(value, bool) else text)
    return text if len(text) <= 60 else text[:57] + "..."


CHECKS: tuple[Check, ...] = (Check("against_base.settings", ("U517", "U518"), _check_settings),)
