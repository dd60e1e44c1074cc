"""The tiny models that are trained, by the run's words for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trainers import tiny_llama, tiny_moe
from trainers.awkward import Awkward
from trainers.catalogue import truth_file
from trainers.run import Run


def model_of(run: Run, folder: Path, epoch: int = 0) -> Any:
    """Return the model as it is before anything wraps it; the truth about it is written on rank 0."""
    dtype = getattr(torch, run.dtype)
    if run.model == "awkward":
        torch.manual_seed(epoch)
        model: Any = Awkward()
    elif run.model == "llama":
        model = tiny_llama.tiny_llama(epoch, tied=run.tied, dtype=dtype)
    else:
        model = tiny_moe.tiny_moe(run.model, epoch, dtype=dtype)
    tiny_llama.write_truth(model, truth_file(folder, epoch))
    return model


def write_base(run: Run, folder: Path) -> None:
    """Write the model folder that a run starts from, unless another run has."""
    if folder.exists():
        return
    if run.model == "llama":
        tiny_llama.write_base(folder, tied=run.tied)
    else:
        tiny_moe.write_base(run.model, folder)
