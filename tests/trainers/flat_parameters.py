"""Runs of FSDP1 whose ranks save their flat parameters as they are: LOCAL_STATE_DICT."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType

from trainers.models import model_of
from trainers.run import Run, Wrapping
from trainers.sharded_states import step_once
from trainers.tiny_llama import tiny_llama, write_truth
from trainers.wrapping import wrapped


def leave(run: Run, folder: Path, base: Path) -> None:
    """Leave what `state_dict` gives each rank, in files named as accelerate names them."""
    sharded = wrapped(model_of(run, folder), run.wrapping)
    step_once(run, sharded)
    (folder / run.path).mkdir(exist_ok=True)
    with FullyShardedDataParallel.state_dict_type(sharded, StateDictType.LOCAL_STATE_DICT):
        state = sharded.state_dict()
    torch.save(state, folder / run.path / f"pytorch_model_fsdp_rank{dist.get_rank()}.bin")


def leave_in_dcp(folder: Path) -> None:
    """Leave LOCAL_STATE_DICTs that DCP saved, in a folder for either value of use_orig_params."""
    for original in (False, True):
        model = tiny_llama(0, tied=original, dtype=torch.bfloat16)
        write_truth(model, folder / f"{original}.safetensors")
        wrapping = Wrapping(fsdp=1, mesh=(), use_orig_params=original, mixed_precision=original)
        sharded = wrapped(model, wrapping)
        with FullyShardedDataParallel.state_dict_type(sharded, StateDictType.LOCAL_STATE_DICT):
            dcp.save({"model": sharded.state_dict()}, checkpoint_id=folder / str(original))
