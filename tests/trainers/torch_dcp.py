"""Runs saved by torch.distributed.checkpoint, in the folders of those who call it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter, HuggingFaceStorageWriter
from torch.distributed.checkpoint._extension import ZStandard
from torch.distributed.checkpoint.stateful import Stateful

from trainers.models import model_of
from trainers.run import Run
from trainers.sharded_states import States, step_once, trained_states
from trainers.wrapping import wrapped


@dataclass(frozen=True, slots=True)
class _Object(Stateful):  # type: ignore[misc]  # torch's types are not read
    """An object that DCP asks for its state."""

    state: dict[str, Any]

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        raise NotImplementedError


def _progress(step: int) -> dict[str, Any]:
    """Return what trainers keep beside a model: DCP holds some of it as pickles, some as tensors."""
    return {
        "train_state": _Object({"step": torch.tensor(step), "log_steps": [1, step], "losses": [1.5, 0.25]}),
        "lr_scheduler": _Object({"last_epoch": step, "_last_lr": [0.0]}),
        "dataloader": _Object({f"dp_rank_{dist.get_rank()}": b"\x80\x04.", "world_size": 2}),
    }


def _model_and_optimizer(states: States) -> dict[str, Any]:
    return {"model": states.model, "optim": states.optimizer}


def leave(run: Run, folder: Path, base: Path) -> None:
    """Leave the model and its optimizer below keys of their own."""
    dcp.save(_model_and_optimizer(trained_states(run, folder)), checkpoint_id=folder / run.path)


def leave_model_alone(run: Run, folder: Path, base: Path) -> None:
    """Leave nothing but the model, its names at the top."""
    dcp.save(trained_states(run, folder).model, checkpoint_id=folder / run.path)


def leave_torchtitan(run: Run, folder: Path, base: Path) -> None:
    """Leave steps as torchtitan does: the model's names at the top, everything else below a key.

    Source: torchtitan/components/checkpoint.py, ModelWrapper and CheckpointManager.
    """
    for epoch in range(run.epochs):
        states, step = trained_states(run, folder, epoch), 10 * (epoch + 1)
        held = {**states.model, "optimizer": _Object(states.optimizer), **_progress(step)}
        dcp.save(held, checkpoint_id=folder / run.path / f"step-{step}")


def leave_prime_rl(run: Run, folder: Path, base: Path) -> None:
    """Leave a step as prime-rl does: everything in one object called `app`."""
    states = trained_states(run, folder)
    app = _Object({"model": states.model, "optimizers": states.optimizer, "progress": {"step": 7}})
    step = folder / run.path / "step_7"
    dcp.save({"app": app}, checkpoint_id=step / "trainer")
    (step / "dataloader").mkdir(exist_ok=True)
    torch.save({"position": 7}, step / "dataloader" / f"rank_{dist.get_rank()}.pt")


def leave_torchtune(run: Run, folder: Path, base: Path) -> None:
    """Leave a file for every tensor of every rank, as torchtune's writer does."""
    states = trained_states(run, folder)
    held = {"model": states.model, "optimizer": states.optimizer, "epochs_run": 1}
    writer = FileSystemWriter(folder / run.path / "epoch_0", single_file_per_rank=False, sync_files=False)
    dcp.save(held, storage_writer=writer)


def leave_compressed(run: Run, folder: Path, base: Path) -> None:
    """Leave the model compressed."""
    writer = FileSystemWriter(folder / run.path, _extensions=[ZStandard()])
    dcp.save(_model_and_optimizer(trained_states(run, folder)), storage_writer=writer)


def leave_asynchronously(run: Run, folder: Path, base: Path) -> None:
    """Leave what a thread wrote while training could go on."""
    states = trained_states(run, folder)
    dcp.async_save(_model_and_optimizer(states), checkpoint_id=folder / run.path).result()


def leave_without_collectives(run: Run, folder: Path, base: Path) -> None:
    """Leave a metadata file for every rank, and none for all of them."""
    states = trained_states(run, folder)
    dcp.save(_model_and_optimizer(states), checkpoint_id=folder / run.path, use_collectives=False)


def leave_raw_names(run: Run, folder: Path, base: Path) -> None:
    """Leave the names that `nn.Module` itself gives a compiled module with activation checkpoints."""
    model = wrapped(model_of(run, folder), run.wrapping)
    step_once(run, model)
    compiled = torch.compile(model, backend="eager")
    dcp.save({"model": compiled.state_dict()}, checkpoint_id=folder / run.path)


def leave_hugging_face(run: Run, folder: Path, base: Path) -> None:
    """Leave safetensors files of each rank's part of the model."""
    _save_hugging_face(run, folder, consolidated=False)


def leave_hugging_face_consolidated(run: Run, folder: Path, base: Path) -> None:
    """Leave the ranks' safetensors files, and those that torch made of them."""
    _save_hugging_face(run, folder, consolidated=True)


def _save_hugging_face(run: Run, folder: Path, *, consolidated: bool) -> None:
    place = str(folder / run.path)
    writer = HuggingFaceStorageWriter(place, save_distributed=True, enable_consolidation=consolidated)
    model = trained_states(run, folder).model
    if run.tied or run.model == "awkward":  # safetensors refuses two names for one memory
        del model["tied.weight" if run.model == "awkward" else "lm_head.weight"]
    dcp.save(model, storage_writer=writer)
