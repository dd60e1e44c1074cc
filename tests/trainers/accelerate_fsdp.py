"""A run saved by accelerate's own `save_fsdp_model`."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import save_fsdp_model, save_fsdp_optimizer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from trainers.catalogue import WORLD_SIZE, Run, truth_file
from trainers.tiny_llama import tiny_llama, train_one_step, write_truth


def leave_full(run: Run, folder: Path, base: Path) -> None:
    """Leave a full state dict of FSDP2.

    accelerate turns FSDP on for GPUs only, so the model is sharded here; everything that decides what
    lies on disk is accelerate's own.
    """
    model = tiny_llama(0, tied=run.tied, dtype=getattr(torch, run.dtype))
    write_truth(model, truth_file(folder, 0))
    fully_shard(model, mesh=init_device_mesh("cpu", (WORLD_SIZE,)))
    optimizer = train_one_step(model)
    rank = str(dist.get_rank())
    # accelerate asks for an address even where the processes are already connected, as these are.
    os.environ.update(
        RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=str(WORLD_SIZE), MASTER_ADDR="127.0.0.1", MASTER_PORT="1"
    )
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == WORLD_SIZE
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="FULL_STATE_DICT")
    save_fsdp_model(plugin, accelerator, model, folder / run.path)
    save_fsdp_optimizer(plugin, accelerator, optimizer, model, folder / run.path)
