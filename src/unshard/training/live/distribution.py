"""How a model in training is spread over ranks, as its wrappers tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from unshard.record.description import Distribution, Precision
from unshard.training.live.flat_shards import flat_units
from unshard.training.live.local_tensors import fsdp2_groups, fsdp2_state
from unshard.training.live.module_tree import bare_module, class_names, class_of
from unshard.training.ranks.protocol import Ranks

if TYPE_CHECKING:
    from torch.distributed.fsdp import MixedPrecision, MixedPrecisionPolicy
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup


# Wrappers that average gradients, and leave every rank the whole model.
_KEEPING_ALIKE = frozenset({"DistributedDataParallel", "DeepSpeedEngine"})


def describe_distribution(model: nn.Module, ranks: Ranks) -> Distribution:
    """Return how a model is spread over ranks, as the wrappers of this rank tell."""
    modules = list(model.modules())
    flat, sharded = list(flat_units(model)), [module for module in modules if fsdp2_groups(module)]
    groups = [group for module in sharded for group in fsdp2_groups(module)]
    return Distribution(
        kind=_kind(flat, sharded, modules),
        world_size=ranks.size,
        backend=str(dist.get_backend()) if dist.is_available() and dist.is_initialized() else None,
        strategy=_strategy(flat, sharded),
        wrapped=_class_names(map(bare_module, flat or sharded)),
        mesh=_mesh(flat, groups, modules),
        use_orig_params=any(unit._use_orig_params for unit in flat) if flat else None,
        cpu_offload=_is_offloaded(flat, groups),
        precision=_precision(flat, groups),
        compiled=any("OptimizedModule" in class_names(m) or _is_compiled(m) for m in modules),
        checkpointed=_class_names(_checkpointed(modules)),
    )


def _class_names(modules: Iterable[nn.Module]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(class_of(module).__name__ for module in modules))


def _kind(
    flat: Sequence[Any], sharded: Sequence[nn.Module], modules: Sequence[nn.Module]
) -> Literal["fsdp1", "fsdp2", "ddp", "none"]:
    if flat:
        return "fsdp1"
    if sharded or any(_meshes(module) for module in modules):
        return "fsdp2"
    return "ddp" if any(_KEEPING_ALIKE & class_names(module) for module in modules) else "none"


def _strategy(flat: Sequence[Any], sharded: Sequence[nn.Module]) -> str | None:
    """Return FSDP1's strategy by name; for FSDP2, whether units are freed after they have computed."""
    if flat:
        return " and ".join(dict.fromkeys(unit.sharding_strategy.name for unit in flat))
    frees = dict.fromkeys(
        "None" if getattr(fsdp2_state(module), "_auto_reshard_after_forward", False) else _frees(group)
        for module in sharded
        for group in fsdp2_groups(module)
    )
    return " and ".join(f"reshard_after_forward={value}" for value in frees) or None


def _frees(group: FSDPParamGroup) -> str:
    """Return how far a group's parameters are freed after a forward pass: entirely, not, or to some ranks."""
    after = group.post_forward_mesh_info
    if after is None:
        return "False"
    return "True" if after is group.mesh_info else str(after.shard_mesh_size)


def _meshes(module: nn.Module) -> list[Any]:
    """Return the meshes that the parameters of a module lie on."""
    found = (getattr(p, "device_mesh", None) for p in module._parameters.values() if p is not None)
    return [mesh for mesh in found if mesh is not None]


def _mesh(flat: Sequence[Any], groups: Sequence[Any], modules: Sequence[nn.Module]) -> Mapping[str, int]:
    """Return the sizes of the mesh with most dimensions, by their names, or by their numbers without."""
    meshes = [each.sharded_param.device_mesh for group in groups for each in group.fsdp_params]
    meshes = meshes or [mesh for module in modules for mesh in _meshes(module)]
    meshes += [mesh for unit in flat if (mesh := getattr(unit, "_device_mesh", None)) is not None]
    if not meshes:
        return {}
    widest = max(meshes, key=lambda mesh: mesh.ndim)
    names = widest.mesh_dim_names or [str(number) for number in range(widest.ndim)]
    return {str(name): int(widest.size(number)) for number, name in enumerate(names)}


def _is_offloaded(flat: Sequence[Any], groups: Sequence[Any]) -> bool:
    ways = [getattr(unit.cpu_offload, "offload_params", False) for unit in flat]
    ways += ["CPU" in type(group.offload_policy).__name__ for group in groups]
    return any(ways)


def _precision(flat: Sequence[Any], groups: Sequence[Any]) -> Precision:
    """Return what units compute in: the first one's that is mixed."""
    policies = [unit.mixed_precision for unit in flat] + [group.mp_policy for group in groups]
    mixed = next((each for each in policies if _dtype(each, "param_dtype", "reduce_dtype")), None)
    autocast = str(torch.get_autocast_dtype(_device())) if torch.is_autocast_enabled(_device()) else None
    return Precision(
        parameters=_dtype(mixed, "param_dtype"),
        reduction=_dtype(mixed, "reduce_dtype"),
        buffers=_dtype(mixed, "buffer_dtype"),
        output=_dtype(mixed, "output_dtype"),
        autocast=None if autocast is None else autocast.removeprefix("torch."),
    )


def _device() -> str:
    """Return the kind of device that is computed on."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _dtype(policy: MixedPrecision | MixedPrecisionPolicy | None, *keys: str) -> str | None:
    """Return the first dtype that a policy has under some names, by torch's name."""
    found = next((value for key in keys if (value := getattr(policy, key, None)) is not None), None)
    return None if found is None else str(found).removeprefix("torch.")


def _is_compiled(module: nn.Module) -> bool:
    """Return whether `module.compile()` was called, which changes no name."""
    return getattr(module, "_compiled_call_impl", None) is not None


def _checkpointed(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """Return the modules under activation checkpoints, by wrappers or by transformers' own switch."""
    wrapped = [bare_module(module) for module in modules if "CheckpointWrapper" in class_names(module)]
    own = [m for m in modules if getattr(m, "gradient_checkpointing", None) is True]
    return [*wrapped, *own]
