"""One rank's part of a DTensor: which boxes of the whole its local tensor holds.

    _local_tensor    a plain tensor
    _spec            a DTensorSpec: mesh; placements, one for every dimension of the mesh; tensor_meta, the
                     whole tensor's shape; shard_order, since torch 2.10, where mesh dimensions that cut
                     one dimension of the tensor do so in another order than from left to right

Nothing is inferred from the local tensor: the whole shape, the mesh and the placements tell what it must
be, and it must be that. Refused by name: `Partial` placements, whose values are still to be added up.

Source:
    torch/distributed/tensor/_api.py (`DTensor.__tensor_flatten__`), _dtensor_spec.py (`DTensorSpec`),
    placement_types.py; before torch 2.5 the same under torch/distributed/_tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from unshard.errors import UnsafeFileError
from unshard.readers.distributed.device_mesh import Position, state_entries
from unshard.readers.distributed.parts import DistributedTensor, LocalPiece
from unshard.readers.distributed.placements import (
    Cut,
    PlacedBox,
    Way,
)
from unshard.readers.distributed.reading import Reading
from unshard.readers.rendering import shown
from unshard.readers.torch_save.torch_objects import (
    OtherTensor,
    PartRecord,
    StoredTensor,
    describe_tensor,
    integers,
    is_tensor,
)
from unshard.readers.torch_save.torch_storages import impossible
from unshard.readers.unpickling import Entries, Record
from unshard.tensors import FileSource, whole_tensor
from unshard.tensors.boxes import row_major_strides

_MOST_STRETCHES = 1 << 16
_SHARD, _STRIDED = "Shard", "_StridedShard"


def describe_dtensor(part: PartRecord, reading: Reading, name: str) -> DistributedTensor | OtherTensor:
    """Return what a rank holds of a DTensor.

    Raises:
        UnsafeFileError: It contradicts itself.
    """
    subject = f"{reading.name}: {name}"
    state = part.attributes
    if type(state) is tuple and len(state) == 2:  # attributes, and those that stand in slots
        state = state[1] if type(state[1]) is Entries else state[0]
    local, spec = (state.get("_local_tensor"), state.get("_spec")) if type(state) is Entries else (None, None)
    described = state_entries(spec)
    if not is_tensor(local) or described is None or part.shape is None:
        raise impossible(subject, "is a DTensor without a local tensor or a specification")
    _require_shape(described, part.shape, subject)
    stored = describe_tensor(cast("Record", local), reading.saved, name)
    if isinstance(stored, OtherTensor):
        return OtherTensor(f"a DTensor of a tensor that is {stored.kind}")
    if part.dtype is not None and part.dtype != stored.tensor.dtype:
        saw = f"{stored.tensor.dtype} in a DTensor of {part.dtype}"
        raise impossible(subject, "has a local tensor of another dtype", saw=saw)
    position = reading.position(described.get("mesh"))
    cuts = _cuts(described, position, part.shape, subject)
    if isinstance(cuts, OtherTensor):
        return cuts
    readings = () if cuts is None else _readings(stored, part.shape, reading.ways(part.shape, cuts), subject)
    return DistributedTensor(
        "DTensor",
        part.shape,
        stored.tensor.dtype,
        next((pieces for pieces in readings if pieces is not None), ()),
        position.world_size,
        readings=readings if len(readings) > 1 else (),
    )


def _require_shape(spec: Entries, shape: tuple[int, ...], subject: str) -> None:
    """Raise where the specification knows another shape than the tensor itself."""
    meta = spec.get("tensor_meta")
    if type(meta) is not Record:
        return
    entries = state_entries(meta)
    told = entries.get("shape") if entries is not None else meta.args[0] if meta.args else None
    if told is not None and integers(told, subject) != shape:
        raise impossible(subject, "has two shapes", saw=f"{integers(told, subject)}", expected=f"{shape}")


@dataclass(frozen=True, slots=True)
class _Placement:
    kind: str
    dimension: int
    factor: int


def _cuts(
    spec: Entries, position: Position, shape: tuple[int, ...], subject: str
) -> tuple[Cut, ...] | OtherTensor | None:
    """Return how the mesh cuts the tensor, or None where the rank is not in the mesh."""
    records = spec.get("placements")
    if not isinstance(records, list | tuple) or len(records) != len(position.sizes):
        saw = f"{shown(records)} for a mesh of {len(position.sizes)} dimensions"
        raise impossible(subject, "has placements that are not those of its mesh", saw=saw)
    placements = []
    for record in records:
        found = _placement(record, len(shape), subject)
        if isinstance(found, OtherTensor):
            return found
        placements.append(found)
    if position.coordinate is None:
        return None
    order = _order(spec.get("shard_order"), placements, subject)
    return tuple(
        Cut(p.dimension, position.sizes[d], position.coordinate[d], p.factor)
        for d, p in ((d, placements[d]) for d in order)
        if p.kind in (_SHARD, _STRIDED)
    )


def _placement(record: object, dimensions: int, subject: str) -> _Placement | OtherTensor:
    kind = record.kind.rpartition(".")[2] if type(record) is Record else ""
    if kind == "Replicate":
        return _Placement(kind, 0, 1)
    if kind in (_SHARD, _STRIDED):
        assert type(record) is Record
        values = _values(record, ("dim", "split_factor"))
        dimension, factor = values.get("dim"), values.get("split_factor", 1)
        match dimension, factor:
            case int(d), int(f) if -dimensions <= d < dimensions and 0 < f <= _MOST_STRETCHES:
                return _Placement(kind, d % dimensions, f)
        raise impossible(subject, "is cut where it has no dimension", saw=f"{kind} of {shown(dimension)}")
    if kind.endswith("Partial"):
        return OtherTensor(f"placed as {kind}: a sum that was not carried out")
    return OtherTensor(f"placed as {shown(record)}")


def _values(record: Record, names: Sequence[str]) -> dict[str, object]:
    """Return the attributes of a small object, in whichever of the ways of pickling it."""
    entries = state_entries(record)
    if entries is not None:
        return dict(entries)
    given = record.state if type(record.state) is tuple else record.args
    return dict(zip(names, given, strict=False))


def _order(entries: object, placements: Sequence[_Placement], subject: str) -> list[int]:
    """Return the mesh dimensions in the order in which they cut."""
    plain = list(range(len(placements)))
    if not isinstance(entries, list | tuple) or any(p.kind == _STRIDED for p in placements):
        return plain  # `_StridedShard` says in itself what its place in the order is
    named: list[int] = []
    for entry in entries:
        values = _values(entry, ("tensor_dim", "mesh_dims")) if type(entry) is Record else {}
        for d in integers(values.get("mesh_dims"), subject):
            if d >= len(placements) or placements[d].kind != _SHARD or d in named:
                raise impossible(subject, "is cut by dimensions of the mesh that do not cut it")
            named.append(d)
    cutting = [d for d in plain if placements[d].kind == _SHARD]
    if sorted(named) != cutting:
        raise impossible(subject, "is cut by dimensions of the mesh that no order names")
    return named


def _readings(
    stored: StoredTensor, shape: tuple[int, ...], ways: tuple[Way, ...], subject: str
) -> tuple[list[LocalPiece] | None, ...]:
    """Return what the local tensor holds in every way, or None where it has not the size for it.

    Raises:
        UnsafeFileError: It has the size for none.
    """
    if not ways:
        raise impossible(subject, "is cut into more stretches than anything")
    readings = tuple(_pieces(stored, way) for way in ways)
    if all(pieces is None for pieces in readings):
        raise UnsafeFileError(
            subject,
            "has a local tensor of another shape than its place in the mesh has",
            saw=f"{list(stored.tensor.shape)}",
            expected=f"{' or '.join(str(list(way.shape)) for way in ways)} of {list(shape)}",
            hint="The file belongs to another rank, or to another save. Copy the files of all ranks again.",
        )
    return readings


def _pieces(stored: StoredTensor, way: Way) -> list[LocalPiece] | None:
    """Return the pieces of a local tensor, or None where it has another size than is held."""
    found = stored.tensor.shape
    if way.shape != found and not (0 in way.shape and 0 in found):
        return None
    if len(way.boxes) == 1:
        return [LocalPiece(way.boxes[0].whole, stored)]
    return [LocalPiece(box.whole, _narrowed(stored, box)) for box in way.boxes]


def _narrowed(stored: StoredTensor, box: PlacedBox) -> StoredTensor:
    """Return part of a stored tensor."""
    source = stored.tensor.pieces[0].source
    assert isinstance(source, FileSource)
    first = sum(i * stride for i, stride in zip(box.local.start, source.strides, strict=True))
    shape = box.local.shape
    plain = row_major_strides(shape)
    strides = tuple(p if n == 1 else s for n, s, p in zip(shape, source.strides, plain, strict=True))
    offset = source.offset + first * source.dtype.itemsize
    part = replace(source, offset=offset, shape=shape, strides=strides)
    return replace(stored, tensor=whole_tensor(part))
