"""Quantised weights: dequantised to plain ones, or kept whole; never half of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from unshard.base import Base
from unshard.base.configuration import Config, all_levels, read_config
from unshard.checkpoint import Checkpoint
from unshard.errors import BaseModelError, MatchError, UnsupportedLayoutError
from unshard.findings import Finding, finding
from unshard.match.dequantising import NotDequantisedError, Settings, dequantise
from unshard.match.quantised_groups import Group, Tensors, find_groups, halves
from unshard.match.restored import Choices, Restored
from unshard.recipes.leftovers import adapter_kind
from unshard.recipes.quantised import TORCHAO, is_of_activations, quantisation_kind
from unshard.sizes import counted
from unshard.tensors import DescribedTensor

_CONFIG = "config.json"
_KEY = "quantization_config"
_SHOWN = 3


def undo_quantisation(
    restored: Restored, checkpoint: Checkpoint, base: Base | None, choices: Choices
) -> Restored:
    """Return every quantised weight as a plain one, or all of them as they are.

    They stay as they are where that was asked for (`keep`), and where the base is quantised in the same
    way and no other dtype was asked for.

    Raises:
        MatchError: Parts of quantised weights are missing.
        UnsupportedLayoutError: They lie in a way that is not known, or cannot be kept.
    """
    groups = find_groups(restored.tensors)
    if not groups:
        return restored
    stays = _stays(groups, restored.tensors, base, choices)
    _require_whole(checkpoint.path.name, groups, restored.tensors, is_kept=stays)
    if stays:
        _require_keeping(checkpoint, groups, base)
        return restored
    made = _dequantised(checkpoint.path, groups, restored.tensors, _settings_of(checkpoint, base))
    return _replaced(restored, groups, made)


def settings_in(config: Config) -> Settings:
    """Return the `quantization_config` of a configuration, at whatever level; empty where there is none."""
    found = (level[_KEY] for _, level in all_levels(config) if isinstance(level.get(_KEY), Mapping))
    settings = next(found, {})
    assert isinstance(settings, Mapping)
    return settings


def _stays(groups: Mapping[str, Group], tensors: Tensors, base: Base | None, choices: Choices) -> bool:
    """Return whether the weights stay quantised; nothing is merged into those that do."""
    if choices.dtype != "base":
        return choices.dtype == "keep"
    if base is None or (choices.adapter != "keep" and any(map(adapter_kind, tensors))):
        return False
    if base.expected is None:
        return bool(settings_in(base.config))
    kinds = {quantisation_kind(name) for name in tensors} - {None}
    return not kinds.isdisjoint(map(quantisation_kind, base.expected))


def _require_whole(name: str, groups: Mapping[str, Group], tensors: Tensors, *, is_kept: bool) -> None:
    """Raise unless every part of every weight is there.

    Raises:
        MatchError: Some are missing; all of them are named.
    """
    found = [each for each in halves(groups, tensors) if not (is_kept and each.kind == "dtype")]
    if not found:
        return
    told = [
        f"{each.name} is missing ({each.saw}; expected {each.expected})"
        if each.kind == "missing"
        else f"`{each.name}` is {each.saw}, not {each.expected}: nothing tells whether the scale was applied"
        for each in found
    ]
    more = f"; and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
    raise MatchError(
        name,
        f"holds quantised weights of which {counted(len(found), 'part')} cannot be used: "
        + "; ".join(told[:_SHOWN])
        + more,
        mismatches=found,
        hint="Save the model again with its whole state dict, or take the quantised weights from the base.",
    )


def _require_keeping(checkpoint: Checkpoint, groups: Mapping[str, Group], base: Base | None) -> None:
    """Raise unless the result will tell engines how its weights are quantised.

    Raises:
        UnsupportedLayoutError: It would not.
    """
    kinds = _kinds(groups.values())
    if TORCHAO in kinds:
        raise UnsupportedLayoutError(
            checkpoint.path,
            "holds weights quantised by torchao, which are told by the header of their own file",
            saw=counted(len(groups), "weight"),
            hint="Dequantise them, with --dtype bfloat16, or copy the folder as it is.",
        )
    if base is not None and not settings_in(base.config):
        raise UnsupportedLayoutError(
            checkpoint.path,
            f"holds weights quantised as {' and '.join(kinds)}, and the base's config.json has no {_KEY}",
            saw=f"{counted(len(groups), 'quantised weight')}, and a plain base in {base.reference}",
            hint="Dequantise them (without --dtype keep), or name a base that is quantised in the same way.",
        )


def _settings_of(checkpoint: Checkpoint, base: Base | None) -> Settings:
    """Return how the checkpoint says that it is quantised, or its base."""
    own = checkpoint.side_files.get(_CONFIG)
    if own is not None:
        try:
            settings = settings_in(read_config(own)[1])
        except BaseModelError:
            settings = {}
        if settings:
            return settings
    return {} if base is None else settings_in(base.config)


def _dequantised(
    path: Path, groups: Mapping[str, Group], tensors: Tensors, settings: Settings
) -> dict[str, DescribedTensor]:
    """Return every weight by its name.

    Raises:
        UnsupportedLayoutError: Some lie in a way that is not known; the first of them are named.
    """
    made: dict[str, DescribedTensor] = {}
    problems: list[str] = []
    for weight, group in groups.items():
        if group.values is None:
            continue  # only scales of activations
        try:
            made[weight] = dequantise(group, tensors, settings)
        except NotDequantisedError as error:
            problems.append(f"{weight} ({group.kind}): {error}")
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise UnsupportedLayoutError(
            path,
            f"holds quantised weights that are not dequantised: {'; '.join(problems[:_SHOWN])}{more}",
            hint="Keep the model whole with --dtype keep and its own quantised base, "
            "or dequantise it first with the library that quantised it.",
        )
    return made


def _in_order(
    tensors: Tensors, groups: Mapping[str, Group], made: Mapping[str, DescribedTensor]
) -> Iterable[tuple[str, DescribedTensor]]:
    """Yield all tensors, with every weight in the place of its values, and without parts of any."""
    at = {group.values: weight for weight, group in groups.items() if weight in made}
    parts = {name for group in groups.values() for name in (*group.names, *group.parts.values())}
    for name, tensor in tensors.items():
        if name in at:
            yield at[name], made[at[name]]
        elif name not in parts:
            yield name, tensor


def _replaced(
    restored: Restored, groups: Mapping[str, Group], made: Mapping[str, DescribedTensor]
) -> Restored:
    """Return what was restored with the weights that were made."""
    tensors = dict(_in_order(restored.tensors, groups, made))
    origins = {
        name: tuple(origin for part in groups[name].names for origin in restored.origins[part])
        if name in made
        else restored.origins[name]
        for name in tensors
    }
    unused = [
        origin
        for group in groups.values()
        for role, name in group.parts.items()
        if is_of_activations(role)
        for origin in restored.origins[name]
    ]
    reason = "scales what flows through quantised weights, and these are plain now"
    return Restored(
        tensors,
        origins,
        {**restored.dropped, **dict.fromkeys(unused, reason)},
        restored.edits,
        (*restored.findings, *_told(groups, made)),
        {**restored.reasons, **{name: f"dequantised from {groups[name].kind}" for name in made}},
    )


def _told(groups: Mapping[str, Group], made: Mapping[str, DescribedTensor]) -> Iterable[Finding]:
    """Yield one finding for every kind of quantisation that was undone."""
    for kind in _kinds(groups.values()):
        weights = [name for name in made if groups[name].kind == kind]
        if weights:
            parts = sum(len(groups[name].names) for name in weights)
            dtypes = " and ".join(sorted({made[name].dtype.name for name in weights}))
            yield finding(
                "U410",
                subject=weights[0] + (f" and {len(weights) - 1} more" if len(weights) > 1 else ""),
                saw=f"{counted(len(weights), 'weight')} quantised as {kind}, in {counted(parts, 'tensor')}",
                expected=f"plain weights, computed in {dtypes} and rounded to the dtype of the result",
            )


def _kinds(groups: Iterable[Group]) -> Sequence[str]:
    return sorted({group.kind for group in groups})
