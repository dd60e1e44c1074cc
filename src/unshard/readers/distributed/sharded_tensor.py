"""One rank's part of a ShardedTensor, which says of every shard of all ranks where it belongs.

    state    (local shards, metadata, process group, sharding specification, ...)
    Shard    tensor, and its metadata: offsets, sizes, placement
    metadata size of the whole; the metadata of the shards of all ranks; dtype

torch opens such a file only in a process group of the same size; here it is data.

Source:
    torch/distributed/_shard/sharded_tensor/api.py (`ShardedTensor.__getstate__`), metadata.py, shard.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from unshard.dtypes import DType
from unshard.errors import UnsafeFileError
from unshard.readers.distributed.device_mesh import another_rank, state_entries
from unshard.readers.distributed.parts import DistributedTensor, LocalPiece
from unshard.readers.distributed.reading import Reading
from unshard.readers.torch_save.torch_objects import (
    OtherTensor,
    PartRecord,
    describe_tensor,
    integers,
    is_tensor,
    named_dtype,
)
from unshard.readers.torch_save.torch_storages import TorchFile, impossible
from unshard.readers.unpickling import Entries, Record
from unshard.tensors import Box


def describe_sharded_tensor(part: PartRecord, reading: Reading, name: str) -> DistributedTensor | OtherTensor:
    """Return what a rank holds of a ShardedTensor.

    Raises:
        UnsafeFileError: It contradicts itself, or another rank wrote the file.
    """
    subject = f"{reading.name}: {name}"
    match part.attributes:
        case (list(shards), Record() as metadata, *others):
            pass
        case _:
            raise impossible(subject, "is a ShardedTensor without shards or metadata")
    world_size = _require_own(others, reading)
    about = state_entries(metadata)
    if about is None:
        raise impossible(subject, "is a ShardedTensor without metadata")
    shape = integers(about.get("size"), subject)
    if part.shape is not None and part.shape != shape:
        raise impossible(subject, "has two shapes", saw=f"{shape}", expected=f"{part.shape}")
    everything = _boxes(about.get("shards_metadata"), len(shape), reading, subject)
    reading.spend(len(shards))
    dtype = part.dtype or _dtype(about.get("tensor_properties"))
    pieces: list[LocalPiece] = []
    for shard in shards:
        piece = _piece(shard, reading.saved, name, len(shape))
        if isinstance(piece, OtherTensor):
            return piece
        dtype = dtype or piece.stored.tensor.dtype
        if piece.stored.tensor.dtype != dtype:
            saw = f"{piece.stored.tensor.dtype} in a ShardedTensor of {dtype}"
            raise impossible(subject, "has a shard of another dtype", saw=saw)
        if piece.box not in everything:
            saw = f"{list(piece.box.start)} to {list(piece.box.stop)}"
            raise impossible(subject, "has a shard that its metadata does not name", saw=saw)
        pieces.append(piece)
    if dtype is None:
        return OtherTensor("a ShardedTensor of a dtype that is not read")
    return DistributedTensor("ShardedTensor", shape, dtype, pieces, world_size, everything)


def _require_own(others: Sequence[object], reading: Reading) -> int | None:
    """Return how many ranks there were, or None where the file does not tell.

    Raises:
        UnsafeFileError: The file says that its rank is another one than its name says.
    """
    for value in others:
        entries = state_entries(value)
        if entries is None or "global_rank" not in entries:
            continue
        told, world_size = entries["global_rank"], entries.get("global_world_size")
        if type(told) is int and reading.rank not in (None, told):
            raise another_rank(reading.name, f"rank {told}", reading.rank)
        return world_size if type(world_size) is int else None
    return None


def _piece(shard: object, saved: TorchFile, name: str, dimensions: int) -> LocalPiece | OtherTensor:
    subject = f"{saved.file.path.name}: {name}"
    entries = state_entries(shard)
    tensor = None if entries is None else entries.get("tensor")
    if entries is None or not is_tensor(tensor):
        raise impossible(subject, "has a shard without a tensor")
    box = _box(entries.get("metadata"), dimensions, subject)
    stored = describe_tensor(cast("Record", tensor), saved, name)
    if isinstance(stored, OtherTensor):
        return OtherTensor(f"a ShardedTensor of tensors that are {stored.kind}")
    if stored.tensor.shape != box.shape:
        raise UnsafeFileError(
            subject,
            "has a shard of another shape than its metadata says",
            saw=f"{list(stored.tensor.shape)}",
            expected=f"{list(box.shape)}",
            hint="The file is of two saves, or damaged. Copy it again.",
        )
    return LocalPiece(box, stored)


def _boxes(metadata: object, dimensions: int, reading: Reading, subject: str) -> frozenset[Box]:
    """Return the boxes of the shards of all ranks."""
    if type(metadata) is not list:
        raise impossible(subject, "has metadata without shards")
    return reading.boxes(metadata, dimensions, lambda one: _box(one, dimensions, subject))


def _box(metadata: object, dimensions: int, subject: str) -> Box:
    entries = state_entries(metadata) or Entries()
    offsets, sizes = (integers(entries.get(key), subject) for key in ("shard_offsets", "shard_sizes"))
    if len(offsets) != dimensions or len(sizes) != dimensions:
        raise impossible(subject, "has a shard of another number of dimensions", saw=f"{offsets}, {sizes}")
    return Box(offsets, tuple(start + size for start, size in zip(offsets, sizes, strict=True)))


def _dtype(properties: object) -> DType | None:
    state = properties.state if type(properties) is Record else None
    return named_dtype(state[0]) if type(state) is tuple and state else None
