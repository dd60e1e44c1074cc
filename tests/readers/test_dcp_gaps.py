"""Checkpoints of DCP that are not whole: every file, byte and row that is missing is told."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from awkward import read_values, true_values
from reader_suite import opened
from torch.distributed.checkpoint.metadata import MetadataIndex

from dcp_folders import HandWriter, read_metadata, save, whole, write_metadata
from unshard.errors import IncompleteCheckpointError, UnsafeFileError
from unshard.findings import Finding, Severity
from unshard.readers import open_checkpoint

RANKS = 8
TENSORS = {f"layers.{i}.w": torch.arange(40.0).view(8, 5) + i for i in range(3)}


def written(folder: Path, ranks: int = RANKS) -> Path:
    """Write a checkpoint in which rank r holds the r-th rows of every tensor."""
    writer = HandWriter(folder, ranks=ranks)
    step = 8 // ranks
    for name, tensor in TENSORS.items():
        writer.add(f"model.{name}", tensor, [((r * step, 0), (step, 5)) for r in range(ranks)])
    writer.metadata.planner_data = {f"model.{name}": ("model", name) for name in TENSORS}
    return writer.finish()


def gaps_of(folder: Path) -> Sequence[Finding]:
    with pytest.raises(IncompleteCheckpointError) as caught:
        opened(folder)
    assert all(gap.severity is Severity.ERROR for gap in caught.value.gaps)
    assert caught.value.gaps[0].saw in str(caught.value)
    return caught.value.gaps


def test_files_of_ranks_that_are_missing_are_one_gap(tmp_path: Path) -> None:
    folder = written(tmp_path / "run")
    for rank in (2, 3, 4, 7):
        (folder / f"__{rank}_0.distcp").unlink()
    (gap,) = gaps_of(folder)
    assert (gap.code, gap.subject) == ("U110", "__{2-4, 7}_0.distcp")
    assert "4 of 8 files are absent, written by ranks 2-4, 7" in gap.saw
    assert "3 tensors (`layers.0.w`, `layers.1.w`, `layers.2.w`)" in gap.saw
    assert "nodes" in str(gap.remedy)


def test_a_file_that_ends_too_early_is_told_in_bytes(tmp_path: Path) -> None:
    folder = written(tmp_path / "run")
    file = folder / "__3_0.distcp"
    size = file.stat().st_size
    with file.open("r+b") as stream:
        stream.truncate(size - 1000)
    (gap,) = gaps_of(folder)
    assert (gap.code, gap.subject) == ("U111", "__3_0.distcp")
    assert f"ends at byte {size - 1000:,}" in gap.saw
    assert "`layers.2.w`" in gap.saw
    assert gap.expected == f"{size:,} bytes"


def test_rows_that_nobody_saved_are_told(tmp_path: Path) -> None:
    folder = written(tmp_path / "run")
    metadata = read_metadata(folder)
    del metadata.state_dict_metadata["model.layers.1.w"].chunks[2:4]
    metadata.storage_data = {
        index: info
        for index, info in metadata.storage_data.items()
        if index not in (MetadataIndex("model.layers.1.w", (2, 0)), MetadataIndex("model.layers.1.w", (3, 0)))
    }
    write_metadata(folder, metadata)
    (gap,) = gaps_of(folder)
    assert (gap.code, gap.subject, gap.saw) == ("U112", "layers.1.w", "rows 2 to 4 of 8")


def test_chunks_without_a_place_are_told(tmp_path: Path) -> None:
    folder = written(tmp_path / "run")
    metadata = read_metadata(folder)
    del metadata.storage_data[MetadataIndex("model.layers.1.w", (2, 0))]
    write_metadata(folder, metadata)
    (gap,) = gaps_of(folder)
    assert (gap.code, gap.subject) == ("U112", "layers.1.w")
    assert "1 of 8 chunks" in gap.saw


def test_everything_that_is_missing_is_told_at_once(tmp_path: Path) -> None:
    folder = written(tmp_path / "run")
    (folder / "__0_0.distcp").unlink()
    with (folder / "__1_0.distcp").open("r+b") as stream:
        stream.truncate(10)
    assert [gap.code for gap in gaps_of(folder)] == ["U110", "U111"]


def test_files_of_a_larger_save_are_left_out_and_told(tmp_path: Path) -> None:
    folder = written(tmp_path / "run", ranks=8)
    for rank in range(4):
        (folder / f"__{rank}_0.distcp").unlink()
    written(folder, ranks=4)
    checkpoint = opened(folder)
    assert read_values(checkpoint.tensors) == true_values(TENSORS)
    (stale,) = [found for found in checkpoint.findings if found.code == "U113"]
    assert stale.subject == "__{4-7}_0.distcp"
    assert "4 files" in stale.saw
    assert "ranks 4-7, where 4 ranks wrote" in stale.saw
    assert {file.path.name for file in checkpoint.files} == {f"__{rank}_0.distcp" for rank in range(4)}


def test_without_metadata_nothing_can_be_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "run")
    (folder / ".metadata").unlink()
    (gap,) = gaps_of(folder)
    assert gap.code == "U118"
    assert "8 files of ranks 0-7" in gap.saw
    assert "hold no names" in str(gap.remedy)


def test_an_interrupted_save_is_told_by_what_it_leaves(tmp_path: Path) -> None:
    folder = written(tmp_path / "run")
    content = (folder / ".metadata").read_bytes()
    (folder / ".metadata").unlink()
    (folder / ".metadata.tmp").write_bytes(content[:100])
    (broken,) = gaps_of(folder)
    assert (broken.code, "breaks off" in str(broken.remedy)) == ("U118", True)
    (folder / ".metadata.tmp").write_bytes(content)
    (whole_one,) = gaps_of(folder)
    assert "mv .metadata.tmp .metadata" in str(whole_one.remedy)


def test_what_only_the_optimizer_lacks_keeps_nobody_from_the_model(tmp_path: Path) -> None:
    writer = HandWriter(tmp_path / "run", ranks=1)
    writer.add("model.w", torch.ones(3), whole(torch.ones(3)))
    writer.add("optim.state.w.exp_avg", torch.ones(300), whole(torch.ones(300)))
    folder = writer.finish()
    with (folder / "__0_0.distcp").open("r+b") as stream:
        stream.truncate((folder / "__0_0.distcp").stat().st_size - 500)
    assert set(opened(folder).tensors) == {"w"}


def test_ranks_on_several_disks_are_one_checkpoint(tmp_path: Path) -> None:
    folder = written(tmp_path / "node0" / "run")
    other = tmp_path / "node1" / "run"
    other.mkdir(parents=True)
    for rank in range(4, 8):
        shutil.move(folder / f"__{rank}_0.distcp", other)
    checkpoint = open_checkpoint([tmp_path / "node0", tmp_path / "node1"], step=None, select=None)
    assert read_values(checkpoint.tensors) == true_values(TENSORS)


def test_a_link_that_leads_out_is_refused_by_name(tmp_path: Path) -> None:
    folder = written(tmp_path / "run")
    shutil.move(folder / "__3_0.distcp", tmp_path / "elsewhere")
    (folder / "__3_0.distcp").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeFileError, match=r"__3_0\.distcp"):
        opened(folder)


def test_the_newest_step_that_is_whole_is_taken(tmp_path: Path) -> None:
    for step in (100, 200):
        save({"model": {"w": torch.full((4,), float(step))}}, tmp_path / "run" / f"step-{step}")
    (tmp_path / "run" / "step-200" / "__0_0.distcp").unlink()
    checkpoint = opened(tmp_path / "run")
    assert checkpoint.path.name == "step-100"
    assert "U115" in [found.code for found in checkpoint.findings]
