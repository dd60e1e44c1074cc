"""The local engine: the planned bytes, whatever the workers, the disks and the accidents."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from raw_tensors import awkward_tensors, random_tensor, raw, store, written
from unshard.dtypes import BFLOAT16, DTYPES, FLOAT32
from unshard.engines import local, written_file
from unshard.engines.local import run_plan
from unshard.errors import DamagedFileError, NoSpaceError, OptionError, OutputError, PathNotFoundError
from unshard.plan import OutputFile, Placement, Plan, SideFile
from unshard.progress import Silence
from unshard.storage.files import InputFile
from unshard.storage.folders import new_folder
from unshard.tensors import (
    Box,
    CastTensor,
    DescribedTensor,
    FileSource,
    Piece,
    Tensor,
    byte_count,
    whole_tensor,
)
from unshard.writers.safetensors_folder import plan_safetensors
from unshard.writers.torch_file import plan_torch_file

MIB = 1 << 20
SHAPES = {"large": (3001, 2003), "wide": (7, 700_001), "small": (5,), "0-d": (), "empty": (0, 3)}


def tensors() -> dict[str, torch.Tensor]:
    """Return tensors of which two are copied in several pieces."""
    return {name: random_tensor(shape, "float32", seed=1) for name, shape in SHAPES.items()}


def plan_of(
    target: Path, tensors: dict[str, Tensor], *, side_files: tuple[SideFile, ...] = (), budget: int = 32 * MIB
) -> Plan:
    files, index = plan_safetensors(tensors, max_file_bytes=30 * MIB)
    return Plan(target, files, (*index, *side_files), (), (), budget)


def run(plan: Plan, folder: Path, *, workers: int = 2, durable: bool = False) -> Path:
    folder.mkdir()
    run_plan(plan, folder, workers=workers, durable=durable, progress=Silence())
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("durable", [False, True])
def test_unchanged_bytes_arrive_unchanged(tmp_path: Path, durable: bool) -> None:
    truth = tensors() | awkward_tensors(["bfloat16", "int64", "bool", "float8_e4m3fn"])
    plan = plan_of(tmp_path / "out", dict(store(tmp_path / "raw", truth)))
    folder = run(plan, tmp_path / "out", durable=durable)
    assert len(plan.files) > 1
    for name, tensor in written(folder, plan.files).items():
        assert tensor.numpy().tobytes() == raw(truth[name]), name
    assert {f.name: f.size for f in plan.files}.items() <= {
        name: len(content) for name, content in contents(folder).items()
    }.items()


def test_the_bytes_do_not_depend_on_workers_or_budget(tmp_path: Path) -> None:
    described = store(tmp_path / "raw", tensors())
    casts: dict[str, Tensor] = {name: CastTensor(tensor, BFLOAT16) for name, tensor in described.items()}
    plans = [
        plan_of(tmp_path / "out", {**described, **{f"{n}.cast": t for n, t in casts.items()}}, budget=b)
        for b in (5 * MIB, 32 * MIB, 32 * MIB)
    ]
    results = [contents(run(plan, tmp_path / f"{i}", workers=1 + i)) for i, plan in enumerate(plans)]
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("target", ["bfloat16", "float16"])
def test_casts_are_those_of_torch(tmp_path: Path, target: str) -> None:
    truth = {"a": torch.randn(1501, 1999), "b": torch.randn(()), "c": torch.randn(0)}
    described = store(tmp_path / "raw", truth)
    plan = plan_of(tmp_path / "out", {name: CastTensor(t, DTYPES[target]) for name, t in described.items()})
    for name, tensor in written(run(plan, tmp_path / "out"), plan.files).items():
        assert tensor.numpy().tobytes() == raw(truth[name].to(getattr(torch, target)))


def test_views_and_tensors_in_many_pieces_are_put_together(tmp_path: Path) -> None:
    whole = random_tensor((1200, 900), "float32", seed=3)
    stored = store(tmp_path / "raw", {"whole": whole, "top": whole[:500], "bottom": whole[500:]})
    (source,) = (piece.source for piece in stored["whole"].pieces)
    assert isinstance(source, FileSource)
    transposed = FileSource(source.file, source.offset, (900, 1200), (1, 900), FLOAT32)
    pieces = (
        Piece(Box((500, 0), (1200, 900)), stored["bottom"].pieces[0].source),
        Piece(Box((0, 0), (500, 900)), stored["top"].pieces[0].source),
    )
    plan = plan_of(
        tmp_path / "out",
        {"turned": whole_tensor(transposed), "joined": DescribedTensor((1200, 900), FLOAT32, pieces)},
    )
    found = written(run(plan, tmp_path / "out"), plan.files)
    assert np.array_equal(found["turned"].numpy(), whole.T.numpy())
    assert np.array_equal(found["joined"].numpy(), whole.numpy())


def test_two_tensors_may_share_their_bytes(tmp_path: Path) -> None:
    (described,) = store(tmp_path / "raw", {"a": torch.arange(10.0)}).values()
    plan = plan_of(tmp_path / "out", {"a": described, "b": described})
    found = written(run(plan, tmp_path / "out"), plan.files)
    assert found["a"].numpy().tolist() == found["b"].numpy().tolist() == list(range(10))


def other_disk(tmp_path: Path) -> Path:
    """Return a folder on another file system than `tmp_path`."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system here")
    folder = memory / f"unshard-test-{os.getpid()}"
    folder.mkdir()
    return folder


