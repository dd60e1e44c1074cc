"""Distributed tensors as every version of torch pickles them, and as none does."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from reader_suite import opened
from torch_archives import StorageRef, TensorRef, torch_entries, write_archive

from rank_writers import verl_name
from unshard.errors import InputError, UnsupportedLayoutError


@dataclass(frozen=True)
class Named:
    """A class or function by its path, which this torch need not have."""

    path: str

    def __call__(self) -> None:
        raise NotImplementedError


@dataclass
class Made:
    """An object of a class by its path."""

    path: str
    args: tuple[Any, ...] = ()
    state: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Named(self.path), self.args, self.state


class VersionPickler(pickle._Pickler):
    """Pickles names of classes without looking for the classes."""

    def save_named(self, named: Named) -> None:
        module, _, name = named.path.rpartition(".")
        self.write(f"c{module}\n{name}\n".encode())  # type: ignore[attr-defined]
        self.memoize(named)  # type: ignore[attr-defined]

    dispatch: ClassVar[dict[type, Callable[..., Any]]] = {**pickle._Pickler.dispatch, Named: save_named}

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, StorageRef):
            return "storage", obj.kind, obj.key, obj.location, obj.count
        return None


def pickled(value: Any) -> bytes:
    out = io.BytesIO()
    VersionPickler(out, 2).dump(value)
    return out.getvalue()


WHOLE = torch.arange(14, dtype=torch.float32).reshape(7, 2)
ROWS = (slice(0, 4), slice(4, 7))


def integers(key: str, shape: Sequence[int], kind: Any = torch.IntStorage) -> TensorRef:
    """Return a tensor of ranks."""
    strides = [1] if len(shape) == 1 else [shape[1], 1]
    count = int(torch.Size(shape).numel())
    return TensorRef(StorageRef(key, count, kind), tuple(shape), tuple(strides))


def mesh_tensor(path: str, rank: int, *, kind: Any = torch.IntStorage) -> Made:
    """Return a mesh as it was until torch 2.9."""
    state = {
        "device_type": "cuda",
        "mesh": integers("ranks", [2], kind),
        "mesh_dim_names": ("fsdp",),
        "_dim_group_infos": [("ptd:0", [0, 1], "0")],
        "_coordinate_on_dim": [rank],
    }
    return Made(path, (), state)


def mesh_layout(layout: Any, rank: int) -> Made:
    """Return a mesh as it is since torch 2.10."""
    state = {"_layout": layout, "_rank_map": integers("ranks", [2]), "_rank": rank, "_root_mesh": None}
    return Made("torch.distributed.device_mesh.DeviceMesh", (), state)


def flat_layout(shape: Any, stride: Any) -> Made:
    return Made("torch.distributed._mesh_layout._FlatLayout", (), {"shape": shape, "stride": stride})


@dataclass(frozen=True)
class Version:
    """What differs between versions of torch.

    Attributes:
        name: The version.
        dtensor: The path of DTensor.
        spec: The module of its specification.
        placements: The module of the placements.
        mesh: Makes the mesh for a rank.
        slots: Whether a DTensor's attributes stand in slots.
        more: What else the specification has.
    """

    name: str
    dtensor: str
    spec: str
    placements: str
    mesh: Callable[[int], Made]
    slots: bool = True
    more: Mapping[str, Any] = field(default_factory=dict)

    def state(self, rank: int, **changes: Any) -> dict[str, Any]:
        """Return what a rank saves of one tensor in two parts by rows."""
        rows = WHOLE[ROWS[rank]]
        local = TensorRef(StorageRef("0", rows.numel(), torch.FloatStorage), tuple(rows.shape), (2, 1))
        spec = {
            "mesh": self.mesh(rank),
            "placements": (Made(f"{self.placements}.Shard", (), {"dim": 0}),),
            "tensor_meta": Made(f"{self.spec}.TensorMeta", (torch.Size((7, 2)), (2, 1), torch.float32)),
            **self.more,
        } | changes
        attributes = {"_local_tensor": local, "_spec": Made(f"{self.spec}.DTensorSpec", (), spec)}
        kind = Named(self.dtensor)
        made = (kind, torch.float32, (7, 2), (2, 1), 0, torch.strided, torch.device("cpu"), False)
        rebuild = Named("torch._utils._rebuild_wrapper_subclass")
        state = (None, attributes) if self.slots else attributes
        return {"w": Made("torch._tensor._rebuild_from_type_v2", (rebuild, kind, made, state))}


OLD, MIDDLE = "torch.distributed._tensor", "torch.distributed.tensor"
NEW_MESH = "torch.distributed.device_mesh.DeviceMesh"
AXES = (flat_layout((2,), (1,)),)
LAYOUT = Made("torch.distributed._mesh_layout._MeshLayout", (), {"axes": AXES})
SHAPES = Made("torch.distributed._mesh_layout._MeshLayout", (), {"shape": (2,), "stride": (1,)})
NESTED = Made("torch.distributed._mesh_layout._MeshLayout", (), {"shape": ((2,),), "stride": ((1,),)})
ORDER = Made(f"{MIDDLE}._dtensor_spec.ShardOrderEntry", (0, (0,)))
V2_1 = Version(
    "2.1",
    f"{OLD}.api.DTensor",
    f"{OLD}.placement_types",
    f"{OLD}.placement_types",
    lambda rank: mesh_tensor(f"{OLD}.device_mesh.DeviceMesh", rank, kind=torch.LongStorage),
)
V2_4 = replace(V2_1, name="2.4", mesh=lambda rank: mesh_tensor(NEW_MESH, rank))
V2_5 = Version(
    "2.5",
    f"{MIDDLE}.DTensor",
    f"{MIDDLE}._dtensor_spec",
    f"{MIDDLE}.placement_types",
    lambda rank: mesh_tensor(NEW_MESH, rank),
)
V2_14 = replace(
    V2_5, name="2.14", mesh=lambda rank: mesh_layout(LAYOUT, rank), more={"shard_order": (ORDER,)}
)
VERSIONS = [
    V2_1,
    V2_4,
    V2_5,
    V2_14,
    replace(V2_5, name="without slots", slots=False),
    replace(V2_5, name="sizes and strides", mesh=lambda rank: mesh_layout(SHAPES, rank)),
    replace(V2_5, name="nested sizes", mesh=lambda rank: mesh_layout(NESTED, rank)),
    replace(V2_5, name="another module", dtensor=f"{MIDDLE}._api.DTensor"),
]


def write_rank(
    folder: Path, rank: int, state: Any, *, ranks: Sequence[int] = (0, 1), wide: bool = False
) -> None:
    storages = {
        "0": WHOLE[ROWS[rank]].numpy().tobytes(),
        "ranks": struct.pack(f"<{len(ranks)}{'q' if wide else 'i'}", *ranks),
    }
    write_archive(folder / verl_name(rank, 2), torch_entries(pickled(state), storages))


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_dtensors_of_every_version_are_read(version: Version, tmp_path: Path) -> None:
    for rank in range(2):
        write_rank(tmp_path, rank, version.state(rank), wide=version is V2_1)
    assert opened(tmp_path)["w"].numpy().tolist() == WHOLE.tolist()


@pytest.mark.parametrize(
    "shard",
    [
        Made(f"{MIDDLE}.placement_types.Shard", (0,)),
        Made(f"{MIDDLE}.placement_types.Shard", (), (0,)),
        Made(f"{MIDDLE}.placement_types.Shard", (), {"dim": -2}),
        Made(f"{OLD}.placement_types._StridedShard", (), {"dim": 0, "split_factor": 1}),
        Made("torch._C._distributed.Shard", (), {"dim": 0}),
    ],
    ids=["arguments", "a tuple", "from the end", "strided by one", "of C++"],
)
def test_placements_are_read_however_they_are_pickled(shard: Made, tmp_path: Path) -> None:
    for rank in range(2):
        write_rank(tmp_path, rank, V2_5.state(rank, placements=[shard]))
    assert opened(tmp_path)["w"].numpy().tolist() == WHOLE.tolist()


@pytest.mark.parametrize("kind", ["Partial", "_Partial", "_MaskPartial", "_NormPartial"])
def test_sums_that_are_not_carried_out_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    placements = (Made(f"{OLD}.placement_types.{kind}", (), {"reduce_op": "sum"}),)
    write_rank(tmp_path, 0, V2_4.state(0, placements=placements))
    with pytest.raises(UnsupportedLayoutError, match=f"`w` is placed as {kind}: a sum"):
        opened(tmp_path)


def test_a_placement_of_an_unknown_class_is_refused_by_name(tmp_path: Path) -> None:
    write_rank(tmp_path, 0, V2_5.state(0, placements=(Made("torchtitan.Ragged", (), {"dim": 0}),)))
    with pytest.raises(UnsupportedLayoutError, match=r"`w` is placed as torchtitan\.Ragged"):
        opened(tmp_path)


def test_ranks_of_a_mesh_may_be_in_any_order(tmp_path: Path) -> None:
    """Rank 1 is the first of the mesh, so that its file has the first rows."""
    for rank in range(2):
        mesh = Made(NEW_MESH, (), {"mesh": integers("ranks", [2])})
        state = V2_5.state(1 - rank, mesh=mesh)
        storages = {"0": WHOLE[ROWS[1 - rank]].numpy().tobytes(), "ranks": struct.pack("<2i", 1, 0)}
        write_archive(tmp_path / verl_name(rank, 2), torch_entries(pickled(state), storages))
    assert opened(tmp_path)["w"].numpy().tolist() == WHOLE.tolist()


def test_mesh_dimensions_cut_in_the_order_that_is_told(tmp_path: Path) -> None:
    """Both dimensions of a mesh cut the rows, the second one first."""
    whole = torch.arange(8, dtype=torch.float32).reshape(8, 1)
    entry = Made(f"{MIDDLE}._dtensor_spec.ShardOrderEntry", (0, (1, 0)))
    shard = Made(f"{MIDDLE}.placement_types.Shard", (), {"dim": 0})
    layout = Made("torch.distributed._mesh_layout._MeshLayout", (), {"shape": (2, 2), "stride": (2, 1)})
    rebuild, kind = Named("torch._utils._rebuild_wrapper_subclass"), Named(f"{MIDDLE}.DTensor")
    for rank in range(4):
        outer, inner = divmod(rank, 2)
        rows = whole[4 * inner + 2 * outer :][:2]
        mesh = Made(NEW_MESH, (), {"_layout": layout, "_rank_map": integers("ranks", [4]), "_rank": rank})
        spec = {"mesh": mesh, "placements": (shard, shard), "tensor_meta": None, "shard_order": (entry,)}
        local = TensorRef(StorageRef("0", 2, torch.FloatStorage), (2, 1), (1, 1))
        attributes = {"_local_tensor": local, "_spec": Made(f"{MIDDLE}._dtensor_spec.DTensorSpec", (), spec)}
        made = (kind, torch.float32, (8, 1), (1, 1), 0, torch.strided, "cpu", False)
        state = {"w": Made("torch._tensor._rebuild_from_type_v2", (rebuild, kind, made, (None, attributes)))}
        storages = {"0": rows.numpy().tobytes(), "ranks": struct.pack("<4i", 0, 1, 2, 3)}
        write_archive(tmp_path / verl_name(rank, 4), torch_entries(pickled(state), storages))
    assert opened(tmp_path)["w"].numpy().tolist() == whole.tolist()


@pytest.mark.parametrize("own", [{"_rank": 1}, {"_coordinate_on_dim": [1]}, {"_coordinate_on_dim": (0, 0)}])
def test_a_file_that_knows_another_rank_than_its_name_is_refused(own: dict[str, Any], tmp_path: Path) -> None:
    mesh = Made(NEW_MESH, (), {"mesh": integers("ranks", [2]), **own})
    write_rank(tmp_path, 0, V2_5.state(0, mesh=mesh))
    with pytest.raises(InputError, match=r"rank_0\.pt` was written by another rank than its name says"):
        opened(tmp_path)


def shard(offsets: Any, sizes: Any, rank: int = 0) -> Made:
    """Return where a shard of a ShardedTensor belongs."""
    placement = Made("torch.distributed.remote_device._remote_device", (), {"_rank": rank})
    state = {"shard_offsets": offsets, "shard_sizes": sizes, "placement": placement}
    return Made("torch.distributed._shard.metadata.ShardMetadata", (), (None, state))


def sharded(
    rank: int,
    *,
    package: str = "torch.distributed._shard.sharded_tensor",
    plain: bool = False,
    **changes: Any,
) -> dict[str, Any]:
    """Return what a rank saves of a ShardedTensor in two parts by rows."""
    rows = WHOLE[ROWS[rank]]
    everything = [shard([0, 0], [4, 2]), shard([4, 0], [3, 2], 1)]
    given = {
        "offsets": [4 * rank, 0],
        "sizes": list(rows.shape),
        "metadata": everything,
        "size": torch.Size((7, 2)),
        "told": rank,
        "tensor": TensorRef(StorageRef("0", rows.numel(), torch.FloatStorage), tuple(rows.shape), (2, 1)),
    } | changes
    properties = Made(f"{package}.metadata.TensorProperties", (), (torch.float32, 0, False, 0, False))
    metadata = {"shards_metadata": given["metadata"], "size": given["size"], "tensor_properties": properties}
    own = {"tensor": given["tensor"], "metadata": shard(given["offsets"], given["sizes"])}
    group = {"local_rank": rank, "global_rank": given["told"], "local_world_size": 2, "global_world_size": 2}
    state = (
        [Made(f"{package}.shard.Shard", (), (None, own))],
        Made(f"{package}.metadata.ShardedTensorMetadata", (), metadata),
        Made(f"{package}.api.ShardedTensor.ProcessGroupState", (), group),
        None,
        False,
    )
    kind = Named(f"{package}.api.ShardedTensor")
    if plain:
        return {"w": Made(kind.path, (), state)}
    made = (kind, torch.float32, (7, 2), (2, 1), 0, torch.strided, "cpu", False)
    rebuild = Named("torch._utils._rebuild_wrapper_subclass")
    return {"w": Made("torch._tensor._rebuild_from_type_v2", (rebuild, kind, made, state))}


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("package", ["_shard.sharded_tensor", "_sharded_tensor"])
def test_sharded_tensors_of_every_version_are_read(package: str, plain: bool, tmp_path: Path) -> None:
    for rank in range(2):
        write_rank(tmp_path, rank, sharded(rank, package=f"torch.distributed.{package}", plain=plain))
    assert opened(tmp_path)["w"].numpy().tolist() == WHOLE.tolist()


HUGE = 1 << 61
SHARD_0 = Made(f"{MIDDLE}.placement_types.Shard", (), {"dim": 0})


def strided(factor: Any) -> Made:
    return Made(f"{MIDDLE}.placement_types._StridedShard", (), {"dim": 0, "split_factor": factor})


def mesh(**state: Any) -> Made:
    return Made(NEW_MESH, (), state)


def layout(shape: Any, stride: Any) -> Made:
    return Made("torch.distributed._mesh_layout._MeshLayout", (), {"shape": shape, "stride": stride})


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)
IMPOSSIBLE = {
    "no placements": {"placements": ()},
    "placements that are no list": {"placements": SHARD_0},
    "more placements than the mesh has dimensions": {"placements": (SHARD_0, SHARD_0)},
    "a dimension that is not there": {"placements": (Made("torch.Shard", (), {"dim": 2}),)},
    "a dimension that is no number": {"placements": (Made("torch.Shard", (), {"dim": CIRCLE}),)},
    "no dimension": {"placements": (Made("torch.Shard"),)},
    "a factor of none": {"placements": (strided(0),)},
    "a factor below none": {"placements": (strided(-1),)},
    "a factor that is larger than anything": {"placements": (strided(HUGE),)},
    "placements in a circle": {"placements": CIRCLE},
    "another shape": {"tensor_meta": Made("torch.TensorMeta", (torch.Size((7, 3)), (3, 1), torch.float32))},
    "a shape in a circle": {"tensor_meta": Made("torch.TensorMeta", (CIRCLE,))},
    "no mesh": {"mesh": None},
    "a mesh of nothing": {"mesh": mesh()},
    "a mesh of text": {"mesh": mesh(mesh="ranks")},
    "a mesh of floats": {"mesh": mesh(mesh=integers("0", [8], torch.FloatStorage))},
    "a mesh without ranks": {
        "mesh": mesh(mesh=TensorRef(StorageRef("ranks", 2, torch.IntStorage), (0,), (1,)))
    },
    "a mesh beyond its storage": {"mesh": mesh(mesh=integers("ranks", [3]))},
    "a mesh of one rank repeated": {
        "mesh": mesh(mesh=TensorRef(StorageRef("ranks", 2, torch.IntStorage), (HUGE,), (0,)))
    },
    "a layout without a list of ranks": {"mesh": mesh(_layout=LAYOUT)},
    "a layout of nothing": {"mesh": mesh(_layout=None, _rank_map=integers("ranks", [2]))},
    "a layout in a circle": {"mesh": mesh(_layout=layout(CIRCLE, CIRCLE), _rank_map=integers("ranks", [2]))},
    "a layout of text": {"mesh": mesh(_layout=layout(("a",), (1,)), _rank_map=integers("ranks", [2]))},
    "a layout below nothing": {"mesh": mesh(_layout=layout((-2,), (1,)), _rank_map=integers("ranks", [2]))},
    "a layout of huge sizes": {
        "mesh": mesh(_layout=layout((HUGE,), (HUGE,)), _rank_map=integers("ranks", [2]))
    },
    "a layout of a hundred dimensions": {
        "mesh": mesh(_layout=layout((1,) * 100, (1,) * 100), _rank_map=integers("ranks", [2]))
    },
    "an order of other dimensions": {"shard_order": (Made("torch.ShardOrderEntry", (0, (1,))),)},
    "an order that names one twice": {"shard_order": (Made("torch.ShardOrderEntry", (0, (0, 0))),)},
    "an order of nothing": {"shard_order": (Made("torch.ShardOrderEntry", (0, ())),)},
    "an order of text": {"shard_order": ("a",)},
}


@pytest.mark.parametrize("changes", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_specifications_that_torch_does_not_write_are_refused(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    for rank in range(2):
        write_rank(tmp_path, rank, V2_5.state(rank, **changes))
    with pytest.raises(InputError):
        opened(tmp_path)


IMPOSSIBLE_SHARDS = {
    "an offset below nothing": {"offsets": [-4, 0]},
    "an offset beyond the end": {"offsets": [HUGE, 0]},
    "sizes of another number": {"sizes": [4]},
    "sizes that are not the tensor's": {"sizes": [3, 2]},
    "a shape in text": {"size": "7x2"},
    "another shape": {"size": torch.Size((8, 2))},
    "no metadata": {"metadata": None},
    "metadata in a circle": {"metadata": CIRCLE},
    "metadata without its own shard": {"metadata": [shard([0, 0], [7, 2])]},
    "metadata that overlap": {"metadata": [shard([0, 0], [4, 2]), shard([3, 0], [4, 2])], "offsets": [3, 0]},
    "no tensor": {"tensor": None},
    "another rank": {"told": 5},
}


@pytest.mark.parametrize("changes", IMPOSSIBLE_SHARDS.values(), ids=IMPOSSIBLE_SHARDS.keys())
def test_shards_that_torch_does_not_write_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    for rank in range(2):
        write_rank(tmp_path, rank, sharded(rank, **changes))
    with pytest.raises(InputError):
        opened(tmp_path)


def test_a_list_that_is_referred_to_again_and_again_is_read_once(tmp_path: Path) -> None:
    """A small file in which many tensors have the same long list of shards."""
    everything = [shard([0, 0], [4, 2]), *(shard([4 + i, 0], [0, 2]) for i in range(20_000))]
    one = sharded(0, metadata=everything)["w"]
    state = {f"w{i}": Made(one.path, one.args) for i in range(2_000)}
    write_rank(tmp_path, 0, state)
    with pytest.raises(InputError, match="lacks files of ranks"):
        opened(tmp_path)


def test_stretches_without_end_are_refused_in_time(tmp_path: Path) -> None:
    """Every tensor is cut into thousands of stretches, each in another way."""
    state = {}
    for i in range(3_000):
        placements = (strided(65_000 - i),)
        state[f"w{i}"] = V2_5.state(0, placements=placements, tensor_meta=None)["w"]
        arguments = state[f"w{i}"].args
        made = (*arguments[2][:2], (HUGE, 2), *arguments[2][3:])
        state[f"w{i}"] = Made(state[f"w{i}"].path, (*arguments[:2], made, *arguments[3:]))
    write_rank(tmp_path, 0, state)
    with pytest.raises(InputError):
        opened(tmp_path)
