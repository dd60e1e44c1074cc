"""A healthy model folder of transformers, ways to break it, and what is compared afterwards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from tiny_models import logits_of

State = dict[str, torch.Tensor]


def copied(folder: Path, target: Path) -> Path:
    """Copy a folder, so that a test may break it."""
    shutil.copytree(folder, target)
    return target


def weights_of(folder: Path) -> State:
    """Return every tensor of a folder's safetensors files, by the reference reader."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def rename_weights(folder: Path, rename: Callable[[str], str]) -> None:
    """Give the tensors of a folder other names."""
    file = folder / "model.safetensors"
    state = {rename(name): tensor.clone() for name, tensor in load_file(file).items()}
    save_file(state, file, metadata={"format": "pt"})


def wrapped(name: str) -> str:
    """Return a name as FSDP and torch.compile leave it."""
    return f"_orig_mod._fsdp_wrapped_module.{name}".replace(
        ".self_attn", "._checkpoint_wrapped_module.self_attn"
    )


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_bytes()))


def set_config(folder: Path, **values: object) -> None:
    """Change keys of config.json; None removes one."""
    config = {**config_of(folder), **values}
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept, indent=2))


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    """Return whether two models have the same names, and every tensor the same bytes."""
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and _raw(a[n]) == _raw(b[n]) for n in a
    )


def _raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def assert_loads_as(healthy: Path, folder: Path) -> None:
    """Load both folders, and assert that nothing is missing or left over and the logits are equal."""
    tokens = torch.tensor([[1, 9, 17, 33, 64, 2]])
    found = []
    for path in (healthy, folder):
        (name,) = config_of(path)["architectures"]
        model, info = getattr(transformers, name).from_pretrained(path, output_loading_info=True)
        assert not info["missing_keys"], path
        assert not info["unexpected_keys"], path
        found.append(logits_of(model.eval(), tokens))
    assert torch.equal(*found)


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, hidden ones included."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def split(folder: Path, size: str = "100KB") -> None:
    """Save the weights of a folder again in several files, with an index."""
    (name,) = config_of(folder)["architectures"]
    model = getattr(transformers, name).from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size=size)


def set_index(folder: Path, weight_map: Mapping[str, str]) -> None:
    index = {"metadata": {"total_size": 1}, "weight_map": dict(weight_map)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def index_of(folder: Path) -> dict[str, str]:
    return dict(json.loads((folder / "model.safetensors.index.json").read_bytes())["weight_map"])
