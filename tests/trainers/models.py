"""The tiny models that are trained, by the run's words for them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trainers import tiny_llama, tiny_moe
from trainers.awkward import Awkward
from trainers.catalogue import truth_file
from trainers.run import Run


def model_of(run: Run, folder: Path, epoch: int = 0) -> Any:
    """Return the model as it is before anything wraps it; the truth about it is written, on rank 0."""
    dtype = getattr(torch, run.dtype)
    if run.model == "awkward":
        torch.manual_seed(epoch)
        model: Any = Awkward()
    elif run.model == "llama":
        model = tiny_llama.tiny_llama(epoch, tied=run.tied, dtype=dtype)
    else:
        model = tiny_moe.tiny_moe(run.model, epoch, dtype=dtype)
    truth = truth_file(folder, epoch)
    tiny_llama.write_truth(model, truth)
    if run.based and dist.get_rank() == 0:
        _publish(model, truth.with_suffix(".published.safetensors"))
    return model


def _publish(model: Any, file: Path) -> None:
    """Write what `save_pretrained` of the whole model writes."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        model.save_pretrained(folder)
        Path(folder, "model.safetensors").rename(file)


def write_base(run: Run, folder: Path) -> None:
    """Write the model folder that a run starts from, unless another run has."""
    if folder.exists():
        return
    if run.model == "llama":
        tiny_llama.write_base(folder, tied=run.tied)
    else:
        tiny_moe.write_base(run.model, folder)
