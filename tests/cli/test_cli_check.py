"""`unshard check`: verdicts on steps, gaps with their remedies, and codes to exit with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import unshard as package
from command_line import Unshard
from dcp_folders import HandWriter
from step_folders import PARTS, write_step


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (100, 200):
        write_step(tmp_path / "run" / f"checkpoint-{step}", step)
    return tmp_path / "run"


@pytest.fixture
def broken(run: Path) -> Path:
    (run / "checkpoint-200" / PARTS[1]).unlink()
    return run


def test_a_whole_run_passes(unshard: Unshard, run: Path) -> None:
    said = unshard("check", run)
    assert said.code == 0
    assert "step 100 whole" in said.words
    assert "step 200 whole" in said.words
    assert f"unshard convert {run} OUT --base BASE" in said.words


def test_an_incomplete_step_fails_and_the_one_before_it_is_named(unshard: Unshard, broken: Path) -> None:
    said = unshard("check", broken)
    assert said.code == 3
    assert "step 200 incomplete" in said.words
    assert "U110 error" in said.words
    assert PARTS[1] in said.words
    assert f"convert takes {broken / 'checkpoint-100'}" in said.words


def test_what_fails_can_be_chosen(unshard: Unshard, run: Path, broken: Path) -> None:
    assert unshard("check", broken, "--fail-on", "never").code == 0
    assert unshard("check", broken, "--step", "100").code == 0
    assert unshard("check", broken, "--step", "100", "--fail-on", "warning").code == 3  # it has no base


def test_the_same_is_told_to_programs(unshard: Unshard, broken: Path) -> None:
    told = unshard("check", broken, "--json").json
    assert [step["verdict"] for step in told["steps"]] == ["whole", "incomplete"]
    assert told["taken"] == str(broken / "checkpoint-100")
    assert told["findings"][0]["code"] == "U110"


def test_damage_is_a_verdict_too(unshard: Unshard, run: Path) -> None:
    (run / "checkpoint-200" / PARTS[1]).write_bytes(b"\xff" * 64)
    said = unshard("check", run)
    assert said.code == 3
    assert "step 200 unreadable" in said.words
    assert "U119 error" in said.words


def test_nothing_is_whole_where_no_step_is(unshard: Unshard, broken: Path) -> None:
    (broken / "checkpoint-100" / PARTS[0]).unlink()
    said = unshard("check", broken)
    assert said.code == 3
    assert "none: no step is whole" in said.words


def test_a_checkpoint_of_several_nodes_is_checked_as_one(unshard: Unshard, run: Path, tmp_path: Path) -> None:
    other = tmp_path / "node1" / "checkpoint-200"
    other.mkdir(parents=True)
    (run / "checkpoint-200" / PARTS[1]).rename(other / PARTS[1])
    assert unshard("check", run).code == 3
    assert unshard("check", run, other.parent).code == 0
    out = tmp_path / "out"
    assert unshard("convert", run, other.parent, out).code == 0
    assert package.open(out)["b"].numpy().tolist() == [200, 200]


def test_a_folder_that_holds_nothing_is_an_error(unshard: Unshard, tmp_path: Path) -> None:
    assert unshard("check", tmp_path).code == 1


def test_exchanged_files_of_dcp_are_found(unshard: Unshard, tmp_path: Path) -> None:
    writer = HandWriter(tmp_path / "step-3", ranks=2)
    for name, rows in (("a", 8), ("b", 12)):
        tensor = torch.arange(rows * 3.0).reshape(rows, 3)
        half = rows // 2
        writer.add(f"model.{name}", tensor, [((0, 0), (half - 1, 3)), ((half - 1, 0), (rows - half + 1, 3))])
    folder = writer.finish()
    assert unshard("check", tmp_path, "--fail-on", "error").code == 0
    paths = [folder / f"__{rank}_0.distcp" for rank in range(2)]
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, reversed(contents), strict=True):
        path.write_bytes(content.ljust(max(map(len, contents)), b"\0"))
    said = unshard("check", tmp_path)
    assert said.code == 3
    assert "step 3 unreadable" in said.words
    assert "exchanged with that of another rank" in said.words
