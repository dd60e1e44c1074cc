"""The states of a distributed model, each rank's part of them, in the forms that savers take."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType

from trainers.models import model_of
from trainers.run import Run
from trainers.tiny_llama import frozen_optimizer, train_one_step
from trainers.wrapping import wrapped


@dataclass(frozen=True, slots=True)
class States:
    """What one rank holds.

    Attributes:
        model: The model's state dict.
        optimizer: The optimizer's.
    """

    model: dict[str, Any]
    optimizer: dict[str, Any]


def trained_states(run: Run, folder: Path, epoch: int = 0) -> States:
    """Return the sharded states of the run's model after training."""
    sharded = wrapped(model_of(run, folder, epoch), run.wrapping)
    optimizer = step_once(run, sharded)
    if run.wrapping.fsdp == 2:
        return States(get_model_state_dict(sharded), get_optimizer_state_dict(sharded, optimizer))
    with sharded_states(sharded):
        return States(sharded.state_dict(), FullyShardedDataParallel.optim_state_dict(sharded, optimizer))


def step_once(run: Run, model: nn.Module) -> torch.optim.Optimizer:
    """Do one step that gives the optimizer a state and leaves the weights.

    The sizes of the tiny models are odd, so tensor parallelism could save them but not compute with them.
    """
    if run.model != "awkward" and "tp" not in run.wrapping.mesh:
        return train_one_step(model)
    optimizer = frozen_optimizer(model)
    if run.model == "awkward":
        model(torch.ones(2, 3)).backward()
    else:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return optimizer


def sharded_states(model: nn.Module) -> AbstractContextManager[None]:
    """Have the state dicts of FSDP1 be sharded; other models need no telling."""
    if not isinstance(model, FullyShardedDataParallel):
        return nullcontext()
    manager: AbstractContextManager[None] = FullyShardedDataParallel.state_dict_type(
        model, StateDictType.SHARDED_STATE_DICT
    )
    return manager
