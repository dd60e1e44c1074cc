"""Metadata of DCP: every version of its classes, foreign writers, per-rank files, and what cannot be."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from awkward import read_values, true_values
from reader_suite import opened
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
)

from dcp_folders import (
    HandWriter,
    class_paths,
    pickled_as,
    read_metadata,
    save,
    tiles,
    whole,
    write_metadata,
)
from unshard.errors import (
    DamagedFileError,
    IncompleteCheckpointError,
    InputError,
    UnsafeFileError,
    UnsupportedLayoutError,
)

TENSORS = {
    "layers.0.w": torch.arange(60.0).view(6, 10),
    "number": torch.tensor(2),
    "half": torch.ones(7).half(),
}
OLD_PROPERTIES = "torch.distributed._shard.sharded_tensor.metadata.TensorProperties"
NEW = frozenset(("version",))
NO_META = NEW | {"storage_meta"}


def written(folder: Path) -> Path:
    writer = HandWriter(folder)
    for name, tensor in TENSORS.items():
        writer.add(f"model.{name}", tensor, tiles(tensor))
    writer.add_item("epoch", 3)
    writer.metadata.planner_data = {f"model.{name}": ("model", name) for name in TENSORS} | {
        "epoch": ("epoch",)
    }
    writer.metadata.storage_meta = StorageMeta(Path("/somewhere"), "id")
    writer.metadata.version = "1.0.0"
    return writer.finish()


@pytest.mark.parametrize(
    ("paths", "without", "torch_version"),
    [
        (class_paths("torch.distributed._shard.checkpoint", OLD_PROPERTIES), NO_META, "1.13"),
        (class_paths("torch.distributed.checkpoint", OLD_PROPERTIES), NO_META, "2.0 to 2.2"),
        (class_paths("torch.distributed.checkpoint"), NO_META, "2.3"),
        (class_paths("torch.distributed.checkpoint"), NEW, "2.4 to 2.8"),
        (class_paths("torch.distributed.checkpoint"), frozenset(), "2.9 or newer"),
    ],
    ids=["1.13", "2.0", "2.3", "2.4", "2.9"],
)
@pytest.mark.parametrize("with_keys", [True, False])
def test_metadata_of_every_version_of_torch_is_read(
    tmp_path: Path, paths: dict[type, str], without: frozenset[str], torch_version: str, with_keys: bool
) -> None:
    folder = written(tmp_path / "run")
    metadata = read_metadata(folder)
    if not with_keys:
        metadata.planner_data = None
    (folder / ".metadata").write_bytes(pickled_as(metadata, paths, without))
    checkpoint = opened(folder)
    found = {name.removeprefix("model."): tensor for name, tensor in checkpoint.tensors.items()}
    assert read_values(found) == true_values(TENSORS)
    assert f"written by torch {torch_version}" in checkpoint.layout.evidence


@pytest.mark.parametrize(
    ("changed", "path", "writer"),
    [
        (_StorageInfo, "olmo_core.distributed.checkpoint.filesystem._StorageInfo", "OLMo-core"),
        (Metadata, "megatron.core.dist_checkpointing.strategies.torch.MCoreMetadata", "Megatron-Core"),
    ],
)
def test_classes_of_others_are_understood_by_their_names_and_fields(
    tmp_path: Path, changed: type, path: str, writer: str
) -> None:
    folder = written(tmp_path / "run")
    (folder / ".metadata").write_bytes(pickled_as(read_metadata(folder), {changed: path}))
    checkpoint = opened(folder)
    assert read_values(checkpoint.tensors) == true_values(TENSORS)
    assert checkpoint.layout.writer == writer
    assert path in checkpoint.classes
    assert "U104" in [found.code for found in checkpoint.findings]


def test_bytecheckpoint_is_refused_by_name(tmp_path: Path) -> None:
    folder = written(tmp_path / "run")
    paths = class_paths("bytecheckpoint.checkpointer.meta_type")
    (folder / ".metadata").write_bytes(pickled_as(read_metadata(folder), paths))
    with pytest.raises(UnsupportedLayoutError, match="ByteCheckpoint"):
        opened(folder)


def test_a_plain_tensor_may_have_a_place_without_an_offset(tmp_path: Path) -> None:
    writer = HandWriter(tmp_path / "run")
    writer.add("w", torch.ones(3), whole(torch.ones(3)))
    ((_, place),) = writer.metadata.storage_data.items()
    writer.metadata.storage_data = {MetadataIndex("w"): place}
    assert read_values(opened(writer.finish()).tensors) == true_values({"w": torch.ones(3)})


def test_a_chunk_that_is_told_twice_is_one(tmp_path: Path) -> None:
    folder = written(tmp_path / "run")
    metadata = read_metadata(folder)
    chunks = metadata.state_dict_metadata["model.layers.0.w"].chunks
    chunks.append(ChunkStorageMetadata(chunks[0].offsets, chunks[0].sizes))
    write_metadata(folder, metadata)
    assert read_values(opened(folder).tensors) == true_values(TENSORS)


def of_ranks(folder: Path, ranks: int) -> Path:
    """Write what ranks leave that save without collectives: replicated tensors lie in every rank's file."""
    for rank in range(ranks):
        writer = HandWriter(folder, ranks=1)
        rows = TENSORS["layers.0.w"]
        writer.add("model.layers.0.w", rows, [tiles_of_rows(rows, ranks)[rank]])
        writer.add("model.number", TENSORS["number"], whole(TENSORS["number"]))
        writer.add("model.half", TENSORS["half"], whole(TENSORS["half"]))
        (folder / "__0_0.distcp").rename(folder / f"moved{rank}")
        for index, info in list(writer.metadata.storage_data.items()):
            writer.metadata.storage_data[index] = dataclasses.replace(
                info, relative_path=f"__{rank}_0.distcp"
            )
        (folder / f"__{rank}.metadata").write_bytes(pickle.dumps(writer.metadata))
    for rank in range(ranks):
        (folder / f"moved{rank}").rename(folder / f"__{rank}_0.distcp")
    return folder


