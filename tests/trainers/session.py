"""What every rank runs: all training runs of the catalogue, one after the other."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from trainers.catalogue import RUNS, Run, base_folder
from trainers.tiny_llama import write_base

Leave = Callable[[Run, Path, Path], None]


def leave_checkpoints(folder: Path) -> None:
    """Train and save every run of the catalogue below `folder`."""
    warnings.simplefilter("ignore", FutureWarning)  # FSDP1 says of itself that it is old
    torch.set_num_threads(1)
    if dist.get_rank() == 0:
        for tied in (False, True):
            write_base(base_folder(folder, tied=tied), tied=tied)
        for run in RUNS:
            (folder / run.name).mkdir()
    dist.barrier()
    for run in RUNS:
        os.chdir(folder / run.name)  # llama-recipes saves below the working directory
        _trainer(run)(run, folder / run.name, base_folder(folder, tied=run.tied))
        dist.barrier()


def _trainer(run: Run) -> Leave:
    module, function = run.trainer.split(".")
    leave: Leave = getattr(importlib.import_module(f"trainers.{module}"), function)
    return leave
