"""The same models saved by llama-recipes' own two functions and by ours of the same names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from llama_cookbook.model_checkpointing import checkpoint_handler
from llama_cookbook.policies.wrapping import get_llama_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType
from transformers import AutoModelForCausalLM

from trainers.llama_recipes import _configs, _train_utils
from trainers.run import Run
from trainers.tiny_llama import train_one_step
from unshard.training.integrations import llama_recipes

NAMES = ("tiny-org/Tiny-Llama", "llama-7b", "/models/of ours/8B")
EPOCHS = (0, 1)


def leave_both(folder: Path, base: Path) -> None:
    """Leave what both save for every name and epoch, each in a working directory of its own."""
    before = Path.cwd()
    for name in NAMES:
        for epoch in EPOCHS:
            sharded = FullyShardedDataParallel(
                AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
                auto_wrap_policy=get_llama_wrapper(),
                device_id=torch.device("cpu"),
                use_orig_params=bool(epoch),
            )
            optimizer = train_one_step(sharded)
            for who, save in _savers().items():
                (folder / who).mkdir(exist_ok=True)
                os.chdir(folder / who)
                config, fsdp_config = _configs(_run(name), base, StateDictType.FULL_STATE_DICT)
                save[0](sharded, optimizer, dist.get_rank(), config, epoch=epoch)
                if dist.get_rank() == 0:
                    save[1](config, fsdp_config, 0)
                dist.barrier()
    os.chdir(before)


def _savers() -> dict[str, tuple[Any, Any]]:
    theirs = (checkpoint_handler.save_fsdp_model_checkpoint_full, _train_utils().save_train_params)
    ours = (llama_recipes.save_fsdp_model_checkpoint_full, llama_recipes.save_train_params)
    return {"theirs": theirs, "ours": ours}


def _run(name: str) -> Run:
    return Run("drop-in", "recipes_drop_in.leave_both", path="", notes="", model_name=name)
