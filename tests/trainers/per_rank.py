"""Runs whose ranks each save a file of their own with torch.save."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from trainers.models import model_of
from trainers.run import Run
from trainers.sharded_states import sharded_states, step_once
from trainers.tiny_llama import tiny_tokenizer
from trainers.wrapping import wrapped


def leave_verl(run: Run, folder: Path, base: Path) -> None:
    """Leave a folder as verl's FSDPCheckpointManager does.

    Source: verl/utils/checkpoint/fsdp_checkpoint_manager.py, save_checkpoint.
    """
    place = folder / run.path
    place.mkdir(parents=True, exist_ok=True)
    model = model_of(run, folder)
    sharded = wrapped(model, run.wrapping)
    optimizer = step_once(run, sharded)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    with sharded_states(sharded):
        saved = {
            "model": sharded.state_dict(),
            "optim": optimizer.state_dict(),
            "extra_state": _extra_state(),
        }
    for kind, state in saved.items():
        torch.save(state, place / f"{kind}_world_size_{world_size}_rank_{rank}.pt")
    if rank == 0 and run.based:
        tiny_tokenizer().save_pretrained(place / "huggingface")
        model.config.save_pretrained(place / "huggingface")
        described = {"FSDP_version": run.wrapping.fsdp, "world_size": world_size}
        (place / "fsdp_config.json").write_text(json.dumps(described, indent=4))
        (place.parent.parent / "latest_checkpointed_iteration.txt").write_text("7")
        torch.save({"_num_yielded": 7}, place.parent / "data.pt")


def _extra_state() -> dict[str, Any]:
    schedule = {"base_lrs": [0.0], "last_epoch": 7, "_step_count": 8, "_last_lr": [0.0], "lr_lambdas": [None]}
    generators = {
        "cpu": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "random": random.getstate(),
    }
    return {"lr_scheduler": schedule, "rng": generators}
