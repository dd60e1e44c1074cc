"""The states of a distributed model, each rank's part of them, in the forms that savers take."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType

from trainers.models import model_of
from trainers.run import Run
from trainers.tiny_llama import train_one_step
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
    """Return the states of the run's model after training."""
    return train(run, model_of(run, folder, epoch))


def train(run: Run, model: nn.Module) -> States:
    """Wrap the model, train it, and return its sharded states."""
    sharded = wrapped(model, run.wrapping)
    optimizer = train_one_step(sharded)
    if run.wrapping.fsdp == 2:
        return States(get_model_state_dict(sharded), get_optimizer_state_dict(sharded, optimizer))
    with sharded_states(sharded):
        return States(sharded.state_dict(), FullyShardedDataParallel.optim_state_dict(sharded, optimizer))


def sharded_states(model: nn.Module) -> AbstractContextManager[None]:
    """Have the state dicts of FSDP1 be sharded; other models need no telling."""
    if not isinstance(model, FullyShardedDataParallel):
        return nullcontext()
    manager: AbstractContextManager[None] = FullyShardedDataParallel.state_dict_type(
        model, StateDictType.SHARDED_STATE_DICT
    )
    return manager
