"""Runs of scripts that call torch.save themselves."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from trainers.models import model_of
from trainers.run import Run
from trainers.tiny_llama import train_one_step


def leave_ddp(run: Run, folder: Path, base: Path) -> None:
    """Leave the state dict of a DDP module, asked for through the wrapper."""
    model = DistributedDataParallel(model_of(run, folder))
    train_one_step(model)
    if dist.get_rank() == 0:
        torch.save(model.state_dict(), folder / run.path)


def leave_state_dict(run: Run, folder: Path, base: Path) -> None:
    """Leave a state dict whose tied pair is one storage."""
    model = model_of(run, folder)
    if dist.get_rank() == 0:
        torch.save(model.state_dict(), folder / run.path)


def leave_legacy(run: Run, folder: Path, base: Path) -> None:
    """Leave a state dict in the format that torch wrote before its zip files."""
    model = model_of(run, folder)
    if dist.get_rank() == 0:
        torch.save(model.state_dict(), folder / run.path, _use_new_zipfile_serialization=False)


def leave_container_model(run: Run, folder: Path, base: Path) -> None:
    """Leave a model and what is needed to resume in one file."""
    model = model_of(run, folder)
    optimizer = train_one_step(model)
    held = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 3}
    if dist.get_rank() == 0:
        torch.save(held, folder / run.path)


def leave_container_state_dict(run: Run, folder: Path, base: Path) -> None:
    """Leave what a Trainer's .ckpt holds: names below the attribute that held the model."""
    model = model_of(run, folder)
    optimizer = train_one_step(model)
    held = {
        "epoch": 1,
        "global_step": 7,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        "loops": {"fit_loop": {"epoch_progress": {"total": {"ready": 2}}}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
    }
    if dist.get_rank() == 0:
        torch.save(held, folder / run.path)


def leave_container_module(run: Run, folder: Path, base: Path) -> None:
    """Leave a model under the key that DeepSpeed gives it when nothing is partitioned."""
    model = model_of(run, folder)
    held = {"module": model.state_dict(), "epoch": 2, "dtype": torch.float32, "lr_scheduler": None}
    if dist.get_rank() == 0:
        torch.save(held, folder / run.path)
