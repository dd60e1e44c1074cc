"""One file per rank: what torch's own classes leave, whole, incomplete and damaged."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from awkward import plain_tensors, read_values, true_values
from reader_suite import FolderSuite, ReaderSuite, opened
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_common import _chunk_with_empty
from torch.distributed.tensor import Partial, Placement, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from rank_writers import (
    State,
    as_rank,
    dtensor,
    hybrid,
    over_tensor_parallelism,
    verl_name,
    write_dtensors,
    write_sharded_tensors,
)
from trainers.catalogue import TrainedCheckpoint
from unshard.checkpoint import Checkpoint
from unshard.errors import (
    AmbiguousModelError,
    IncompleteCheckpointError,
    UnsafeFileError,
    UnsupportedLayoutError,
)
from unshard.readers import open_checkpoint


def shared_tensors() -> dict[str, torch.Tensor]:
    """Return what ranks can share out: the plain tensors, uneven ones, and one under two names."""
    state = dict(plain_tensors())
    state["uneven"] = torch.arange(7 * 2, dtype=torch.int16).reshape(7, 2)
    state["wide"] = torch.arange(4 * 6, dtype=torch.float32).reshape(4, 6)
    state["deep"] = torch.arange(5 * 3 * 2, dtype=torch.float64).reshape(5, 3, 2)
    state["tied.embedding"] = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    state["tied.head"] = state["tied.embedding"]
    return state


class TestDTensors(FolderSuite):
    @classmethod
    def tensors(cls) -> Mapping[str, torch.Tensor]:
        return shared_tensors()

    @classmethod
    def write(cls, tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
        return write_dtensors(tensors, folder, mesh_shape=(3,))


class TestDTensorsOfMoreRanksThanRows(FolderSuite):
    @classmethod
    def tensors(cls) -> Mapping[str, torch.Tensor]:
        return {"one": torch.ones(1, 2), **shared_tensors()}

    @classmethod
    def write(cls, tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
        return write_dtensors(tensors, folder, mesh_shape=(4,))


class TestDTensorsOverTensorParallelism(FolderSuite):
    @classmethod
    def tensors(cls) -> Mapping[str, torch.Tensor]:
        return shared_tensors()

    @classmethod
    def write(cls, tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
        return write_dtensors(tensors, folder, mesh_shape=(2, 2), place=over_tensor_parallelism)


class TestDTensorsWithReplicas(ReaderSuite):
    @classmethod
    def tensors(cls) -> Mapping[str, torch.Tensor]:
        return shared_tensors()

    @classmethod
    def write(cls, tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
        return write_dtensors(tensors, folder, mesh_shape=(2, 2), place=hybrid)


class TestShardedTensors(FolderSuite):
    @classmethod
    def tensors(cls) -> Mapping[str, torch.Tensor]:
        return shared_tensors()

    @classmethod
    def write(cls, tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
        return write_sharded_tensors(tensors, folder, world_size=2)


class TestShardedTensorsOfManyShards(FolderSuite):
    @classmethod
    def tensors(cls) -> Mapping[str, torch.Tensor]:
        return shared_tensors()

    @classmethod
    def write(cls, tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
        return write_sharded_tensors(tensors, folder, world_size=2, parts=2)


STATE = {
    "a.weight": torch.arange(40, dtype=torch.float32).reshape(10, 4),
    "b.weight": torch.arange(70, dtype=torch.float32).reshape(7, 10),
    "c.bias": torch.arange(10, dtype=torch.float32),
}


def written(folder: Path, *mesh_shape: int, state: State = STATE, **how: Any) -> Path:
    return write_dtensors(state, folder / "actor", mesh_shape=mesh_shape or (4,), **how)


def rank_file(folder: Path, rank: int, world_size: int = 4) -> Path:
    return folder / verl_name(rank, world_size)


def codes(checkpoint: Checkpoint) -> list[str]:
    return [found.code for found in checkpoint.findings]


def test_missing_ranks_are_named_with_what_they_held(tmp_path: Path) -> None:
    folder = written(tmp_path)
    for rank in (1, 2):
        rank_file(folder, rank).unlink()
    with pytest.raises(IncompleteCheckpointError) as caught:
        opened(folder)
    absent, *holes = caught.value.gaps
    assert absent.code == "U110"
    assert absent.subject == "model_world_size_4_rank_{1..2}.pt"
    assert absent.saw.startswith("ranks 1-2 of 4 are absent, and with them parts of 3 tensors (`a.weight`")
    assert "copy `model_world_size_4_rank_{1..2}.pt` here" in str(absent.remedy)
    assert [(hole.code, hole.subject, hole.saw) for hole in holes] == [
        ("U112", "a.weight", "no file holds rows 3 to 9 of 10"),
        ("U112", "b.weight", "no file holds rows 2 to 6 of 7"),
        ("U112", "c.bias", "no file holds elements 3 to 9 of 10"),
    ]


def test_many_tensors_with_holes_are_counted_and_not_all_listed(tmp_path: Path) -> None:
    folder = written(tmp_path, state={f"layers.{i}.weight": torch.ones(4, 2) for i in range(50)})
    rank_file(folder, 3).unlink()
    with pytest.raises(IncompleteCheckpointError) as caught:
        opened(folder)
    assert len(caught.value.gaps) == 22
    assert caught.value.gaps[-1].subject == "30 more tensors"


def test_numbers_filled_up_with_zeros_are_so_in_what_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path, name_of=lambda rank, _: f"model.rank_{rank:02}.pth")
    (folder / "model.rank_01.pth").unlink()
    (folder / "model.rank_03.pth").unlink()
    with pytest.raises(IncompleteCheckpointError, match=r"`model\.rank_\{01,03\}\.pth`: ranks 1, 3 of 4 are"):
        opened(folder)


def test_ranks_that_others_replicate_may_be_missing_and_it_is_told(tmp_path: Path) -> None:
    folder = written(tmp_path, 2, 2, place=hybrid)
    whole = opened(folder)
    assert len(whole.replicas) == 6
    rank_file(folder, 0).unlink()
    rank_file(folder, 3).unlink()
    checkpoint = opened(folder)
    assert read_values(checkpoint.tensors) == true_values(STATE)
    told = [found.saw for found in checkpoint.findings if found.code == "U116"]
    assert told == ["without ranks 0, 3, whose parts the others hold, too"]


def test_replicas_hold_what_is_kept(tmp_path: Path) -> None:
    checkpoint = opened(written(tmp_path, 2, 2, place=hybrid))
    for replica in checkpoint.replicas:
        kept, other = (bytearray(4 * replica.box.volume) for _ in range(2))
        replica.kept.read(0, replica.box.volume, memoryview(kept))
        replica.other.read(0, replica.box.volume, memoryview(other))
        assert kept == other
        assert replica.kept.place != replica.other.place


def test_replicas_that_are_known_to_differ_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, 2, 2, place=hybrid)
    other = {name: tensor + 1 for name, tensor in STATE.items()}
    later = write_dtensors(other, tmp_path / "later", mesh_shape=(2, 2), place=hybrid)
    shutil.copy(rank_file(later, 2), folder)
    with pytest.raises(UnsafeFileError, match="parts lie in several files, and differ") as caught:
        opened(folder)
    assert "`a.weight` in model_world_size_4_rank_0.pt, model_world_size_4_rank_2.pt" in caught.value.message
    assert "keep the files of one of them only" in str(caught.value.hint)


def test_files_whose_names_were_exchanged_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path)
    rank_file(folder, 1).rename(folder / "kept")
    rank_file(folder, 2).rename(rank_file(folder, 1))
    (folder / "kept").rename(rank_file(folder, 2))
    with pytest.raises(UnsafeFileError, match=r"rank_1\.pt` was written by another .* saw a part of rank 2"):
        opened(folder)


def test_a_file_copied_over_that_of_another_rank_is_refused(tmp_path: Path) -> None:
    folder = write_sharded_tensors(STATE, tmp_path / "run", world_size=3)
    shutil.copy(folder / "pytorch_model_fsdp_0_rank0.bin", folder / "pytorch_model_fsdp_0_rank2.bin")
    with pytest.raises(UnsafeFileError, match=r"rank2\.bin` was written by another .* rank 0, expected .* 2"):
        opened(folder)


def test_files_of_two_meshes_are_refused(tmp_path: Path) -> None:
    folder, other = written(tmp_path), write_dtensors(STATE, tmp_path / "other", mesh_shape=(2,))
    shutil.copy(rank_file(other, 1, 2), rank_file(folder, 1))
    with pytest.raises(
        UnsafeFileError, match=r"rows 6 to 10 of 10 of `a\.weight` are in model_world_size_4_rank_1"
    ):
        opened(folder)


def test_files_of_two_models_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path)
    other = write_dtensors({"a.weight": torch.ones(10, 8)}, tmp_path / "other", mesh_shape=(4,))
    shutil.copy(rank_file(other, 1), folder)
    with pytest.raises(
        UnsafeFileError, match=r"`a\.weight` has shape \[10, 8\] in .*_1\.pt, and \[10, 4\] in"
    ):
        opened(folder)


def test_shards_cut_otherwise_in_another_file_are_refused(tmp_path: Path) -> None:
    folder = write_sharded_tensors(STATE, tmp_path / "run", world_size=2)
    other = write_sharded_tensors(STATE, tmp_path / "other", world_size=2, parts=2)
    shutil.copy(other / "pytorch_model_fsdp_0_rank1.bin", folder)
    with pytest.raises(UnsafeFileError, match=r"`a\.weight` is cut otherwise in pytorch_model_fsdp_0_rank1"):
        opened(folder)


def test_of_two_numbers_of_ranks_the_complete_one_is_taken_and_the_other_told(tmp_path: Path) -> None:
    folder = written(tmp_path)
    other = write_dtensors({"x": torch.ones(8)}, tmp_path / "other", mesh_shape=(8,))
    for rank in (0, 5):
        shutil.copy(rank_file(other, rank, 8), folder)
    checkpoint = opened(folder)
    assert read_values(checkpoint.tensors) == true_values(STATE)
    told = next(found for found in checkpoint.findings if found.code == "U113")
    assert told.subject == "model_world_size_8_rank_0.pt, model_world_size_8_rank_5.pt"


def test_a_file_that_was_left_out_is_not_taken_for_the_others(tmp_path: Path) -> None:
    folder = written(tmp_path)
    other = write_dtensors({"x": torch.ones(8)}, tmp_path / "other", mesh_shape=(8,))
    shutil.copy(rank_file(other, 5, 8), folder)
    with pytest.raises(IncompleteCheckpointError, match=r"ranks 0-4, 6-7 of 8 are absent"):
        opened(rank_file(folder, 5, 8))


def test_two_complete_numbers_of_ranks_are_not_chosen_between(tmp_path: Path) -> None:
    folder = written(tmp_path)
    for rank in range(2):
        other = tmp_path / "other"
        if not other.exists():
            write_dtensors({"x": torch.ones(8)}, other, mesh_shape=(2,))
        shutil.copy(rank_file(other, rank, 2), folder)
    with pytest.raises(
        AmbiguousModelError, match=r"model_world_size_2_rank_0\.pt`, `model_world_size_4_rank_0"
    ):
        opened(folder)
    assert list(opened(rank_file(folder, 1, 2)).tensors) == ["x"]
    assert list(opened(rank_file(folder, 3)).tensors) == list(STATE)


def test_a_file_of_a_family_stands_for_all_of_them(tmp_path: Path) -> None:
    folder = written(tmp_path)
    assert read_values(opened(rank_file(folder, 2)).tensors) == true_values(STATE)


def test_ranks_on_the_disks_of_two_nodes_are_one_checkpoint(tmp_path: Path) -> None:
    folder = written(tmp_path)
    other = tmp_path / "node 1" / "actor"
    other.mkdir(parents=True)
    for rank in (2, 3):
        rank_file(folder, rank).rename(rank_file(other, rank))
    checkpoint = open_checkpoint([folder, other], step=None, select=None)
    assert read_values(checkpoint.tensors) == true_values(STATE)


@pytest.mark.parametrize(
    "name",
    ["ckpt-rank{}.pt", "model.rank_{}.pth", "rank_{}.pt", "pytorch_model_fsdp_rank{}.bin", "m_RANK{}_x.ckpt"],
)
def test_any_names_that_differ_in_the_rank_are_a_family(name: str, tmp_path: Path) -> None:
    folder = written(tmp_path, name_of=lambda rank, _: name.format(rank))
    assert read_values(opened(folder).tensors) == true_values(STATE)


def test_steps_are_told_from_ranks(tmp_path: Path) -> None:
    for step in (100, 200):
        state = {"w": torch.full((4, 2), float(step))}
        written(
            tmp_path / str(step), state=state, name_of=lambda rank, _, s=step: f"ckpt_step{s}_rank{rank}.pt"
        )
        for file in (tmp_path / str(step) / "actor").iterdir():
            file.rename(tmp_path / file.name)
    checkpoint = opened(tmp_path)
    assert [step.number for step in checkpoint.steps] == [100, 200]
    assert read_values(checkpoint.tensors) == true_values({"w": torch.full((4, 2), 200.0)})


def test_numbers_that_are_no_ranks_of_a_run_make_no_family(tmp_path: Path) -> None:
    for rank in (8, 16):
        torch.save({"lora_A": torch.ones(rank, 4)}, tmp_path / f"lora_rank{rank}.pt")
    assert opened(tmp_path / "lora_rank16.pt")["lora_A"].shape == (16, 4)


def test_one_rank_of_one_is_whole(tmp_path: Path) -> None:
    for name in ("model.pt", "ckpt_rank0.pt", "model_world_size_1_rank_0.pt"):
        folder = written(tmp_path / name, 1, name_of=lambda rank, _, n=name: n)
        assert read_values(opened(folder).tensors) == true_values(STATE)


def test_what_one_rank_saved_alone_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    folder = written(tmp_path)
    rank_file(folder, 2).rename(tmp_path / "model.pt")
    with pytest.raises(IncompleteCheckpointError) as caught:
        opened(tmp_path / "model.pt")
    assert "the part of one of 4 ranks" in caught.value.gaps[0].saw
    assert "full_state_dict=True" in str(caught.value.hint)


def test_a_model_in_a_container_is_found_and_chosen(tmp_path: Path) -> None:
    def both(state: dict[str, Any]) -> dict[str, Any]:
        return {"model": state, "ema": dict(state), "optimizer": {"state": {}, "param_groups": []}, "step": 3}

    folder = written(tmp_path, wrap=both)
    with pytest.raises(AmbiguousModelError):
        opened(folder)
    checkpoint = open_checkpoint(folder, select="model")
    assert checkpoint.container == ("model",)
    assert read_values(checkpoint.tensors) == true_values(STATE)
    assert {"U105", "U205"} <= set(codes(checkpoint))
    assert [extra.name for extra in checkpoint.extras] == ["optimizer", "step"]


def test_training_state_beside_the_ranks_is_told_once_and_never_opened(tmp_path: Path) -> None:
    folder = written(tmp_path)
    for rank in range(4):
        (folder / f"optim_world_size_4_rank_{rank}.pt").write_bytes(b"o" * 1000)
        (folder / f"extra_state_world_size_4_rank_{rank}.pt").write_bytes(b"e" * 10)
    checkpoint = opened(folder)
    assert [(extra.name, extra.kind, extra.size) for extra in checkpoint.extras] == [
        ("extra_state_world_size_4_rank_{0..3}.pt", "rng", 40),
        ("optim_world_size_4_rank_{0..3}.pt", "optimizer", 4000),
    ]
    assert codes(checkpoint) == ["U102", "U102"]


def test_plain_tensors_that_all_ranks_hold_alike_are_taken_once(tmp_path: Path) -> None:
    for rank in range(3):
        torch.save(STATE, tmp_path / f"model_rank{rank}.pt")
    checkpoint = opened(tmp_path)
    assert read_values(checkpoint.tensors) == true_values(STATE)
    assert len(checkpoint.replicas) == 6


def test_plain_tensors_that_differ_from_rank_to_rank_are_refused(tmp_path: Path) -> None:
    for rank in range(2):
        torch.save(STATE | {"experts": torch.full((4, 4), float(rank))}, tmp_path / f"model_rank{rank}.pt")
    with pytest.raises(
        UnsupportedLayoutError, match=r"1 plain tensors that differ .* `experts` in model_rank0"
    ):
        opened(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_they_are_so_without_checksums_and_as_views_of_larger_storages(zipped: bool, tmp_path: Path) -> None:
    for rank in range(2):
        torch.serialization.set_crc32_options(False)
        storage = torch.full((300, 300), float(rank))
        torch.save(
            {"view": storage[1:, 2:]},
            tmp_path / f"model_rank{rank}.pt",
            _use_new_zipfile_serialization=zipped,
        )
        torch.serialization.set_crc32_options(True)
    with pytest.raises(UnsupportedLayoutError, match=r"1 plain tensors that differ .* `view` in model_rank0"):
        opened(tmp_path)


def test_statistics_that_every_rank_keeps_for_itself_are_rank_0s_and_told(tmp_path: Path) -> None:
    for rank in range(2):
        torch.save(STATE | {"norm.running_mean": torch.full((4,), rank)}, tmp_path / f"model_rank{rank}.pt")
    checkpoint = opened(tmp_path)
    assert checkpoint["norm.running_mean"].numpy().tolist() == [0, 0, 0, 0]
    assert "U109" in codes(checkpoint)


def test_plain_tensors_of_ranks_that_are_not_all_there_prove_nothing(tmp_path: Path) -> None:
    for rank in (0, 2):
        torch.save(STATE, tmp_path / f"model_world_size_4_rank_{rank}.pt")
    with pytest.raises(
        IncompleteCheckpointError, match=r"ranks 1, 3 of 4 are absent, and with them what cannot"
    ):
        opened(tmp_path)


def test_a_missing_rank_among_ranks_with_tensors_of_their_own_is_a_gap(tmp_path: Path) -> None:
    for rank in range(3):
        with as_rank(rank, 4):
            mesh = init_device_mesh("cpu", (4,))
            part = dtensor(torch.ones(3), mesh, [Replicate()], torch.ones(3))
            torch.save({"shared": part, f"stage.{rank}": part}, tmp_path / verl_name(rank, 4))
    with pytest.raises(
        IncompleteCheckpointError, match=r"rank 3 of 4 is absent, and with it tensors of their"
    ):
        opened(tmp_path)


def test_partial_sums_are_refused_by_name(tmp_path: Path) -> None:
    with as_rank(0, 2):
        mesh = init_device_mesh("cpu", (2,))
        part = dtensor(torch.ones(3), mesh, [Partial()], torch.ones(3))
        torch.save({"w": part}, tmp_path / verl_name(0, 2))
    with pytest.raises(UnsupportedLayoutError, match="`w` is placed as Partial: a sum that was not carried"):
        opened(tmp_path)


def test_a_storage_larger_than_its_part_is_read_where_the_part_is(tmp_path: Path) -> None:
    """FSDP2 fills parts up to one size, and saves them as views."""
    whole = torch.arange(10.0).reshape(5, 2)
    for rank in range(2):
        with as_rank(rank, 2):
            mesh = init_device_mesh("cpu", (2,))
            padded = torch.full((4, 2), -1.0)
            rows = whole[3 * rank : 3 * rank + 3]
            padded[: len(rows)] = rows
            part = dtensor(whole, mesh, [Shard(0)], padded[: len(rows)])
            torch.save({"w": part}, tmp_path / verl_name(rank, 2))
    assert opened(tmp_path)["w"].numpy().tolist() == whole.tolist()


def test_a_transposed_part_is_read_through_its_strides(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    for rank in range(2):
        with as_rank(rank, 2):
            mesh = init_device_mesh("cpu", (2,))
            part = whole[2 * rank : 2 * rank + 2].t().contiguous().t()
            torch.save({"w": dtensor(whole, mesh, [Shard(0)], part)}, tmp_path / verl_name(rank, 2))
    assert opened(tmp_path)["w"].numpy().tolist() == whole.tolist()


def test_stretches_that_are_not_contiguous_in_the_whole_are_put_in_their_places(tmp_path: Path) -> None:
    """A fused gate and up projection under tensor parallelism: every rank holds some of both."""
    whole = torch.arange(48.0).reshape(12, 4)

    def fused(_: torch.Tensor) -> list[Placement]:
        return [_StridedShard(0, split_factor=2)]

    folder = written(tmp_path, 3, state={"gate_up": whole}, place=fused)
    tensor = opened(folder)["gate_up"]
    assert tensor.numpy().tolist() == whole.tolist()
    assert len(tensor.pieces) == 6


@pytest.mark.parametrize("rows", [7, 9, 11, 27, 38])
@pytest.mark.parametrize("mesh_shape", [(3, 2), (3, 4), (4, 4)])
def test_fsdp_over_tensor_parallelism_is_read_where_its_placements_do_not_say_what_it_did(
    rows: int, mesh_shape: tuple[int, int], tmp_path: Path
) -> None:
    whole = torch.arange(rows * 2.0).reshape(rows, 2)
    data, tensor = mesh_shape
    for rank in range(data * tensor):
        with as_rank(rank, data * tensor):
            mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=("dp", "tp"))
            inner = _chunk_with_empty(whole, tensor, dim=0)[rank % tensor].reshape(-1, 2).clone()
            module = torch.nn.Module()
            module.w = torch.nn.Parameter(dtensor(whole, mesh["tp"], [Shard(0)], inner))
            torch.save(
                fully_shard(module, mesh=mesh["dp"]).state_dict(), tmp_path / verl_name(rank, data * tensor)
            )
    assert opened(tmp_path)["w"].numpy().tolist() == whole.tolist()


def test_a_mesh_that_is_a_slice_of_another_is_told_by_the_rank(tmp_path: Path) -> None:
    whole = torch.arange(8.0).reshape(4, 2)
    for rank in range(4):
        with as_rank(rank, 4):
            mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
            by_tp = dtensor(whole, mesh["tp"], [Shard(0)], whole[rank % 2 * 2 : rank % 2 * 2 + 2].clone())
            by_dp = dtensor(whole, mesh["dp"], [Shard(0)], whole[rank // 2 * 2 : rank // 2 * 2 + 2].clone())
            torch.save({"by_tp": by_tp, "by_dp": by_dp}, tmp_path / verl_name(rank, 4))
    checkpoint = opened(tmp_path)
    assert checkpoint["by_tp"].numpy().tolist() == checkpoint["by_dp"].numpy().tolist() == whole.tolist()
    assert len(checkpoint.replicas) == 4


def test_a_local_tensor_of_another_size_than_its_place_is_refused(tmp_path: Path) -> None:
    for rank in range(2):
        with as_rank(rank, 2):
            mesh = init_device_mesh("cpu", (2,))
            part = dtensor(torch.ones(7, 2), mesh, [Shard(0)], torch.ones(4, 2))
            torch.save({"w": part}, tmp_path / verl_name(rank, 2))
    with pytest.raises(
        UnsafeFileError, match=r"rank_1\.pt: w` has .* saw \[4, 2\], expected \[3, 2\] of \[7, 2\]"
    ):
        opened(tmp_path)


def test_a_plain_tensor_where_others_have_parts_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path)
    torch.save(STATE, rank_file(folder, 3))
    with pytest.raises(
        UnsafeFileError, match=r"`a\.weight` has kind plain tensor in .*_3\.pt, and DTensor in"
    ):
        opened(folder)


def test_files_without_checksums_are_told(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        folder = written(tmp_path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert codes(opened(folder)) == ["U103"]


RUNS = [
    "verl-fsdp2",
    "verl-fsdp1",
    "verl-fsdp1-mesh",
    "verl-one-rank",
    "verl-hybrid",
    "verl-tensor-parallel",
    "verl-awkward",
    "verl-awkward-fsdp1",
    "verl-awkward-four",
    "verl-qwen3-moe",
    "accelerate-per-rank",
    "accelerate-per-rank-fsdp1",
]


@pytest.mark.parametrize("trained_checkpoint", RUNS, indirect=True)
def test_what_real_ranks_left_is_bit_for_bit_what_they_trained(trained_checkpoint: TrainedCheckpoint) -> None:
    checkpoint = opened(trained_checkpoint.path)
    assert checkpoint.layout.name == "rank-files"
    assert read_values(checkpoint.tensors) == true_values(load_file(trained_checkpoint.truth))
