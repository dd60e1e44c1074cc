"""Runs saved by accelerate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import save_fsdp_model, save_fsdp_optimizer

from trainers.accelerate_on_cpu import fsdp_on_cpu
from trainers.models import model_of
from trainers.run import Run
from trainers.tiny_llama import frozen_optimizer, train_one_step
from trainers.wrapping import wrapped


def leave_full(run: Run, folder: Path, base: Path) -> None:
    """Leave a full state dict of FSDP2."""
    _save(run, folder, "FULL_STATE_DICT")


def leave_flat(run: Run, folder: Path, base: Path) -> None:
    """Leave each rank's flat parameters."""
    _save(run, folder, "LOCAL_STATE_DICT")


def leave_per_rank(run: Run, folder: Path, base: Path) -> None:
    """Leave each rank's part in a file of its own, as `use_dcp=False` does."""
    _save(run, folder, "SHARDED_STATE_DICT", use_dcp=False)


def _save(run: Run, folder: Path, kind: str, **options: bool) -> None:
    """Save with the functions that `Accelerator.save_state` calls, which it gives no options."""
    model = wrapped(model_of(run, folder), run.wrapping)
    optimizer = train_one_step(model)
    with fsdp_on_cpu():
        plugin = _plugin(run, kind)
        accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
        assert accelerator.num_processes == run.world_size
        save_fsdp_model(plugin, accelerator, model, folder / run.path, **options)
        if kind != "LOCAL_STATE_DICT":
            save_fsdp_optimizer(plugin, accelerator, optimizer, model, folder / run.path, **options)


def leave_state(run: Run, folder: Path, base: Path) -> None:
    """Leave what `Accelerator.save_state` does after `prepare` and a step."""
    model = model_of(run, folder)
    with fsdp_on_cpu():
        accelerator = Accelerator(cpu=True, fsdp_plugin=_plugin(run, "SHARDED_STATE_DICT"))
        if run.wrapping.fsdp == 1:  # parameters are others once they are flat
            prepared = accelerator.prepare(model)
            optimizer = accelerator.prepare(frozen_optimizer(prepared))
        else:
            prepared, optimizer = accelerator.prepare(model, frozen_optimizer(model))
        tokens = torch.arange(3, 19).reshape(2, 8)
        accelerator.backward(prepared(input_ids=tokens, labels=tokens, use_cache=False).loss)
        optimizer.step()
        accelerator.save_state(str(folder / run.path))


def _plugin(run: Run, kind: str) -> Any:
    return FullyShardedDataParallelPlugin(
        fsdp_version=run.wrapping.fsdp,
        state_dict_type=kind,
        use_orig_params=run.wrapping.use_orig_params if run.wrapping.fsdp == 1 else None,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
    )
