"""What every rank runs: training runs of the catalogue, one after the other."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from trainers.catalogue import base_folder
from trainers.models import write_base
from trainers.run import Run

Leave = Callable[[Run, Path, Path], None]


def leave_checkpoints(folder: Path, runs: Sequence[Run]) -> None:
    """Train and save runs below `folder`, each in a folder of its name."""
    warnings.simplefilter("ignore")  # what libraries say of themselves, of FSDP1 and of a CPU
    torch.set_num_threads(1)
    if dist.get_rank() == 0:
        for run in runs:
            (folder / run.name).mkdir()
            if run.based:
                write_base(run, base_folder(folder, run))
    dist.barrier()
    for run in runs:
        os.chdir(folder / run.name)  # llama-recipes saves below the working directory
        _trainer(run)(run, folder / run.name, base_folder(folder, run))
        dist.barrier()


def _trainer(run: Run) -> Leave:
    module, function = run.trainer.split(".")
    leave: Leave = getattr(importlib.import_module(f"trainers.{module}"), function)
    return leave
