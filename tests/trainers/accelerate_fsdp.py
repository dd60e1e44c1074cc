"""A run saved by accelerate's own `save_fsdp_model`."""

from __future__ import annotations

import os
from pathlib import Path

import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import save_fsdp_model, save_fsdp_optimizer

from trainers.models import model_of
from trainers.run import Run
from trainers.tiny_llama import train_one_step
from trainers.wrapping import fsdp2


def leave_full(run: Run, folder: Path, base: Path) -> None:
    """Leave a full state dict of FSDP2.

    accelerate turns FSDP on for GPUs only, so the model is sharded here; everything that decides what
    lies on disk is accelerate's own.
    """
    model = fsdp2(model_of(run, folder), run.wrapping)
    optimizer = train_one_step(model)
    rank = str(dist.get_rank())
    # accelerate asks for an address even where the processes are already connected, as these are.
    os.environ.update(
        RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=str(run.world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT="1"
    )
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == run.world_size
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="FULL_STATE_DICT")
    save_fsdp_model(plugin, accelerator, model, folder / run.path)
    save_fsdp_optimizer(plugin, accelerator, optimizer, model, folder / run.path)
