"""Runs of torch's own FSDP1 and FSDP2, saved as full state dicts in the ways people do it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)
from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, StateDictType
from torch.distributed.tensor import DTensor

from trainers.models import model_of
from trainers.run import Run, Wrapping
from trainers.tiny_llama import train_one_step
from trainers.wrapping import checkpoint_activations, fsdp1, fsdp2

FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


def _save(state: object, file: Path) -> None:
    if dist.get_rank() == 0:
        torch.save(state, file)


def _full_state(model: nn.Module, sharded: FullyShardedDataParallel) -> Any:
    policy = FullStateDictConfig(offload_to_cpu=False, rank0_only=True)
    with FullyShardedDataParallel.state_dict_type(sharded, StateDictType.FULL_STATE_DICT, policy):
        return model.state_dict()


def leave_compiled_fsdp1(run: Run, folder: Path, base: Path) -> None:
    """Leave the full state dict of a compiled FSDP1 module, asked for through the compiled one."""
    sharded = fsdp1(model_of(run, folder), Wrapping(1, (), use_orig_params=True))
    train_one_step(sharded)
    compiled = torch.compile(sharded, backend="eager")
    _save(_full_state(compiled, sharded), folder / "full.pt")


def leave_raw_names(run: Run, folder: Path, base: Path) -> None:
    """Leave summoned parameters as `nn.Module` itself names them, all wrappers included."""
    sharded = fsdp1(model_of(run, folder), Wrapping(1, (), use_orig_params=True))
    checkpoint_activations(sharded)
    train_one_step(sharded)
    with FullyShardedDataParallel.summon_full_params(sharded, writeback=False):
        state = {n: p.detach().clone() for n, p in nn.Module.named_parameters(sharded)}
    _save(state, folder / "model.pt")


def leave_awkward_fsdp1(run: Run, folder: Path, base: Path) -> None:
    """Leave a full state dict that holds the awkward buffers."""
    sharded = fsdp1(model_of(run, folder), Wrapping(1, ()))
    sharded(torch.ones(2, 3)).backward()
    _save(_full_state(sharded, sharded), folder / "full.pt")


def leave_fsdp2(run: Run, folder: Path, base: Path) -> None:
    """Leave what `get_model_state_dict` and `get_optimizer_state_dict` gather."""
    model = fsdp2(model_of(run, folder), Wrapping())
    optimizer = train_one_step(model)
    _save(get_model_state_dict(model, options=FULL), folder / "full.pt")
    _save(get_optimizer_state_dict(model, optimizer, options=FULL), folder / "optim.pt")


def leave_compiled_fsdp2(run: Run, folder: Path, base: Path) -> None:
    """Leave parameters gathered one by one, under the names a compiled, wrapped module gives them."""
    model = model_of(run, folder)
    checkpoint_activations(model)
    train_one_step(fsdp2(model, Wrapping()))
    compiled = torch.compile(model, backend="eager")
    gathered = {name: _gathered(parameter) for name, parameter in compiled.named_parameters()}
    _save(gathered, folder / "full.pt")


def _gathered(parameter: torch.Tensor) -> torch.Tensor:
    assert isinstance(parameter, DTensor)
    return parameter.full_tensor().detach()


def leave_awkward_fsdp2(run: Run, folder: Path, base: Path) -> None:
    """Leave what `get_model_state_dict` gathers of the awkward buffers."""
    model = fsdp2(model_of(run, folder), Wrapping())
    model(torch.ones(2, 3)).backward()
    _save(get_model_state_dict(model, options=FULL), folder / "full.pt")