def tiles_of_rows(tensor: torch.Tensor, ranks: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    step = -(-len(tensor) // ranks)
    return [((r * step, 0), (min(step, len(tensor) - r * step), tensor.shape[1])) for r in range(ranks)]


def test_metadata_of_every_rank_are_one_checkpoint(tmp_path: Path) -> None:
    checkpoint = opened(of_ranks(tmp_path / "run", 3))
    found = {name.removeprefix("model."): tensor for name, tensor in checkpoint.tensors.items()}
    assert read_values(found) == true_values(TENSORS)
    assert sorted(replica.name.removeprefix("model.") for replica in checkpoint.replicas) == [
        "half",
        "half",
        "number",
        "number",
    ]
    for replica in checkpoint.replicas:
        both = [
            bytearray(replica.kept.count * found[replica.name.removeprefix("model.")].dtype.itemsize)
            for _ in range(2)
        ]
        replica.kept.read(0, replica.kept.count, memoryview(both[0]))
        replica.other.read(0, replica.other.count, memoryview(both[1]))
        assert both[0] == both[1]
        assert replica.kept.place != replica.other.place


def test_a_rank_that_left_no_metadata_is_named(tmp_path: Path) -> None:
    folder = of_ranks(tmp_path / "run", 3)
    (folder / "__1.metadata").unlink()
    with pytest.raises(IncompleteCheckpointError, match=r"__1\.metadata.*rank 1"):
        opened(folder)


def test_the_last_rank_that_is_missing_leaves_a_hole(tmp_path: Path) -> None:
    folder = of_ranks(tmp_path / "run", 3)
    (folder / "__2.metadata").unlink()
    (folder / "__2_0.distcp").unlink()
    with pytest.raises(IncompleteCheckpointError, match=r"rows 4 to 6 of 6(.|\n)*missing ranks"):
        opened(folder)


def test_ranks_that_disagree_are_of_different_saves(tmp_path: Path) -> None:
    folder = of_ranks(tmp_path / "run", 2)
    metadata = pickle.loads((folder / "__1.metadata").read_bytes())
    metadata.state_dict_metadata["model.half"].size = torch.Size([8])
    (folder / "__1.metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(UnsafeFileError, match=r"disagree on `model\.half`"):
        opened(folder)


def edit(change: Callable[[Any], object]) -> Callable[[Metadata], object]:
    """Return a change of the description of one tensor."""
    return lambda metadata: change(metadata.state_dict_metadata["model.layers.0.w"])


def places(change: Callable[[dict[str, Any]], object]) -> Callable[[Metadata], object]:
    """Return a change of every place."""

    def changed(metadata: Metadata) -> None:
        for index, info in list(metadata.storage_data.items()):
            fields = {f.name: getattr(info, f.name) for f in dataclasses.fields(info)}
            change(fields)
            metadata.storage_data[index] = _StorageInfo(**fields)

    return changed


def replaced(chunks: list[Any], at: int, offset: tuple[int, ...], size: tuple[int, ...]) -> None:
    chunks[at] = ChunkStorageMetadata(torch.Size(offset), torch.Size(size))


def raw(chunks: list[Any], **fields: object) -> None:
    chunks[0].__dict__.update(fields)


HOSTILE: dict[str, Callable[[Metadata], object]] = {
    "a chunk beyond its tensor": edit(lambda t: replaced(t.chunks, -1, (3, 5), (4, 5))),
    "chunks that overlap": edit(lambda t: replaced(t.chunks, 0, (0, 0), (2, 10))),
    "a negative offset": edit(lambda t: raw(t.chunks, offsets=(-1, 0))),
    "a negative size": edit(lambda t: raw(t.chunks, sizes=(-1, 1))),
    "an offset beyond 64 bits": edit(lambda t: raw(t.chunks, offsets=(1 << 63, 0))),
    "a size beyond all bits": edit(lambda t: raw(t.chunks, sizes=(1 << 400, 1))),
    "a boolean for a size": edit(lambda t: raw(t.chunks, sizes=(True, 1))),
    "another rank": edit(lambda t: raw(t.chunks, offsets=(0,), sizes=(1,))),
    "a chunk without fields": edit(lambda t: t.chunks[0].__dict__.clear()),
    "a chunk that is none": edit(lambda t: t.chunks.__setitem__(0, "chunk")),
    "no list of chunks": edit(lambda t: setattr(t, "chunks", None)),
    "a shape that cannot be": edit(lambda t: setattr(t, "size", (1 << 40, 1 << 40))),
    "a negative shape": edit(lambda t: setattr(t, "size", (-6, 10))),
    "too many dimensions": edit(lambda t: setattr(t, "size", (1,) * 100)),
    "a tensor without a dtype": edit(lambda t: setattr(t, "properties", None)),
    "a name that is no text": lambda m: m.state_dict_metadata.__setitem__(
        3, m.state_dict_metadata.pop("epoch")
    ),
    "an entry of no known class": lambda m: m.state_dict_metadata.__setitem__("x", MetadataIndex("x")),
    "no storage": lambda m: setattr(m, "storage_data", None),
    "a negative place": places(lambda f: f.update(offset=-1)),
    "a place beyond 64 bits": places(lambda f: f.update(offset=1 << 63)),
    "a length of nothing": places(lambda f: f.update(length=0)),
    "a length that holds no chunk": places(lambda f: f.update(length=3)),
    "a length beyond 64 bits": places(lambda f: f.update(length=1 << 63)),
    "blobs that overlap": places(lambda f: f.update(offset=f["offset"] // 2)),
    "one place for all": places(lambda f: f.update(relative_path="__0_0.distcp", offset=0)),
    "a path that leads out": places(lambda f: f.update(relative_path="../__0_0.distcp")),
    "an absolute path": places(lambda f: f.update(relative_path="/etc/passwd")),
    "a path that is no text": places(lambda f: f.update(relative_path=Path("a"))),
    "a path without a name": places(lambda f: f.update(relative_path="")),
    "transforms that are none": places(lambda f: f.update(transform_descriptors="zstd")),
    "an unknown dtype": edit(lambda t: setattr(t.properties, "dtype", torch.quint8)),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_metadata_that_cannot_be_is_refused(tmp_path: Path, change: Callable[[Metadata], object]) -> None:
    folder = written(tmp_path / "run")
    metadata = read_metadata(folder)
    change(metadata)
    write_metadata(folder, metadata)
    with pytest.raises((UnsafeFileError, UnsupportedLayoutError, IncompleteCheckpointError)):
        opened(folder)


def test_metadata_of_something_else_is_refused_by_name(tmp_path: Path) -> None:
    folder = written(tmp_path / "run")
    write_metadata(folder, {"state_dict_metadata": {}})
    with pytest.raises(UnsupportedLayoutError, match="something else"):
        opened(folder)


class Command:
    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch " + str(Path("ran").absolute()),)


def test_metadata_that_asks_for_a_command_is_refused_and_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = written(tmp_path / "run")
    metadata = read_metadata(folder)
    metadata.planner_data = Command()
    write_metadata(folder, metadata)
    with pytest.raises(UnsafeFileError, match="system"):
        opened(folder)
    assert not (tmp_path / "ran").exists()


def test_one_chunk_that_is_told_a_million_times_takes_no_more_room_than_it_may(tmp_path: Path) -> None:
    folder = written(tmp_path / "run")
    metadata = read_metadata(folder)
    tensor = metadata.state_dict_metadata["model.layers.0.w"]
    tensor.chunks = [tensor.chunks[0]] * 1_000_000
    write_metadata(folder, metadata)
    with pytest.raises(InputError):
        opened(folder)


@pytest.mark.parametrize("kept", [0, 1, 11, 200, -1])
def test_metadata_that_breaks_off_is_damage(tmp_path: Path, kept: int) -> None:
    folder = written(tmp_path / "run")
    whole_file = (folder / ".metadata").read_bytes()
    (folder / ".metadata").write_bytes(whole_file[:kept])
    with pytest.raises(DamagedFileError):
        opened(folder)


def test_a_checkpoint_that_torch_saved_is_read_like_one_by_hand(tmp_path: Path) -> None:
    folder = save({"model": TENSORS}, tmp_path / "run")
    assert read_values(opened(folder).tensors) == true_values(TENSORS)
