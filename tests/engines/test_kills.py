"""A process that dies leaves nothing that looks finished, and the next one finishes with the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from raw_tensors import random_tensor, store

# Writes two files of tensors and one side file. Before the n-th change of the file system below the
# output's parent, or when the n-th progress is told, it sends itself a signal.
CHILD = """
import os, sys
from pathlib import Path
from unshard.dtypes import FLOAT32
from unshard.engines.local import run_plan
from unshard.plan import Plan, SideFile
from unshard.progress import Silence
from unshard.storage.files import InputFile
from unshard.storage.folders import new_folder
from unshard.tensors import FileSource, whole_tensor
from unshard.writers.safetensors_folder import plan_safetensors

out, where, number, signal_number, overwrite = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6])
CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}
left = number

def count_down():
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal_number)

def hook(event, arguments):
    if where == "change" and event in CHANGES and str(arguments[0]).startswith(str(out.parent)):
        count_down()

class Counting(Silence):
    def advance(self, count):
        if where == "progress":
            count_down()

source = InputFile.describe(Path(sys.argv[6]))
tensors = {f"{i}": whole_tensor(FileSource.contiguous(source, 13 + i * 12_000_013, (3_000_000,), FLOAT32))
           for i in range(3)}
files, index = plan_safetensors(tensors, max_file_bytes=30_000_000)
plan = Plan(out, files, (*index, SideFile("config.json", b"{}", None, "")), (), (), 32 << 20)
sys.addaudithook(hook)
with new_folder(out, overwrite=bool(overwrite), durable=False) as folder:
    run_plan(plan, folder, workers=2, durable=False, progress=Counting())
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "raw"
    store(path, {f"{i}": random_tensor((3_000_000,), "float32", seed=i) for i in range(3)})
    return path


@pytest.fixture(scope="module")
def truth(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run that nobody disturbs writes."""
    out = tmp_path_factory.mktemp("truth") / "out"
    assert convert(out, source) == 0
    return contents(out)


def convert(
    out: Path, source: Path, *, where: str = "", number: int = 0, sent: int = 0, overwrite: bool = False
) -> int:
    """Return how a child ended that converts `source` to `out`."""
    arguments = [str(out), where, str(number), str(sent), str(int(overwrite)), str(source)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], env=environment, check=False, capture_output=True
    )
    return child.returncode


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_before_any_change_of_the_file_system(
    tmp_path: Path, source: Path, truth: dict[str, bytes], overwrite: bool
) -> None:
    out = tmp_path / "parent" / "out"
    number, ended = 0, -signal.SIGKILL
    while ended == -signal.SIGKILL:
        number += 1
        if overwrite:
            out.mkdir(parents=True)
            (out / "precious").write_text("old")
        ended = convert(out, source, where="change", number=number, sent=signal.SIGKILL, overwrite=overwrite)
        if out.exists():
            found = contents(out)
            assert found == truth or (overwrite and found == {"precious": b"old"}), number
        assert convert(out, source, overwrite=True) == 0
        assert contents(out) == truth
        assert os.listdir(out.parent) == ["out"]
        subprocess.run(["rm", "-r", str(out.parent)], check=True)
    assert ended == 0
    assert number > 10


@pytest.mark.parametrize("number", [1, 2, 4])
def test_killed_while_tensors_are_written(
    tmp_path: Path, source: Path, truth: dict[str, bytes], number: int
) -> None:
    out = tmp_path / "out"
    assert convert(out, source, where="progress", number=number, sent=signal.SIGKILL) == -signal.SIGKILL
    assert not out.exists()
    assert convert(out, source) == 0
    assert contents(out) == truth
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("number", [1, 2, 4])
def test_ctrl_c_leaves_nothing(tmp_path: Path, source: Path, number: int) -> None:
    out = tmp_path / "new" / "parent" / "out"
    assert convert(out, source, where="progress", number=number, sent=signal.SIGINT) != 0
    assert not list(tmp_path.iterdir())


def test_the_tensors_are_what_was_stored(source: Path, truth: dict[str, bytes]) -> None:
    first = random_tensor((3_000_000,), "float32", seed=0)
    assert truth["model-00001-of-00002.safetensors"].count(first.view(torch.uint8).numpy().tobytes()) == 1
