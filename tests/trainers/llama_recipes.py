"""Runs saved by llama-recipes' own functions (llama-cookbook), driven on a machine without GPUs."""

from __future__ import annotations

import sys
import types
from importlib import import_module, util
from pathlib import Path
from typing import Any

import accelerate.utils
import torch
import torch.distributed as dist
from llama_cookbook.model_checkpointing import checkpoint_handler
from llama_cookbook.policies.activation_checkpointing_functions import apply_fsdp_checkpointing
from llama_cookbook.policies.mixed_precision import bfSixteen
from llama_cookbook.policies.wrapping import get_llama_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType

from trainers.models import model_of
from trainers.run import Run
from trainers.tiny_llama import train_one_step

# Its policy offloads to the CPU, which frees the storage it copies from: on a CPU, the model's own.
checkpoint_handler.fullstate_save_policy.offload_to_cpu = False


def _train_utils() -> Any:
    """Return its `train_utils`, which today's accelerate and a missing `datasets` keep from importing."""
    vars(accelerate.utils).setdefault("is_ccl_available", lambda: False)
    spec = util.find_spec("llama_cookbook")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    package = types.ModuleType("llama_cookbook.utils")
    package.__path__ = [str(Path(place, "utils")) for place in spec.submodule_search_locations]
    sys.modules.setdefault("llama_cookbook.utils", package)
    return import_module("llama_cookbook.utils.train_utils")


def _configs(run: Run, base: Path, kind: StateDictType) -> tuple[Any, Any]:
    """Return its two configurations as `--enable_fsdp` and a kind of state dict would set them."""
    train_config = import_module("llama_cookbook.configs.training").train_config()
    fsdp_config = import_module("llama_cookbook.configs.fsdp").fsdp_config()
    train_config.model_name = str(base) if run.model_name is None else run.model_name
    train_config.enable_fsdp = True
    train_config.num_epochs = run.epochs
    train_config.dist_checkpoint_root_folder = "model_checkpoints"
    fsdp_config.checkpoint_type = kind
    fsdp_config.mixed_precision = run.dtype == "bfloat16"
    return train_config, fsdp_config


def _leave(
    run: Run,
    folder: Path,
    base: Path,
    *,
    kind: StateDictType = StateDictType.FULL_STATE_DICT,
    optimizer: bool = False,
    parameters: bool = True,
) -> None:
    train_config, fsdp_config = _configs(run, base, kind)
    train_config.save_optimizer = optimizer
    for epoch in range(run.epochs):
        sharded = FullyShardedDataParallel(
            model_of(run, folder, epoch),
            auto_wrap_policy=get_llama_wrapper(),
            mixed_precision=bfSixteen if fsdp_config.mixed_precision else None,
            sharding_strategy=fsdp_config.sharding_strategy,
            device_id=torch.device("cpu"),
            limit_all_gathers=True,
            use_orig_params=False,
        )
        apply_fsdp_checkpointing(sharded)
        optim = train_one_step(sharded)
        save = _save_full if kind is StateDictType.FULL_STATE_DICT else _save_sharded
        save(sharded, optim, train_config, epoch)
    if parameters and dist.get_rank() == 0:
        _train_utils().save_train_params(train_config, fsdp_config, dist.get_rank())


def _save_full(model: Any, optimizer: Any, config: Any, epoch: int) -> None:
    rank = dist.get_rank()
    checkpoint_handler.save_fsdp_model_checkpoint_full(model, optimizer, rank, config, epoch=epoch)
    if config.save_optimizer:
        checkpoint_handler.save_optimizer_checkpoint(model, optimizer, rank, config, epoch=epoch)


def _save_sharded(model: Any, optimizer: Any, config: Any, epoch: int) -> None:
    """Save over what the epoch before left, as its training loop does."""
    saved = optimizer if config.save_optimizer else None
    checkpoint_handler.save_model_and_optimizer_sharded(model, dist.get_rank(), config, optim=saved)


def leave_full_state_dict(run: Run, folder: Path, base: Path) -> None:
    """Leave a finished run."""
    _leave(run, folder, base)


def leave_full_state_dict_and_optimizer(run: Run, folder: Path, base: Path) -> None:
    """Leave a finished run that also saved its optimizer."""
    _leave(run, folder, base, optimizer=True)


def leave_full_state_dict_without_parameters(run: Run, folder: Path, base: Path) -> None:
    """Leave a run that was stopped after its last epoch."""
    _leave(run, folder, base, parameters=False)


def leave_sharded(run: Run, folder: Path, base: Path) -> None:
    """Leave a finished run of its default: every rank's part of the model."""
    _leave(run, folder, base, kind=StateDictType.SHARDED_STATE_DICT)


def leave_sharded_and_optimizer(run: Run, folder: Path, base: Path) -> None:
    """Leave every rank's part of the model and of the optimizer."""
    _leave(run, folder, base, kind=StateDictType.SHARDED_STATE_DICT, optimizer=True)


def leave_model_pt(run: Run, folder: Path, base: Path) -> None:
    """Leave what a run on one device without FSDP saves."""
    model = model_of(run, folder)
    if dist.get_rank() == 0:
        checkpoint_handler.save_model_checkpoint(model, folder)
