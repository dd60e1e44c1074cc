"""Ways to distribute a model before it is trained."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    ShardingStrategy,
    fully_shard,
)
from torch.distributed.fsdp.wrap import CustomPolicy
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from trainers.run import Wrapping

_BF16 = torch.bfloat16
_COLUMNS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
_ROWS = ("self_attn.o_proj", "mlp.down_proj")


def wrapped(model: nn.Module, wrapping: Wrapping) -> Any:
    """Return the model, distributed as a run says."""
    if wrapping.activation_checkpoints:
        checkpoint_activations(model)
    if wrapping.fsdp == 0:
        return model
    return fsdp1(model, wrapping) if wrapping.fsdp == 1 else fsdp2(model, wrapping)


def fsdp1(model: nn.Module, wrapping: Wrapping) -> FullyShardedDataParallel:
    """Return the model in FullyShardedDataParallel, each layer a unit of its own."""
    layers = _layers(model)
    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=CustomPolicy(lambda module: module in layers),
        device_id=torch.device("cpu"),
        device_mesh=_mesh(wrapping) if wrapping.mesh else None,
        mixed_precision=MixedPrecision(_BF16, _BF16, _BF16) if wrapping.mixed_precision else None,
        sharding_strategy=(
            ShardingStrategy.HYBRID_SHARD if len(wrapping.mesh) > 1 else ShardingStrategy.FULL_SHARD
        ),
        use_orig_params=wrapping.use_orig_params,
    )


def fsdp2(model: nn.Module, wrapping: Wrapping) -> nn.Module:
    """Return the model after fully_shard of each layer and of what is left."""
    mesh = _mesh(wrapping)
    if "tp" in wrapping.mesh:
        _parallelize(model, mesh["tp"])
        mesh = mesh["fsdp"]
    policy = MixedPrecisionPolicy(_BF16) if wrapping.mixed_precision else MixedPrecisionPolicy()
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


def checkpoint_activations(model: nn.Module) -> None:
    """Wrap every layer in an activation checkpoint."""
    layers = _layers(model)
    apply_activation_checkpointing(
        model, checkpoint_wrapper_fn=checkpoint_wrapper, check_fn=lambda module: module in layers
    )


def _layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if type(module).__name__.endswith("DecoderLayer")]


def _mesh(wrapping: Wrapping) -> DeviceMesh:
    ranks = dist.get_world_size()
    shape = (ranks,) if len(wrapping.mesh) == 1 else (2, ranks // 2)
    return init_device_mesh("cpu", shape, mesh_dim_names=wrapping.mesh)


def _parallelize(model: nn.Module, mesh: DeviceMesh) -> None:
    """Split the layers' products by rows and by columns, and the embedding by rows."""
    plan = dict.fromkeys(_COLUMNS, ColwiseParallel()) | dict.fromkeys(_ROWS, RowwiseParallel())
    for layer in _layers(model):
        parallelize_module(layer, mesh, plan)
