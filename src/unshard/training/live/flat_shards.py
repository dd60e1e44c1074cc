"""What a rank holds of the parameters of FSDP1's units: ranges of a flat vector, without any gather.

    unit            parameters one after the other, some padding between and behind them
    rank r          elements [r * n, (r + 1) * n) of that, where n is the same on every rank

A rank keeps its range in full precision in `_local_shard`, also while the unit is gathered for computing,
which it may still be after a forward pass without gradients. A parameter whose own memory was not in
row-major order lies in the order of its memory.

Source:
    torch/distributed/fsdp/_flat_param.py (`FlatParameter`, `_ShardParamInfo`, `FlatParamHandle.
    flatten_tensors`, `init_flat_param_attributes`, `_writeback_orig_params`);
    torch/distributed/tensor/parallel/_data_parallel_utils.py (`_flatten_tensor`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from unshard.errors import UnsupportedLayoutError
from unshard.recipes.wrappers import WRAPPERS, without_segments
from unshard.tensors import Box
from unshard.tensors.boxes import row_major_strides, split_range
from unshard.training.live.dtensor_parts import placed_on
from unshard.training.live.local_parts import LocalPart
from unshard.training.live.module_tree import Place, class_names, joined

if TYPE_CHECKING:
    from torch.distributed.fsdp._flat_param import FlatParamHandle, _ShardParamInfo
    from torch.distributed.tensor._dtensor_spec import DTensorSpec


@dataclass(frozen=True, slots=True)
class FlatMember:
    """A parameter in the flat vector of a unit.

    Attributes:
        handle: The unit's handle.
        number: Which of its parameters.
    """

    handle: FlatParamHandle
    number: int

    @property
    def identity(self) -> tuple[int, int]:
        """What is equal for the same parameter in several places."""
        return id(self.handle), self.number

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the parameter; that of the whole where tensor parallelism has cut it."""
        extension = self._extension
        return tuple(self._local_shape if extension is None else extension.shape)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which it is kept."""
        return local_shard(self.handle).dtype

    @property
    def is_copied(self) -> bool:
        """Whether several ranks hold the same range, or tensor parallelism leaves it whole."""
        strategy = getattr(self.handle, "_sharding_strategy", None)
        name = getattr(strategy, "name", "")
        return name == "NO_SHARD" or "HYBRID" in name or self._extension is not None

    @property
    def _extension(self) -> DTensorSpec | None:
        return self.handle.flat_param._param_extensions[self.number]

    @property
    def _local_shape(self) -> tuple[int, ...]:
        return tuple(self.handle.flat_param._shapes[self.number])

    def parts(self, name: str) -> list[LocalPart]:
        """Return what this rank holds of it.

        Raises:
            UnsupportedLayoutError: It is placed as nothing can be read from.
        """
        found = self._local_parts(name)
        if self._extension is None:
            return found
        spec = self._extension
        placed, _ = placed_on(name, spec.shape, spec.mesh, spec.placements, by_fsdp=False)
        return [
            LocalPart(_moved(inside, each.local.start, each.whole.start), part.within(inside))
            for part in found
            for each in placed or ()
            if (inside := part.box.intersect(each.local)) is not None
        ]

    def _local_parts(self, name: str) -> list[LocalPart]:
        """Return the boxes of the parameter, as the unit has flattened it, that are in this rank's range."""
        flat, shape = self.handle.flat_param, self._local_shape
        info = flat._shard_param_infos[self.number]
        if not info.in_shard or math.prod(shape) == 0:
            return []
        vector = _latest(self.handle, self.number, info)
        order = _memory_order(name, shape, flat._strides[self.number])
        start, parts = info.intra_param_start_idx, []
        for box in split_range([shape[d] for d in order], start, start + info.numel_in_shard):
            elements, vector = vector[: box.volume].view(box.shape), vector[box.volume :]
            back = [order.index(d) for d in range(len(shape))]
            whole = Box(tuple(box.start[d] for d in back), tuple(box.stop[d] for d in back))
            parts.append(LocalPart(whole, elements.permute(back)))
        return parts


