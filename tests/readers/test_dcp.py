"""Checkpoints of torch.distributed.checkpoint: the conformance suite, and what is peculiar to them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from awkward import awkward_tensors
from reader_suite import FolderSuite


def save(state: dict[str, object], folder: Path) -> Path:
    """Save a state as one process does, without a process group."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is one process
        dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


class TestDcp(FolderSuite):
    @classmethod
    def tensors(cls) -> Mapping[str, torch.Tensor]:
        # DCP saves tied tensors one by one, and cannot tell later that they were one.
        return {name.replace("tied.", "copied."): tensor for name, tensor in awkward_tensors().items()}

    @classmethod
    def write(cls, tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
        return save({"model": dict(tensors)}, folder)
