"""Runs saved by torch.distributed.checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageWriter

from trainers.run import Run
from trainers.sharded_states import trained_states


def leave(run: Run, folder: Path, base: Path) -> None:
    """Leave the model and its optimizer below keys of their own."""
    states = trained_states(run, folder)
    dcp.save({"model": states.model, "optim": states.optimizer}, checkpoint_id=folder / run.path)


def leave_hugging_face(run: Run, folder: Path, base: Path) -> None:
    """Leave safetensors files of each rank's part of the model."""
    _save_hugging_face(run, folder, consolidated=False)


def _save_hugging_face(run: Run, folder: Path, *, consolidated: bool) -> None:
    writer = HuggingFaceStorageWriter(
        str(folder / run.path), save_distributed=True, enable_consolidation=consolidated
    )
    dcp.save(trained_states(run, folder).model, storage_writer=writer)
