"""Files of all ranks, written by torch's own classes in one process: its process group is only told."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard as LocalShard
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed._shard.sharded_tensor.metadata import ShardedTensorMetadata, TensorProperties
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore

State = Mapping[str, torch.Tensor]
Placing = Callable[[torch.Tensor], Sequence[Placement]]


@contextmanager
def as_rank(rank: int, world_size: int) -> Iterator[None]:
    """Be one of many ranks, as far as torch can tell."""
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
        # torch remembers, by equal arguments, results that hold the mesh of whoever computed them.
        _clear_sharding_prop_cache()


def verl_name(rank: int, world_size: int) -> str:
    return f"model_world_size_{world_size}_rank_{rank}.pt"


def along_rows(tensor: torch.Tensor) -> list[Placement]:
    """Place as FSDP2 does."""
    return [Shard(0) if tensor.dim() else Replicate()]


def hybrid(tensor: torch.Tensor) -> list[Placement]:
    """Place as FSDP2 does with replicas."""
    return [Replicate(), *along_rows(tensor)]


def over_tensor_parallelism(tensor: torch.Tensor) -> list[Placement]:
    """Place as FSDP2 does over tensor parallelism: by rows, by columns, or not at all, as shapes have it."""
    if tensor.dim() == 0:
        return [Replicate(), Replicate()]
    if tensor.dim() == 1:
        return [Shard(0), Replicate()]
    if tensor.shape[1] % 2:
        return [_StridedShard(0, split_factor=2), Shard(0)]
    return [Shard(0), Shard(1)]


def local_part(
    tensor: torch.Tensor, mesh: Sequence[int], placements: Sequence[Placement], coordinate: Sequence[int]
) -> torch.Tensor:
    """Return what torch leaves one rank of a tensor."""
    local = tensor.detach()
    for size, placement, index in zip(mesh, placements, coordinate, strict=True):
        if isinstance(placement, Shard | _StridedShard):
            parts, _ = placement._split_tensor(local, size, with_padding=False, contiguous=True)
            local = parts[index]
    return local.clone()


def dtensor(
    tensor: torch.Tensor, mesh: DeviceMesh, placements: Sequence[Placement], local: torch.Tensor
) -> DTensor:
    """Return a DTensor with a local tensor that nobody checks."""
    whole = torch.empty(tensor.shape, device="meta")
    made = DTensor.from_local(
        local, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )
    assert isinstance(made, DTensor)
    return made


def write_dtensors(
    tensors: State,
    folder: Path,
    *,
    mesh_shape: tuple[int, ...],
    place: Placing = along_rows,
    wrap: Callable[[dict[str, Any]], Any] = dict,
    name_of: Callable[[int, int], str] = verl_name,
) -> Path:
    """Write what every rank of a mesh would save of tensors; one object stays one object."""
    folder.mkdir(parents=True)
    coordinates = list(itertools.product(*map(range, mesh_shape)))
    for rank, coordinate in enumerate(coordinates):
        with as_rank(rank, len(coordinates)):
            mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=tuple("abc"[: len(mesh_shape)]))
            made: dict[int, DTensor] = {}
            for tensor in tensors.values():
                placements = place(tensor)
                local = local_part(tensor, mesh_shape, placements, coordinate)
                made.setdefault(id(tensor), dtensor(tensor, mesh, placements, local))
            state = {name: made[id(tensor)] for name, tensor in tensors.items()}
            torch.save(wrap(state), folder / name_of(rank, len(coordinates)))
    return folder


def sharded_tensor(tensor: torch.Tensor, rank: int, world_size: int, parts: int = 1) -> ShardedTensor:
    """Return a rank's ShardedTensor of rows, each rank's in one shard or in several."""
    bounds = [len(tensor) * i // (world_size * parts) for i in range(world_size * parts + 1)]
    shards = []
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        offsets, sizes = [start, *([0] * (tensor.dim() - 1))], [stop - start, *tensor.shape[1:]]
        shards.append(ShardMetadata(offsets, sizes, f"rank:{number // parts}/cpu"))
    local = [
        LocalShard(tensor[m.shard_offsets[0] : m.shard_offsets[0] + m.shard_sizes[0]].clone(), m)
        for m in shards[rank * parts : (rank + 1) * parts]
    ]
    metadata = ShardedTensorMetadata(shards, tensor.shape, TensorProperties(dtype=tensor.dtype))
    return ShardedTensor._init_from_local_shards_and_global_metadata(local, metadata)


def write_sharded_tensors(tensors: State, folder: Path, *, world_size: int, parts: int = 1) -> Path:
    """Write what every rank would save of tensors as ShardedTensors; those without dimensions are plain."""
    folder.mkdir(parents=True)
    for rank in range(world_size):
        with as_rank(rank, world_size), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's, of ShardedTensor itself
            made: dict[int, Any] = {}
            for tensor in tensors.values():
                if id(tensor) not in made:
                    made[id(tensor)] = (
                        sharded_tensor(tensor, rank, world_size, parts) if tensor.dim() else tensor
                    )
            state = {name: made[id(tensor)] for name, tensor in tensors.items()}
            torch.save(state, folder / f"pytorch_model_fsdp_0_rank{rank}.bin")
    return folder
