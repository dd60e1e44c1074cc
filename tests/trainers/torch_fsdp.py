"""Runs of torch's own FSDP1 and FSDP2, saved as full state dicts in the ways people do it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FullStateDictConfig,
    FullyShardedDataParallel,
    StateDictType,
    fully_shard,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import DTensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from trainers.catalogue import WORLD_SIZE, Run, truth_file
from trainers.tiny_llama import tiny_llama, train_one_step, write_truth

FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Awkward(nn.Module):  # type: ignore[misc]  # torch's types are not read
    """A module of the shapes and number formats that readers trip over."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(3, 5)
        self.narrow = nn.Linear(5, 1, bias=False)
        self.tied = nn.Linear(3, 5, bias=False)
        self.tied.weight = self.wide.weight
        self.register_buffer("scalar", torch.tensor(2.5))
        self.register_buffer("empty", torch.zeros(0, 4))
        self.register_buffer("steps", torch.tensor([1, -(2**40), 3]))
        self.register_buffer("mask", torch.tensor([[True, False, True]]))
        self.register_buffer("odd_floats", torch.tensor([1.5, float("inf"), -0.0], dtype=torch.float16))

    def forward(self, values: torch.Tensor) -> Any:
        """Use every parameter."""
        return self.narrow(self.wide(values) + self.tied(values)).sum()


def _awkward(folder: Path) -> Awkward:
    torch.manual_seed(0)
    module = Awkward()
    write_truth(module, truth_file(folder, 0))
    return module


def _trained(run: Run, folder: Path) -> Any:
    model = tiny_llama(0, tied=run.tied, dtype=getattr(torch, run.dtype))
    write_truth(model, truth_file(folder, 0))
    return model


def _fsdp1(model: nn.Module, *, use_orig_params: bool) -> FullyShardedDataParallel:
    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=ModuleWrapPolicy({LlamaDecoderLayer}),
        use_orig_params=use_orig_params,
        device_id=torch.device("cpu"),
    )


def _fully_sharded(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (WORLD_SIZE,))
    for layer in [module for module in model.modules() if isinstance(module, LlamaDecoderLayer)]:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _save(state: object, file: Path) -> None:
    if dist.get_rank() == 0:
        torch.save(state, file)


def _full_state(model: nn.Module, sharded: FullyShardedDataParallel) -> Any:
    policy = FullStateDictConfig(offload_to_cpu=False, rank0_only=True)
    with FullyShardedDataParallel.state_dict_type(sharded, StateDictType.FULL_STATE_DICT, policy):
        return model.state_dict()


def leave_compiled_fsdp1(run: Run, folder: Path, base: Path) -> None:
    """Leave the full state dict of a compiled FSDP1 module, asked for through the compiled one."""
    sharded = _fsdp1(_trained(run, folder), use_orig_params=True)
    train_one_step(sharded)
    compiled = torch.compile(sharded, backend="eager")
    _save(_full_state(compiled, sharded), folder / "full.pt")


def leave_raw_names(run: Run, folder: Path, base: Path) -> None:
    """Leave summoned parameters as `nn.Module` itself names them, all wrappers included."""
    sharded = _fsdp1(_trained(run, folder), use_orig_params=True)
    apply_activation_checkpointing(
        sharded,
        checkpoint_wrapper_fn=checkpoint_wrapper,
        check_fn=lambda module: isinstance(module, LlamaDecoderLayer),
    )
    train_one_step(sharded)
    with FullyShardedDataParallel.summon_full_params(sharded, writeback=False):
        state = {n: p.detach().clone() for n, p in nn.Module.named_parameters(sharded)}
    _save(state, folder / "model.pt")


def leave_awkward_fsdp1(run: Run, folder: Path, base: Path) -> None:
    """Leave a full state dict that holds the awkward buffers."""
    sharded = FullyShardedDataParallel(_awkward(folder), device_id=torch.device("cpu"))
    sharded(torch.ones(2, 3)).backward()
    _save(_full_state(sharded, sharded), folder / "full.pt")


def leave_fsdp2(run: Run, folder: Path, base: Path) -> None:
    """Leave what `get_model_state_dict` and `get_optimizer_state_dict` gather."""
    model = _fully_sharded(_trained(run, folder))
    optimizer = train_one_step(model)
    _save(get_model_state_dict(model, options=FULL), folder / "full.pt")
    _save(get_optimizer_state_dict(model, optimizer, options=FULL), folder / "optim.pt")


def leave_compiled_fsdp2(run: Run, folder: Path, base: Path) -> None:
    """Leave parameters gathered one by one, under the names a compiled, wrapped module gives them."""
    model = _trained(run, folder)
    apply_activation_checkpointing(
        model,
        checkpoint_wrapper_fn=checkpoint_wrapper,
        check_fn=lambda module: isinstance(module, LlamaDecoderLayer),
    )
    train_one_step(_fully_sharded(model))
    compiled = torch.compile(model, backend="eager")
    gathered = {name: _gathered(parameter) for name, parameter in compiled.named_parameters()}
    _save(gathered, folder / "full.pt")


def _gathered(parameter: torch.Tensor) -> torch.Tensor:
    assert isinstance(parameter, DTensor)
    return parameter.full_tensor().detach()


def leave_awkward_fsdp2(run: Run, folder: Path, base: Path) -> None:
    """Leave what `get_model_state_dict` gathers of the awkward buffers."""
    model = _awkward(folder)
    fully_shard(model, mesh=init_device_mesh("cpu", (WORLD_SIZE,)))
    model(torch.ones(2, 3)).backward()
    _save(get_model_state_dict(model, options=FULL), folder / "full.pt")
