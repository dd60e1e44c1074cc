"""Steps of a run as small model folders in two files, so that one of them can be missing."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def write_step(folder: Path, value: float) -> Path:
    """Write a model of two tensors in two files."""
    folder.mkdir(parents=True)
    for name, part in zip(("a", "b"), PARTS, strict=True):
        save_file({name: torch.full((2,), value)}, folder / part)
    index = {"metadata": {}, "weight_map": dict(zip(("a", "b"), PARTS, strict=True))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
