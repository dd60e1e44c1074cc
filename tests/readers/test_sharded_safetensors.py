"""Safetensors sharded by DCP: the conformance suite, real runs, and folders that are not whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from awkward import plain_tensors, read_values, true_value, true_values
from known_shapes import knowing, shaped, shapes_of
from reader_suite import FolderSuite, opened
from safetensors.torch import load_file, save_file

from tiny_models import tiny_model, write_folder
from trainers.catalogue import TrainedCheckpoint
from unshard import inspect
from unshard.base import find_base
from unshard.checkpoint import Checkpoint
from unshard.conversion import convert
from unshard.errors import (
    BaseModelError,
    IncompleteCheckpointError,
    UnsafeFileError,
    VerificationError,
)
from unshard.match import with_shapes

RANKS = 3


def shard(rank: int, index: int = 1, total: int = 1) -> str:
    return f"shard-{rank:05d}-model-{index:05d}-of-{total:05d}.safetensors"


def save_shard(path: Path, boxes: Mapping[str, tuple[torch.Tensor, list[int]]]) -> None:
    """Write one file as DCP does."""
    offsets = {name: {"saved_offsets": start} for name, (_, start) in boxes.items()}
    metadata = {"DCP_SHARDING_INFO": json.dumps(offsets), "DCP_VERSION": "1.0", "format": "pt"}
    save_file({name: tensor.clone().contiguous() for name, (tensor, _) in boxes.items()}, path, metadata)


def write_shards(tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
    """Write matrices in rows and columns by turns, and everything else whole into one of the files."""
    folder.mkdir(parents=True)
    boxes: list[dict[str, tuple[torch.Tensor, list[int]]]] = [{} for _ in range(RANKS)]
    for number, (name, tensor) in enumerate(tensors.items()):
        dim = number % 2
        if tensor.ndim < 2 or tensor.numel() == 0:
            boxes[number % RANKS][name] = (tensor, [0] * tensor.ndim)
            continue
        start = 0
        for rank, part in enumerate(torch.tensor_split(tensor, RANKS, dim)):
            boxes[rank][name] = (part, [start if d == dim else 0 for d in range(tensor.ndim)])
            start += part.shape[dim]
    for rank, held in enumerate(boxes, 1):
        save_shard(folder / shard(rank), held)
    return folder


class TestShardedSafetensors(FolderSuite):
    @classmethod
    def tensors(cls) -> Mapping[str, torch.Tensor]:
        return plain_tensors()  # safetensors has neither views nor shared storages

    @classmethod
    def write(cls, tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
        return write_shards(tensors, folder)

    @classmethod
    def opened(cls, path: Path) -> Checkpoint:
        return shaped(path, cls.tensors())

    def is_unverifiable(self, checkpoint: Checkpoint) -> bool:
        return not tuple(checkpoint.checksums)  # the format has none


TENSORS = {
    "rows": torch.arange(40.0).reshape(8, 5),
    "columns": torch.arange(30.0).reshape(5, 6),
    "number": torch.tensor(2.5),
    "integers": torch.arange(7),
}


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_shards(TENSORS, tmp_path / "run")


RUNS = (
    "sharded-safetensors",
    "sharded-safetensors-tied",
    "sharded-safetensors-four",
    "sharded-safetensors-tensor-parallel",
)


@pytest.mark.parametrize("trained_checkpoint", RUNS, indirect=True)
def test_real_runs_become_what_training_held(trained_checkpoint: TrainedCheckpoint, tmp_path: Path) -> None:
    run, truth = trained_checkpoint, load_file(trained_checkpoint.truth)
    assert run.base is not None
    convert(run.path, tmp_path / "model", base=run.base, dtype="keep", durable=False)
    written = load_file(tmp_path / "model" / "model.safetensors")
    if run.run.tied:
        del truth["lm_head.weight"]
    assert true_values(written) == true_values(truth)


@pytest.mark.parametrize("trained_checkpoint", ["sharded-safetensors-awkward"], indirect=True)
def test_numbers_integers_and_empty_tensors_are_what_they_were(trained_checkpoint: TrainedCheckpoint) -> None:
    truth = load_file(trained_checkpoint.truth)
    del truth["tied.weight"]
    assert read_values(shaped(trained_checkpoint.path, truth).tensors) == true_values(truth)


def test_the_model_that_torch_made_of_the_shards_goes_before_them(
    trained_checkpoints: Mapping[str, TrainedCheckpoint],
) -> None:
    run = trained_checkpoints["consolidated"]
    found = opened(run.path)
    assert found.layout.name == "hugging-face"
    assert [(e.name, e.value) for e in found.extras if e.name == "sharded/"] == [
        ("sharded/", "the shards that the weights were made of; not read")
    ]
    assert opened(run.path / "sharded").layout.name == "sharded-safetensors"


def test_a_whole_model_in_the_same_folder_goes_before_the_shards(sharded: Path) -> None:
    save_file(TENSORS, sharded / "model.safetensors")
    found = opened(sharded)
    assert found.layout.name == "hugging-face"
    assert {e.name for e in found.extras} == {shard(rank) for rank in (1, 2, 3)}


def test_numbers_that_torch_may_have_made_zero_are_told(sharded: Path) -> None:
    save_file(TENSORS, sharded / "model.safetensors")
    (found,) = [f for f in opened(sharded).findings if f.code == "U121"]
    assert "`number`" in found.saw
    for rank in (1, 2, 3):
        (sharded / shard(rank)).unlink()
    assert "U121" not in {f.code for f in opened(sharded).findings}


def test_experts_in_one_tensor_get_shapes_and_are_taken_apart(tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    base = write_folder(model, tmp_path / "base")
    folder = write_shards(model.state_dict(), tmp_path / "run")
    convert(folder, tmp_path / "out", base=base, durable=False)
    written, published = (load_file(place / "model.safetensors") for place in (tmp_path / "out", base))
    assert true_values(written) == true_values(published)
    (folder / shard(3)).unlink()
    with pytest.raises(IncompleteCheckpointError, match=shard(3)):
        convert(folder, tmp_path / "other", base=base, durable=False)


def test_an_index_without_its_files_does_not_hide_the_shards(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": {"rows": "model.safetensors"}}')
    assert opened(sharded).layout.name == "sharded-safetensors"


def test_without_a_base_nothing_is_proven_and_nothing_is_converted(sharded: Path, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="nothing proves it complete: saw no base") as caught:
        convert(sharded, tmp_path / "out.pt", to="pt")
    assert caught.value.hint is not None
    assert "--accept-inferred-shapes" in caught.value.hint
    assert not (tmp_path / "out.pt").exists()


def test_inferred_shapes_are_accepted_when_asked_and_told(sharded: Path, tmp_path: Path) -> None:
    done = convert(sharded, tmp_path / "out.pt", to="pt", accept_inferred_shapes=True)
    assert true_values(torch.load(tmp_path / "out.pt", weights_only=True)) == true_values(TENSORS)
    assert "U114" in {found.code for found in done.findings}
    assert done.manifest.options["accept_inferred_shapes"] is True


def test_inspect_shows_what_is_there_without_a_base(sharded: Path) -> None:
    found = inspect(sharded)
    assert {name: t.shape for name, t in found.tensors.items()} == shapes_of(TENSORS)
    assert "U114" in {f.code for f in found.findings}


def test_the_last_file_is_missed_by_the_rows_of_the_base(sharded: Path) -> None:
    (sharded / shard(3)).unlink()
    with pytest.raises(IncompleteCheckpointError, match=shard(3)) as caught:
        shaped(sharded, TENSORS)
    assert {(gap.code, gap.subject, gap.saw) for gap in caught.value.gaps} == {
        ("U110", shard(3), "not there; what is missing may be in it"),
        ("U112", "rows", "no file holds rows 6 to 8 of 8"),
        ("U112", "columns", "no file holds columns 4 to 6 of 6"),
        ("U112", "number", "no file holds any of it"),
    }


def test_a_file_in_the_middle_is_missed_without_a_base(sharded: Path) -> None:
    (sharded / shard(2)).unlink()
    with pytest.raises(
        IncompleteCheckpointError, match=r"columns 2 to 4 of 6 of `columns`; not there: shard-00002"
    ):
        opened(sharded)


def test_a_base_of_another_size_is_told_from_a_missing_file(sharded: Path) -> None:
    for rows in ((9, 6), (7, 5), (8, 5, 1)):
        base = knowing(shapes_of(TENSORS) | {"rows": rows})
        with pytest.raises(BaseModelError, match=r"`rows` reaches to \[8, 5\], not \["):
            with_shapes(opened(sharded), base, accept_inferred=False)
        accepted = with_shapes(opened(sharded), base, accept_inferred=True)
        assert accepted.tensors["rows"].shape == (8, 5)


def test_tensors_that_the_base_does_not_know_are_as_large_as_they_reach(sharded: Path) -> None:
    known = {name: shape for name, shape in shapes_of(TENSORS).items() if name != "integers"}
    checkpoint = with_shapes(opened(sharded), knowing(known), accept_inferred=False)
    assert checkpoint.tensors["integers"].shape == (7,)


def test_boxes_that_are_there_twice_are_replicas(sharded: Path) -> None:
    save_shard(sharded / shard(4), {"integers": (TENSORS["integers"], [0])})
    checkpoint = shaped(sharded, TENSORS)
    assert read_values(checkpoint.tensors) == true_values(TENSORS)
    (replica,) = checkpoint.replicas
    assert (replica.name, replica.box.shape) == ("integers", (7,))
    assert {replica.kept.place.file.path.name, replica.other.place.file.path.name} == {shard(1), shard(4)}  # type: ignore[union-attr]


def test_boxes_that_overlap_are_refused(sharded: Path) -> None:
    save_shard(sharded / shard(4), {"rows": (torch.zeros(2, 5), [2, 0])})
    with pytest.raises(UnsafeFileError, match=r"`rows`, rows 2 to 4 of 8, is in .*shard-00004"):
        opened(sharded)


def test_shards_of_two_saves_are_refused(sharded: Path) -> None:
    save_shard(sharded / shard(1, 1, 2), {"rows": (torch.zeros(2, 5), [0, 0])})
    with pytest.raises(UnsafeFileError, match="holds shards of several saves"):
        opened(sharded)


def test_boxes_of_several_dtypes_or_dimensions_are_refused(sharded: Path) -> None:
    for other in (torch.zeros(2, 5, dtype=torch.bfloat16), torch.zeros(2, 5, 1)):
        save_shard(sharded / shard(4), {"rows": (other, [8] + [0] * (other.ndim - 1))})
        with pytest.raises(UnsafeFileError, match="holds shards that contradict one another"):
            opened(sharded)


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (None, "does not say which part"),
        ("[", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "no JSON object"),
        ('{"a": {}, "a": {}}', "given twice"),
        ("{}", "another list of tensors"),
        ('{"a": {"saved_offsets": [0]}, "b": {"saved_offsets": [0]}}', "another list of tensors"),
        ('{"a": {}}', "offsets that cannot be"),
        ('{"a": []}', "offsets that cannot be"),
        ('{"a": {"saved_offsets": [0, 0]}}', "offsets that cannot be"),
        ('{"a": {"saved_offsets": [-1]}}', "offsets that cannot be"),
        ('{"a": {"saved_offsets": [true]}}', "offsets that cannot be"),
        ('{"a": {"saved_offsets": [4611686018427387904]}}', "offsets that cannot be"),
    ],
)
def test_metadata_that_means_nothing_is_refused(tmp_path: Path, info: str | None, message: str) -> None:
    metadata = {"format": "pt"} if info is None else {"DCP_SHARDING_INFO": info}
    save_file({"a": torch.zeros(3)}, tmp_path / shard(1), metadata)
    with pytest.raises(UnsafeFileError, match=message):
        opened(tmp_path)


def test_a_box_far_away_is_a_hole_and_takes_no_time(tmp_path: Path) -> None:
    save_shard(tmp_path / shard(1), {"a": (torch.zeros(3), [1 << 61])})
    with pytest.raises(IncompleteCheckpointError, match="lacks parts of 1 tensors: `a`"):
        opened(tmp_path)


def test_empty_boxes_of_ranks_without_rows_change_nothing(sharded: Path) -> None:
    save_shard(sharded / shard(4), {"rows": (torch.zeros(0, 5), [8, 0])})
    assert read_values(shaped(sharded, TENSORS).tensors) == true_values(TENSORS)


def test_select_takes_the_tensors_below_a_prefix(tmp_path: Path) -> None:
    both = {f"{part}.{name}": tensor for part in ("policy", "value") for name, tensor in TENSORS.items()}
    folder = write_shards(both, tmp_path / "run")
    from unshard.readers import open_checkpoint

    checkpoint = open_checkpoint(folder, step=None, select="policy")
    checkpoint = with_shapes(checkpoint, knowing(shapes_of(TENSORS)), accept_inferred=False)
    assert read_values(checkpoint.tensors) == true_values(TENSORS)


def test_wrappers_and_prefixes_do_not_hide_the_shapes(tmp_path: Path) -> None:
    wrapped = {f"model._orig_mod.{name}": tensor for name, tensor in TENSORS.items()}
    folder = write_shards(wrapped, tmp_path / "run")
    (folder / shard(3)).unlink()
    with pytest.raises(IncompleteCheckpointError, match=r"`model\._orig_mod\.rows`.*not there: shard-00003"):
        shaped(folder, TENSORS)


def test_automodels_own_configuration_is_the_base(
    trained_checkpoints: Mapping[str, TrainedCheckpoint], tmp_path: Path
) -> None:
    run = trained_checkpoints["sharded-safetensors"]
    shutil.copytree(run.path, tmp_path / "model")
    assert run.base is not None
    shutil.copytree(run.base, tmp_path / "model" / ".hf_metadata")
    checkpoint = opened(tmp_path / "model")
    assert checkpoint.layout.writer == "NeMo Automodel"
    base, _ = find_base(checkpoint, reference=None, download=False)
    assert base is not None
    assert base.path == tmp_path / "model" / ".hf_metadata"
    truth = load_file(run.truth)
    found = with_shapes(checkpoint, base, accept_inferred=False).tensors
    assert read_values(found) == true_values(truth)


def test_the_class_of_the_model_tells_shapes_where_no_weights_do(
    trained_checkpoints: Mapping[str, TrainedCheckpoint], tmp_path: Path
) -> None:
    run = trained_checkpoints["sharded-safetensors"]
    shutil.copytree(run.path, tmp_path / "model")
    assert run.base is not None
    shutil.copy(run.base / "config.json", tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "out", dtype="keep", durable=False)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert true_value(written["lm_head.weight"]) == true_value(load_file(run.truth)["lm_head.weight"])
    (tmp_path / "model" / shard(2)).unlink()
    with pytest.raises(IncompleteCheckpointError, match="of 515 of `"):
        convert(tmp_path / "model", tmp_path / "other", dtype="keep", durable=False)


def test_a_part_that_is_there_twice_is_compared_though_nobody_asked(tmp_path: Path) -> None:
    tensor = torch.arange(12.0).reshape(4, 3)
    for rank, copy in ((1, tensor), (2, tensor)):
        (tmp_path / "run").mkdir(exist_ok=True)
        save_shard(tmp_path / "run" / shard(rank), {"a": (copy, [0, 0])})
    done = convert(tmp_path / "run", tmp_path / "out", accept_inferred_shapes=True)
    assert done.proof[0].name == "replicas"
    save_shard(tmp_path / "run" / shard(2), {"a": (tensor + 1, [0, 0])})
    with pytest.raises(VerificationError, match="copies of `a` that differ"):
        convert(tmp_path / "run", tmp_path / "other", accept_inferred_shapes=True)
    assert not (tmp_path / "other").exists()
