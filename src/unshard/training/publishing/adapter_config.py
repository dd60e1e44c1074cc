"""The adapter of a PEFT model in training: which one is meant, and what PEFT would write of it.

Tensors do not tell an adapter's scale. A model in training has it in `peft_config`, which is written as
PEFT writes it, so that the code which reads an adapter's checkpoint reads a live one.

Source:
    peft src/peft/peft_model.py (`save_pretrained`), src/peft/tuners/tuners_utils.py (`BaseTunerLayer`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.nn import Module

from unshard.checkpoint import Checkpoint
from unshard.errors import UnsupportedLayoutError, listed
from unshard.findings import Finding, finding
from unshard.match.adapter_settings import settings_from_config
from unshard.recipes.adapters import CONFIG, holds_adapter, parse_adapter_name, without_prefix
from unshard.tensors import DescribedTensor
from unshard.training.live.model import LiveModel
from unshard.training.live.module_tree import full_class_name, model_without_adapters

if TYPE_CHECKING:
    from peft import PeftConfig


@dataclass(frozen=True, slots=True)
class Adapted:
    """A live model with what is known of its adapter.

    Attributes:
        checkpoint: Its tensors, without those of adapters that are not the active one, and with every name
            of tied parameters; the adapter's configuration is a file beside it.
        findings: What a person should know.
    """

    checkpoint: Checkpoint
    findings: tuple[Finding, ...] = ()


def with_adapter_config(model: Module, live: LiveModel, folder: Path) -> Adapted:
    """Return the tensors of a live model, ready to be matched whether it has an adapter or not.

    Args:
        model: The model, wrapped or not.
        live: The same, described.
        folder: Where adapter_config.json is written; every rank has a folder of its own.

    Raises:
        UnsupportedLayoutError: Several adapters are active, one is merged already, or one has a scale that
            its configuration does not tell.
    """
    checkpoint = live.checkpoint
    configs = _configs_of(model)
    if not holds_adapter(without_prefix(name) for name in checkpoint.tensors):
        return Adapted(checkpoint)
    tensors = _with_ties(live)
    if configs is None:
        return Adapted(replace(checkpoint, tensors=tensors))
    active = _active(model, configs)
    path = _written(configs[active], model, folder)
    _require_scales(model, active, path)
    mine = {name: tensor for name, tensor in tensors.items() if _adapter_of(name) in (None, active)}
    told: tuple[Finding, ...] = ()
    if others := [name for name in configs if name != active]:
        saw = f"is active and is taken; left out: {listed([f'`{name}`' for name in others])}"
        remedy = f'To save another one: model.set_adapter("{others[0]}"), then save again elsewhere.'
        told = (finding("U153", subject=f"`{active}`", saw=saw, remedy=remedy),)
    beside = {**checkpoint.side_files, CONFIG: path}
    return Adapted(replace(checkpoint, tensors=mine, side_files=beside), told)


def _configs_of(model: Module) -> Mapping[str, Any] | None:
    """Return the configurations of a model's adapters, by their names; None where PEFT put none there."""
    found = (getattr(module, "peft_config", None) for module in model.modules())
    return next((each for each in found if isinstance(each, Mapping) and each), None)


def _with_ties(live: LiveModel) -> dict[str, DescribedTensor]:
    """Return the tensors under every name that they have: an adapter may change one of two tied ones."""
    tensors = dict(live.checkpoint.tensors)
    return tensors | {name: tensors[kept] for name, kept in live.ties.items() if kept in tensors}


def _adapter_of(name: str) -> str | None:
    parsed = parse_adapter_name(without_prefix(name))
    return None if parsed is None else parsed.adapter


def _layers(model: Module) -> Iterator[tuple[str, Any]]:
    """Yield the layers of PEFT that hold factors, with their names."""
    for name, module in model.named_modules():
        if isinstance(getattr(module, "scaling", None), dict) and hasattr(module, "merged_adapters"):
            yield without_prefix(name), module


def _active(model: Module, configs: Mapping[str, Any]) -> str:
    """Return the name of the adapter that computes.

    Raises:
        UnsupportedLayoutError: There are several, or one is merged already.
    """
    merged = [(name, layer) for name, layer in _layers(model) if layer.merged_adapters]
    if merged:
        name, layer = merged[0]
        raise UnsupportedLayoutError(
            "the model in training",
            "has adapters that are merged into its weights at the moment",
            saw=f"{len(merged)} layers, `{name}` first, with {listed(layer.merged_adapters)}",
            expected="weights as they are trained",
            hint="Take them out before saving: model.unmerge_adapter()",
        )
    names = {name for _, layer in _layers(model) for name in _names(layer.active_adapters)}
    active = [name for name in configs if name in names] or list(configs)[:1]
    if len(active) > 1:
        raise UnsupportedLayoutError(
            "the model in training",
            f"computes with {len(active)} adapters at a time",
            saw=listed([f"`{name}`" for name in active]),
            expected="one",
            hint=f'Save them one by one: model.set_adapter("{active[0]}"), then save.',
        )
    return str(active[0])


def _names(active: object) -> list[str]:
    return [active] if isinstance(active, str) else [str(name) for name in active or ()]  # type: ignore[attr-defined]


def _written(config: PeftConfig, model: Module, folder: Path) -> Path:
    """Write the configuration of an adapter as PEFT does, and return where it lies."""
    bare = model_without_adapters(model)
    ours: Any = copy.copy(config)
    ours.inference_mode = True
    if ours.base_model_name_or_path is None:
        ours.base_model_name_or_path = bare.__dict__.get("name_or_path") or None
    mapping = None
    if ours.task_type is None:
        library, _, name = full_class_name(bare).rpartition(".")
        mapping = {"base_model_class": name, "parent_library": library}
    ours.save_pretrained(str(folder), auto_mapping_dict=mapping)
    return folder / CONFIG


def _require_scales(model: Module, active: str, path: Path) -> None:
    """Raise unless every layer computes with the scale that the configuration tells.

    Raises:
        UnsupportedLayoutError: Some were given another one; they are counted.
    """
    settings = settings_from_config(path)
    wrong = []
    for name, layer in _layers(model):
        if active in layer.scaling and active in layer.r:
            told = settings.scale_of(name, layer.r[active])
            if told is not None and told.value != layer.scaling[active]:
                wrong.append((name, layer.scaling[active], told))
    if wrong:
        name, saw, told = wrong[0]
        raise UnsupportedLayoutError(
            "the model in training",
            "computes with a scale that the configuration of its adapter does not tell",
            saw=f"{saw:g} in `{name}`" + (f", and {len(wrong) - 1} more layers" if len(wrong) > 1 else ""),
            expected=f"{told.value:g} ({told.told})",
            hint="Set it back with unscale_layer(), or write it into the configuration as alpha_pattern.",
        )
