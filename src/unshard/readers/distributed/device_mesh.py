"""Where a rank is in the mesh of a DTensor.

    until torch 2.9   mesh: a tensor of ranks in the mesh's shape
    since torch 2.10  _layout: sizes and strides of every dimension, over _rank_map: a list of ranks
    most versions     _coordinate_on_dim: where the rank that wrote the file is

A mesh that is a slice of a larger one has the larger one's list: its dimensions do not reach all ranks, and
those that hold one coordinate each are as many meshes of one layout.

Source:
    torch/distributed/device_mesh.py (`DeviceMesh`), _mesh_layout.py (`_FlatLayout`,
    `_MeshLayout.remap_to_tensor`).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from unshard.errors import UnsafeFileError
from unshard.readers.distributed.placements import Span
from unshard.readers.torch_save.torch_objects import (
    OtherTensor,
    describe_tensor,
    integers,
    is_tensor,
)
from unshard.readers.torch_save.torch_storages import TorchFile, impossible
from unshard.readers.unpickling import Entries, Record

_MOST_RANKS = 1 << 20
_MOST_DIMENSIONS = 16


@dataclass(frozen=True, slots=True)
class Position:
    """Where a rank is in a mesh.

    Attributes:
        sizes: How many ranks the mesh has along every dimension.
        coordinate: Where the rank is, or None where it is not in the mesh.
        world_size: More than every rank that the mesh knows of.
        listed: How many ranks that are.
    """

    sizes: tuple[int, ...]
    coordinate: tuple[int, ...] | None
    world_size: int
    listed: int


def find_position(mesh: object, saved: TorchFile, rank: int | None) -> Position:
    """Return where `rank` is in a mesh that a file of that rank describes; None for the rank it tells.

    Raises:
        UnsafeFileError: It is no mesh, or it says that another rank wrote the file.
    """
    subject = saved.file.path.name
    entries = state_entries(mesh)
    if entries is None:
        raise impossible(subject, "has a tensor on a mesh that is none")
    axes = None if is_tensor(entries.get("mesh")) else _axes(entries.get("_layout"), subject)
    shape, ranks = _ranks(entries, "mesh" if axes is None else "_rank_map", saved)
    if axes is None:
        axes = [[(size, stride)] for size, stride in zip(shape, _strides(shape), strict=True)]
    sizes = tuple(math.prod(size for size, _ in axis) for axis in axes)
    rank = _own_rank(entries, axes, ranks, subject) if rank is None else rank
    coordinate = _coordinate(axes, ranks.index(rank)) if rank in ranks else None
    _require_own(coordinate, entries, rank, subject)
    return Position(sizes, coordinate, max(ranks) + 1, len(ranks))


def state_entries(value: object) -> Entries | None:
    """Return the attributes of a record: a dictionary, or those that stand in slots, which come second."""
    state = value.state if type(value) is Record else None
    if type(state) is tuple and len(state) == 2:
        state = state[1] if type(state[1]) is Entries else state[0]
    return state if type(state) is Entries else None


def _own_rank(entries: Entries, axes: Sequence[Sequence[Span]], ranks: Sequence[int], subject: str) -> int:
    """Return the rank that wrote the file, as it tells itself."""
    told, own = entries.get("_rank"), entries.get("_coordinate_on_dim")
    if type(told) is int:
        return told
    if isinstance(own, list | tuple):
        coordinate = integers(own, subject)
        found = (rank for i, rank in enumerate(ranks) if _coordinate(axes, i) == coordinate)
        if (rank := next(found, None)) is not None:
            return rank
    return 0


def _require_own(coordinate: tuple[int, ...] | None, entries: Entries, rank: int, subject: str) -> None:
    """Raise where the file says that its rank is another one than its name says."""
    told, own = entries.get("_rank"), entries.get("_coordinate_on_dim")
    if type(told) is int and told != rank:
        raise another_rank(subject, f"rank {told}", rank)
    if isinstance(own, list | tuple) and integers(own, subject) != coordinate:
        raise another_rank(subject, f"the rank at {integers(own, subject)} of its mesh", rank)


def another_rank(subject: str, wrote: str, rank: int) -> UnsafeFileError:
    """Return the error for a file that was written by another rank than its name says."""
    return UnsafeFileError(
        subject,
        "was written by another rank than its name says",
        saw=f"a part of {wrote}",
        expected=f"parts of rank {rank}",
        hint="It was renamed, or copied over another rank's file. Copy the files of all ranks again, with"
        " their names.",
    )


def _axes(layout: object, subject: str) -> list[list[Span]]:
    """Return (size, stride) of every dimension, each of which may be made of several."""
    entries = state_entries(layout)
    if entries is None:
        raise impossible(subject, "has a tensor on a mesh without a layout")
    inner = entries.get("axes")
    if isinstance(inner, list | tuple):
        found = [state_entries(axis) for axis in inner]
        pairs = [(e.get("shape"), e.get("stride")) for e in found if e is not None]
    else:
        shape, stride = entries.get("shape"), entries.get("stride")
        if not isinstance(shape, list | tuple) or not isinstance(stride, list | tuple):
            shape, stride = (shape,), (stride,)
        pairs = list(zip(shape, stride, strict=False))
    if len(pairs) > _MOST_DIMENSIONS:
        raise impossible(subject, "has a mesh of too many dimensions", saw=str(len(pairs)))
    return [_axis(shape, stride, subject) for shape, stride in pairs]


def _axis(shape: object, stride: object, subject: str) -> list[Span]:
    sizes, strides = _flat(shape, subject), _flat(stride, subject)
    if len(sizes) != len(strides):
        raise impossible(subject, "has a mesh whose sizes and strides are not as many")
    return list(zip(integers(sizes, subject), integers(strides, subject), strict=True))


def _flat(value: object, subject: str) -> list[object]:
    """Return the numbers in a number, or in a tuple of numbers and tuples."""
    found: list[object] = []
    pending = [value]
    for _ in range(4 * _MOST_DIMENSIONS):
        if not pending:
            return found
        node = pending.pop()
        if isinstance(node, list | tuple):
            pending += reversed(node[: 4 * _MOST_DIMENSIONS])
        else:
            found.append(node)
    raise impossible(subject, "has a mesh of a dimension that is made of too many")


def _ranks(entries: Entries, name: str, saved: TorchFile) -> tuple[tuple[int, ...], list[int]]:
    """Return the shape of a tensor of ranks, and the ranks."""
    subject = f"{saved.file.path.name}: {name}"
    record = entries.get(name)
    if not is_tensor(record):
        raise impossible(subject, "is no tensor of ranks")
    stored = describe_tensor(cast("Record", record), saved, name)
    if isinstance(stored, OtherTensor) or stored.tensor.dtype.name not in ("int32", "int64"):
        raise impossible(subject, "is no tensor of integers")
    count = math.prod(stored.tensor.shape)
    if not 0 < count <= _MOST_RANKS:
        raise impossible(subject, f"is a mesh of {count} ranks")
    buffer = bytearray(stored.tensor.nbytes)
    stored.tensor.read(0, count, memoryview(buffer))
    code = "i" if stored.tensor.dtype.name == "int32" else "q"
    return stored.tensor.shape, list(struct.unpack(f"<{count}{code}", buffer))


def _coordinate(axes: Sequence[Sequence[Span]], index: int) -> tuple[int, ...]:
    """Return where position `index` of the list of ranks is along every dimension of the mesh.

    Strides are orthogonal: each is a multiple of the span of all smaller ones.
    """
    coordinate = []
    for axis in axes:
        along = 0
        for size, stride in axis:
            along = along * size + (index // max(stride, 1)) % max(size, 1)
        coordinate.append(along)
    return tuple(coordinate)


def _strides(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[d + 1 :]) for d in range(len(shape))]