def flat_members(model: nn.Module) -> dict[Place, FlatMember]:
    """Return the parameters that FSDP1 has flattened, by every place where they are registered."""
    members: dict[Place, FlatMember] = {}
    for unit in flat_units(model):
        flat = unit._handle.flat_param
        for number, info in enumerate(flat._param_infos):
            members[id(info.module), info.param_name] = FlatMember(unit._handle, number)
        for shared in flat._shared_param_infos:
            first = members[id(shared.prim_module), shared.prim_param_name]
            members[id(shared.module), shared.param_name] = first
    return members


def flat_units(model: nn.Module) -> Iterator[Any]:
    """Yield the units of FSDP1 that have parameters."""
    for module in model.modules():
        if "FullyShardedDataParallel" in class_names(module) and getattr(module, "_handle", None) is not None:
            yield module


def local_shard(handle: FlatParamHandle) -> torch.Tensor:
    """Return this rank's range of a unit in full precision, with the padding at its end."""
    flat = handle.flat_param
    shard = getattr(flat, "_local_shard", None)  # there is one since the first forward pass
    return (flat.data if shard is None else shard).detach()


def original_buffer_dtypes(model: nn.Module) -> dict[Place, torch.dtype]:
    """Return the dtypes that buffers had before FSDP1 cast them for mixed precision.

    Source:
        torch/distributed/fsdp/_state_dict_utils.py (`_common_unshard_post_state_dict_hook`)
    """
    dtypes: dict[Place, torch.dtype] = {}
    for unit in model.modules():
        precision = getattr(unit, "mixed_precision", None)
        known = getattr(unit, "_buffer_name_to_orig_dtype", None)
        if not known or getattr(precision, "buffer_dtype", None) is None:
            continue
        for path, module in unit.named_modules():
            for key in module._buffers:
                name = without_segments(joined(path, key), WRAPPERS)
                if name in known and name not in unit._ignored_buffer_names:
                    dtypes[id(module), key] = known[name]
    return dtypes


def _latest(handle: FlatParamHandle, number: int, info: _ShardParamInfo) -> torch.Tensor:
    """Return the elements of a parameter in this rank's range.

    Whoever has given the parameter other memory (an exponential moving average that is swapped in) means
    that one; FSDP1 copies it into the range before it computes.
    """
    shard, flat = local_shard(handle), handle.flat_param
    ours: torch.Tensor = shard[info.offset_in_shard : info.offset_in_shard + info.numel_in_shard]
    is_gathered = flat.data_ptr() != shard.data_ptr()
    if flat._params is None or is_gathered or getattr(handle, "_skipped_use_sharded_views", False):
        return ours
    where = flat._param_infos[number]
    given = getattr(where.module, where.param_name, ours).detach()
    is_other = given.untyped_storage().data_ptr() != shard.untyped_storage().data_ptr()
    return given.reshape(-1) if is_other and given.numel() == ours.numel() else ours


def _memory_order(name: str, shape: tuple[int, ...], strides: tuple[int, ...]) -> list[int]:
    """Return the dimensions from the one whose neighbours lie farthest apart to the nearest.

    Raises:
        UnsupportedLayoutError: The parameter was a view with gaps; FSDP1 has flattened other elements.
    """
    sizes = [d for d in range(len(shape)) if shape[d] > 1]
    singles = [d for d in range(len(shape)) if shape[d] <= 1]
    order = [*singles, *sorted(sizes, key=lambda d: -strides[d])]
    dense = row_major_strides([shape[d] for d in order])
    if any(strides[d] != dense[at] for at, d in enumerate(order) if shape[d] > 1):
        raise UnsupportedLayoutError(
            name,
            "was a view with gaps or repetitions when FSDP1 flattened it",
            saw=f"strides {list(strides)} of shape {list(shape)}",
            hint="Make it contiguous before wrapping: parameter.data = parameter.data.contiguous().",
        )
    return order


def _moved(box: Box, origin: tuple[int, ...], to: tuple[int, ...]) -> Box:
    """Return a box that has the place in relation to `to` which this one has to `origin`."""
    own = box.relative_to(origin)
    return Box(
        tuple(a + b for a, b in zip(own.start, to, strict=True)),
        tuple(a + b for a, b in zip(own.stop, to, strict=True)),
    )