def test_another_disk_takes_the_same_bytes(tmp_path: Path) -> None:
    elsewhere = other_disk(tmp_path)
    try:
        plan = plan_of(tmp_path / "out", dict(store(elsewhere / "raw", tensors())))
        assert contents(run(plan, tmp_path / "out")) == contents(run(plan, elsewhere / "out"))
    finally:
        subprocess.run(["rm", "-r", str(elsewhere)], check=True)


def test_without_copies_in_the_kernel_the_bytes_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path / "out", dict(store(tmp_path / "raw", tensors())))
    expected = contents(run(plan, tmp_path / "out"))
    monkeypatch.setattr(written_file, "_kernel_copy", None)
    assert contents(run(plan, tmp_path / "without")) == expected


def test_side_files_are_written_and_copied(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"token" * 100_000)
    side_files = (
        SideFile("config.json", b"{}", None, "made here"),
        SideFile("empty", b"", None, "made here"),
        SideFile("deeper/tokenizer.json", None, tmp_path / "tokenizer.json", "base"),
    )
    plan = plan_of(
        tmp_path / "out", dict(store(tmp_path / "raw", {"a": torch.ones(1)})), side_files=side_files
    )
    found = contents(run(plan, tmp_path / "out"))
    del found["model.safetensors"]
    assert found == {"config.json": b"{}", "empty": b"", "deeper/tokenizer.json": b"token" * 100_000}


def test_a_side_file_that_has_vanished_is_named(tmp_path: Path) -> None:
    side_files = (SideFile("tokenizer.json", None, tmp_path / "gone.json", "base"),)
    plan = plan_of(tmp_path / "out", {}, side_files=side_files)
    with pytest.raises(PathNotFoundError, match=r"gone\.json` does not exist"):
        run(plan, tmp_path / "out")


