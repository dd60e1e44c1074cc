"""A model of PEFT under FSDP2, saved in the ways trainers do: whole or adapter alone, gathered or sharded."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import peft
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from peft_models import SETTINGS, make_random
from tiny_models import tiny_model, write_folder

ALONE = ("lora_", "modules_to_save")


def leave_adapters(folder: Path) -> None:
    """Leave the base, what PEFT merges, and four checkpoints of the same weights.

    base/  merged/  adapter/           what transformers and PEFT publish
    gathered/model.pt                  the state dict of the whole PEFT model, gathered
    whole/  alone/                     DCP: all of it, and the adapter alone
    ranks/actor/                       verl: a file of DTensors for every rank
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    config = peft.LoraConfig(
        **SETTINGS, target_modules=["q_proj", "down_proj"], modules_to_save=["norm"], task_type="CAUSAL_LM"
    )
    wrapped = peft.get_peft_model(tiny_model("llama"), config)
    make_random(wrapped)
    if dist.get_rank() == 0:
        write_folder(tiny_model("llama"), folder / "base")
        wrapped.save_pretrained(folder / "adapter")
        copy.deepcopy(wrapped).merge_and_unload().save_pretrained(folder / "merged")
    dist.barrier()
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("fsdp",))
    for layer in wrapped.base_model.model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(wrapped, mesh=mesh)
    wrapped(input_ids=torch.ones(2, 8, dtype=torch.int64)).logits.sum().backward()
    sharded = get_model_state_dict(wrapped)
    whole = get_model_state_dict(wrapped, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    dcp.save({"model": sharded}, checkpoint_id=folder / "whole")
    alone = {name: tensor for name, tensor in sharded.items() if any(word in name for word in ALONE)}
    dcp.save(alone, checkpoint_id=folder / "alone")
    for place in ("gathered", "ranks/actor"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    torch.save(sharded, folder / f"ranks/actor/model_world_size_2_rank_{dist.get_rank()}.pt")
    if dist.get_rank() == 0:
        torch.save(whole, folder / "gathered" / "model.pt")
        (folder / "ranks/actor/lora_train_meta.json").write_text('{"r": 4, "lora_alpha": 8}')
    dist.barrier()
