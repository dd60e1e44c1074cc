"""Tiny models with adapters of real PEFT: their state dicts, their folders, and what PEFT merges them to."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file

from tiny_models import tiny_model, write_folder
from unshard.base import find_base
from unshard.match import Choices, Model, answer_questions, match_model, outline_of, questions_for
from unshard.readers import open_checkpoint
from unshard.tensors import Tensor, element_count

SETTINGS: dict[str, Any] = {"r": 4, "lora_alpha": 8}


@dataclass(frozen=True)
class Scene:
    """What a run of PEFT leaves, in folders.

    Attributes:
        base: The model it started from.
        full: The state dict of the whole PEFT model, and adapter_config.json beside it.
        adapter: What PEFT publishes.
        merged: What PEFT merges it to, by the names of published files.
    """

    base: Path
    full: Path
    adapter: Path
    merged: Mapping[str, torch.Tensor]


def write_scene(
    folder: Path, family: str, *, dtype: torch.dtype = torch.float32, adapters: int = 1, **settings: Any
) -> Scene:
    """Put an adapter with random values onto a tiny model, and write what training would leave."""
    model = tiny_model(family, dtype)
    base = write_folder(model, folder / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(**{**SETTINGS, **settings})
        wrapped = peft.get_peft_model(model, config)
        for number in range(1, adapters):
            wrapped.add_adapter(f"other{number}", peft.LoraConfig(**{**SETTINGS, **settings}))
        make_random(wrapped)
        adapter = folder / "adapter"
        wrapped.save_pretrained(adapter, selected_adapters=["default"])
        full = folder / "full"
        full.mkdir()
        torch.save(wrapped.state_dict(), full / "model.pt")
        shutil.copy(adapter / "adapter_config.json", full)
        wrapped.merge_and_unload(adapter_names=["default"]).save_pretrained(folder / "merged")
    return Scene(base, full, adapter, load_file(folder / "merged" / "model.safetensors"))


def make_random(model: Any) -> None:
    """Give everything that an adapter trains values that are not those it began with."""
    torch.manual_seed(11)
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data.mul_(torch.rand_like(parameter) + 0.5)
        elif any(word in name for word in ("lora_", "modules_to_save", "trainable_tokens")):
            parameter.data.copy_(torch.randn_like(parameter) * 0.1)


def matched_in(path: Path, base: Path | None, *, alpha: float | None = None, dtype: str = "base") -> Model:
    """Return what a conversion makes of a path beside a base."""
    checkpoint = open_checkpoint(path)
    reference = None if base is None else str(base)
    found, _ = find_base(checkpoint, reference=reference, download=False, model_class=False)
    outline = outline_of(checkpoint, found, Choices(dtype=dtype, lora_alpha=alpha))
    return match_model(outline, dtype=dtype, answers=answer_questions(questions_for(outline)))


def values_of(tensor: Tensor) -> torch.Tensor:
    """Return all elements of a described tensor."""
    raw = bytearray(element_count(tensor) * tensor.dtype.itemsize)
    tensor.read(0, element_count(tensor), memoryview(raw))
    dtype: torch.dtype = getattr(torch, tensor.dtype.name)
    return torch.frombuffer(raw, dtype=dtype).reshape(tensor.shape)


def furthest(ours: Mapping[str, Tensor], theirs: Mapping[str, torch.Tensor]) -> float:
    """Return the largest difference of two models, in units of the largest of the weights."""
    assert ours.keys() == theirs.keys()
    worst = 0.0
    for name, tensor in ours.items():
        mine, other = values_of(tensor).double(), theirs[name].double()
        assert mine.shape == other.shape, name
        worst = max(worst, ((mine - other).abs().max() / other.abs().max()).item())
    return worst


SceneMaker = Callable[..., Scene]