class Tampering:
    """Progress that changes a file as soon as the first bytes are told."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size

    def start(self, stage: str, total_bytes: int) -> None:
        pass

    def advance(self, count: int) -> None:
        if self._path.stat().st_size > self._size:
            os.truncate(self._path, self._size)


@pytest.mark.parametrize("cast", [False, True])
def test_a_source_that_is_cut_short_meanwhile_is_refused(tmp_path: Path, cast: bool) -> None:
    described = store(tmp_path / "raw", {f"{i}": torch.ones(1000, 1000) for i in range(20)})
    chosen: dict[str, Tensor] = {n: CastTensor(t, BFLOAT16) if cast else t for n, t in described.items()}
    plan = plan_of(tmp_path / "out", chosen)
    progress = Tampering(tmp_path / "raw", 50 * MIB)
    with (
        pytest.raises(DamagedFileError, match=r"raw` (ends in the middle of|changed while)"),
        new_folder(tmp_path / "out", overwrite=False, durable=False) as folder,
    ):
        run_plan(plan, folder, workers=2, durable=False, progress=progress)
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]


def test_a_source_that_changes_after_it_was_read_is_refused(tmp_path: Path) -> None:
    class Touching(Silence):
        def advance(self, count: int) -> None:
            os.utime(tmp_path / "raw")

    plan = plan_of(tmp_path / "out", dict(store(tmp_path / "raw", tensors())))
    with pytest.raises(DamagedFileError, match="changed while it was being read"):
        run_plan(plan, tmp_path, workers=2, durable=False, progress=Touching())


def test_an_output_that_is_there_already_is_not_written_over(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "out", dict(store(tmp_path / "raw", {"a": torch.ones(3)})))
    (tmp_path / "model.safetensors").write_text("precious")
    with pytest.raises(OutputError, match="already exists"):
        run_plan(plan, tmp_path, workers=2, durable=False, progress=Silence())
    assert (tmp_path / "model.safetensors").read_text() == "precious"


@pytest.fixture
def tight_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if (mounted := subprocess.run(mount, check=False, capture_output=True)).returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("kind", ["copied", "cast", "sealed"])
def test_a_disk_that_becomes_full_is_named_and_left_clean(
    tmp_path: Path, tight_disk: Path, kind: str
) -> None:
    described = store(tmp_path / "raw", {f"{i}": torch.ones(1000, 1000) for i in range(10)})
    chosen: dict[str, Tensor] = {
        name: CastTensor(tensor, BFLOAT16) if kind == "cast" else tensor for name, tensor in described.items()
    }
    plan = plan_of(tight_disk / "out", chosen)
    if kind == "sealed":
        plan = Plan(tight_disk / "out", (plan_torch_file(chosen, name="a.pt"),), (), (), (), 32 * MIB)
    with (
        pytest.raises(NoSpaceError, match="out` cannot be written: saw No space left"),
        new_folder(tight_disk / "out", overwrite=False, durable=True) as folder,
    ):
        run_plan(plan, folder, workers=2, durable=True, progress=Silence())
    assert not list(tight_disk.iterdir())


class Sum(Silence):
    """Progress that adds up what it is told."""

    def __init__(self) -> None:
        self.total = self.done = 0

    def start(self, stage: str, total_bytes: int) -> None:
        self.total += total_bytes

    def advance(self, count: int) -> None:
        self.done += count


@pytest.mark.parametrize("kind", ["copied", "cast"])
def test_progress_ends_where_it_said_it_would(tmp_path: Path, kind: str) -> None:
    described = store(tmp_path / "raw", tensors())
    chosen = {n: CastTensor(t, BFLOAT16) if kind == "cast" else t for n, t in described.items()}
    progress = Sum()
    plan = plan_of(tmp_path / "out", dict(chosen))
    (tmp_path / "out").mkdir()
    run_plan(plan, tmp_path / "out", workers=1, durable=False, progress=progress)
    assert progress.done == progress.total == plan.tensor_bytes


def test_a_budget_below_one_worker_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "out", dict(store(tmp_path / "raw", tensors())), budget=MIB)
    with pytest.raises(OptionError, match="too small for one worker"):
        run(plan, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_file_is_read_forward(tmp_path: Path) -> None:
    described = store(tmp_path / "raw", {f"{i % 7}.{i}": torch.ones(10) for i in range(50)})
    plan = plan_of(tmp_path / "out", dict(described))
    placements = sorted(plan.files[0].placements, key=local._reading_order)
    assert [p.name for p in placements] == list(described)
    assert [p.name for p in plan.files[0].placements] != list(described)


def test_pieces_end_where_whole_blocks_of_the_output_end(tmp_path: Path) -> None:
    (tensor,) = store(tmp_path / "raw", {"a": torch.ones(100)}).values()
    placement = Placement("a", tensor, 40, 440)
    cuts = list(local._aligned_ranges(placement, 0, 100, 128))
    assert [(40 + 4 * a, 40 + 4 * b) for a, b in cuts] == [(40, 128), (128, 256), (256, 384), (384, 440)]
    odd = Placement("a", tensor, 41, 441)  # never at a multiple, yet complete and in order
    cuts = list(local._aligned_ranges(odd, 0, 100, 128))
    assert [i for a, b in cuts for i in range(a, b)] == list(range(100))
    assert all(b > a for a, b in cuts)


def test_a_file_without_tensors_is_complete(tmp_path: Path) -> None:
    planned = OutputFile("model.bin", 5, ((0, b"hello"),), ())
    run(Plan(tmp_path / "out", (planned,), (), (), (), 32 * MIB), tmp_path / "out")
    assert contents(tmp_path / "out") == {"model.bin": b"hello"}


def test_a_seal_is_given_the_checksum_of_every_tensor(tmp_path: Path) -> None:
    import zlib

    truth = tensors()
    described = store(tmp_path / "raw", truth)
    seen: dict[str, int] = {}

    def seal(crc32s: dict[str, int]) -> list[tuple[int, bytes]]:
        seen.update(crc32s)
        return [(0, b"sealed!!")]

    offset, placements = 8, []
    for name, tensor in described.items():
        placements.append(Placement(name, tensor, offset, offset + byte_count(tensor)))
        offset = placements[-1].stop
    planned = OutputFile("file", offset, (), tuple(placements), seal)  # type: ignore[arg-type]
    folder = run(Plan(tmp_path / "out", (planned,), (), (), (), 32 * MIB), tmp_path / "out", workers=3)
    assert seen == {name: zlib.crc32(raw(tensor)) for name, tensor in truth.items()}
    assert (folder / "file").read_bytes() == b"sealed!!" + b"".join(raw(t) for t in truth.values())


def test_no_output_stays_open(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("the system does not tell which files are open")
    described = store(tmp_path / "raw", tensors())
    broken = whole_tensor(FileSource.contiguous(InputFile.describe(tmp_path / "raw"), 1 << 40, (9,), FLOAT32))
    run(plan_of(tmp_path / "out", dict(described)), tmp_path / "out")
    with pytest.raises(DamagedFileError):
        run(plan_of(tmp_path / "bad", {**described, "broken": broken}), tmp_path / "bad")
    held = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    assert not [path for path in held if "model" in path and str(tmp_path) in path]
