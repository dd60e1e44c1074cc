"""Bad input: an error with evidence and a next action, a code that is not 0, and nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from command_line import Said, Unshard, files_below
from trainers.catalogue import TrainedCheckpoint


@pytest.fixture
def newest(recipes_run: TrainedCheckpoint) -> Path:
    return min(recipes_run.path.rglob("*-1.pt"))


@pytest.fixture
def refuse(unshard: Unshard, recipes_run: TrainedCheckpoint, tmp_path: Path) -> Unshard:
    """Convert something that must be refused; whatever it is, nothing may be left behind."""

    def run(path: Path, *words: object, base: object = recipes_run.base) -> Said:
        before = files_below(tmp_path)
        named = ("--base", base) if base is not None else ()
        said = unshard("convert", path, tmp_path / "out", *named, *words)
        assert said.code == 1, said.words
        assert said.err.startswith("error: `")
        assert "Traceback" not in said.words
        assert files_below(tmp_path) == before
        return said

    return run


def test_nothing_at_the_path(refuse: Unshard, tmp_path: Path) -> None:
    assert "does not exist" in refuse(tmp_path / "nowhere").err


def test_a_truncated_file(refuse: Unshard, newest: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.pt").write_bytes(newest.read_bytes()[:-1000])
    said = refuse(tmp_path / "cut.pt")
    assert "hint:" in said.err
    assert "cut.pt" in said.err


def test_an_empty_file(refuse: Unshard, tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    assert "empty" in refuse(tmp_path / "empty.pt").words


def test_something_that_is_no_checkpoint(refuse: Unshard, tmp_path: Path) -> None:
    (tmp_path / "notes.pt").write_text("to do: train the model\n")
    assert "notes.pt" in refuse(tmp_path / "notes.pt").err


def test_a_folder_without_a_checkpoint(refuse: Unshard, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.txt").touch()
    assert "hint:" in refuse(tmp_path / "run").err


def test_an_optimizer_file_names_the_model_beside_it(
    refuse: Unshard, tied_recipes_run: TrainedCheckpoint
) -> None:
    optimizer = min(tied_recipes_run.path.rglob("optimizer-*.pt"))
    said = refuse(optimizer, base=tied_recipes_run.base)
    assert "optimizer" in said.err
    model = next(p for p in optimizer.parent.glob("*.pt") if not p.name.startswith("optimizer"))
    assert model.name[:6] in said.err


def test_one_flipped_byte_in_a_tensor(refuse: Unshard, newest: Path, tmp_path: Path) -> None:
    import unshard as package

    checksum = max(package.open(newest).checksums, key=lambda c: c.stop - c.start)
    content = bytearray(newest.read_bytes())
    content[(checksum.start + checksum.stop) // 2] ^= 0x10
    (tmp_path / "flipped.pt").write_bytes(content)
    said = refuse(tmp_path / "flipped.pt")
    assert "CRC-32" in said.err
    assert "flipped.pt" in said.err


def test_a_file_without_checksums_is_unverifiable_and_not_damaged(
    unshard: Unshard, recipes_run: TrainedCheckpoint, newest: Path, tmp_path: Path
) -> None:
    state = torch.load(newest, weights_only=True)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "plain.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    said = unshard("convert", tmp_path / "plain.pt", tmp_path / "out", "--base", recipes_run.base)
    assert said.code == 0, said.err
    assert "U103" in said.out


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/unshard-was-here",)


def test_a_pickle_that_calls_something_calls_nothing(
    unshard: Unshard, newest: Path, recipes_run: TrainedCheckpoint, tmp_path: Path
) -> None:
    witness = Path("/tmp/unshard-was-here")
    witness.unlink(missing_ok=True)
    torch.save({"model": torch.load(newest, weights_only=True), "epoch": _Bomb()}, tmp_path / "bomb.pt")
    said = unshard("convert", tmp_path / "bomb.pt", tmp_path / "out", "--base", recipes_run.base)
    assert not witness.exists()
    assert "system" in said.words
    torch.save(_Bomb(), tmp_path / "only.pt")
    assert unshard("convert", tmp_path / "only.pt", tmp_path / "other").code == 1
    assert not witness.exists()


def test_an_output_inside_the_source(newest: Path, unshard: Unshard) -> None:
    said = unshard("convert", newest.parent, newest.parent / "out")
    assert said.code == 1
    assert "lies inside what is being read" in said.err
    assert not (newest.parent / "out").exists()


def test_an_output_in_place_of_a_file(refuse: Unshard, newest: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    assert "already exists" in refuse(newest).err
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(refuse: Unshard, newest: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert "cannot be written" in refuse(newest).err
    finally:
        tmp_path.chmod(0o700)


def test_a_base_of_another_size(refuse: Unshard, newest: Path, base_folder: Callable[[str], Path]) -> None:
    said = refuse(newest, base=base_folder("llama"))
    assert "shape" in said.err
    assert "expected" in said.err
    assert "hint:" in said.err


def test_a_base_that_is_not_there(refuse: Unshard, newest: Path, tmp_path: Path) -> None:
    assert "nowhere" in refuse(newest, base=tmp_path / "nowhere").err
    assert "no-such-org/no-such-model" in refuse(newest, "--offline", base="no-such-org/no-such-model").err


def test_an_unknown_dtype(unshard: Unshard, newest: Path, tmp_path: Path) -> None:
    said = unshard("convert", newest, tmp_path / "out", "--dtype", "float8")
    assert said.code == 2
    assert "bfloat16" in said.err


@pytest.mark.parametrize("size", ["0", "five", "5XB", "-1GB"])
def test_a_size_that_is_none(refuse: Unshard, newest: Path, size: str) -> None:
    assert "is not a size" in refuse(newest, f"--max-shard-size={size}").err


def test_a_missing_step_lists_those_there_are(refuse: Unshard, recipes_run: TrainedCheckpoint) -> None:
    said = refuse(recipes_run.path, "--step", 7)
    assert "7" in said.err
    assert "0" in said.err
    assert "1" in said.err


def test_two_models_in_one_file_need_a_choice(
    refuse: Unshard, unshard: Unshard, recipes_run: TrainedCheckpoint, newest: Path, tmp_path: Path
) -> None:
    state = torch.load(newest, weights_only=True)
    teacher = {name: tensor + 1 for name, tensor in state.items()}
    torch.save({"student": state, "teacher": teacher}, tmp_path / "two.pt")
    said = refuse(tmp_path / "two.pt")
    assert "--select" in said.err
    assert "student" in said.err
    assert "teacher" in said.err
    chosen = unshard(
        "convert", tmp_path / "two.pt", tmp_path / "out", "--base", recipes_run.base, "--select", "teacher"
    )
    assert chosen.code == 0, chosen.err


def test_a_missing_tensor_is_never_random(refuse: Unshard, newest: Path, tmp_path: Path) -> None:
    state = torch.load(newest, weights_only=True)
    del state["model.layers.1.mlp.up_proj.weight"], state["model.norm.weight"]
    torch.save(state, tmp_path / "incomplete.pt")
    said = refuse(tmp_path / "incomplete.pt")
    assert "model.layers.1.mlp.up_proj.weight" in said.err
    assert "model.norm.weight" in said.err


def test_every_mismatch_is_in_the_json(
    unshard: Unshard, recipes_run: TrainedCheckpoint, newest: Path, tmp_path: Path
) -> None:
    state = torch.load(newest, weights_only=True)
    gone = [name for name in state if ".mlp." in name]
    torch.save({n: t for n, t in state.items() if n not in gone}, tmp_path / "cut.pt")
    words = ("convert", tmp_path / "cut.pt", tmp_path / "out", "--base", recipes_run.base, "--json")
    told = unshard(*words).json["error"]
    assert sorted(m["name"] for m in told["mismatches"]) == sorted(gone)


def test_a_name_that_begins_with_dashes_is_a_path(
    unshard: Unshard, newest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "--models--tiny-0.pt").write_bytes(newest.read_bytes())
    monkeypatch.chdir(tmp_path)
    said = unshard("inspect", "--models--tiny-0.pt")
    assert said.code == 0, said.err
    assert "--models--tiny-0.pt" in said.out


def test_errors_are_json_for_programs(unshard: Unshard, tmp_path: Path) -> None:
    said = unshard("inspect", tmp_path / "nowhere", "--json")
    assert said.code == 1
    assert said.json["error"]["type"] == "PathNotFoundError"
    assert said.json["error"]["subject"] == str(tmp_path / "nowhere")


@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143)])
def test_an_interrupted_conversion_leaves_nothing_and_the_next_one_succeeds(
    unshard: Unshard, tmp_path: Path, number: int, code: int
) -> None:
    tensors = {f"model.layers.{i}.weight": torch.full((4096, 4096), float(i)) for i in range(16)}
    torch.save(tensors, tmp_path / "large.pt")
    words = ("convert", str(tmp_path / "large.pt"), str(tmp_path / "out"), "--dtype", "keep")
    child = subprocess.Popen([sys.executable, "-m", "unshard", *words], stderr=subprocess.PIPE, text=True)
    while child.poll() is None and not list(tmp_path.glob(".*/**/*.safetensors")):
        time.sleep(0.01)
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    assert child.returncode == code, err
    assert "interrupted" in err
    assert files_below(tmp_path) == ["large.pt"]
    assert unshard(*words).code == 0
