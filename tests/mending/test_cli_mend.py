"""The command line of mending: what it says, what it exits with, and that it asks before it writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from folders_to_mend import contents, copied, rename_weights, same, set_config, weights_of, wrapped

from command_line import Unshard
from unshard.mending.planning import EVERY_REPAIR


@pytest.fixture
def broken(llama: Path, tmp_path: Path) -> Path:
    folder = copied(llama, tmp_path / "broken")
    rename_weights(folder, wrapped)
    set_config(folder, use_cache=False, vocab_size=512)
    return folder


def test_without_an_output_it_shows_the_plan_and_the_commands(broken: Path, unshard: Unshard) -> None:
    before = contents(broken)
    said = unshard("mend", broken)
    assert said.code == 0
    assert contents(broken) == before
    for words in (
        "nothing was written",
        "21 of 21 names",
        "`_orig_mod` removed from 21",
        '- "use_cache": false',
        '+ "vocab_size": 515',
        "of header written over, 21 tensors",
        f"unshard mend {broken} {broken}-mended",
        f"unshard mend {broken} --in-place",
    ):
        assert words in said.words


def test_in_place_it_mends_and_tells_what_it_wrote(broken: Path, llama: Path, unshard: Unshard) -> None:
    said = unshard("mend", broken, "--in-place")
    assert said.code == 0
    assert "mended" in said.out
    assert f"next: unshard check {broken}" in said.words
    assert same(weights_of(broken), weights_of(llama))
    assert "nothing to mend" in unshard("mend", broken, "--in-place").out


def test_into_a_new_folder_as_json(broken: Path, llama: Path, tmp_path: Path, unshard: Unshard) -> None:
    said = unshard("mend", broken, tmp_path / "out", "--base", llama, "--json")
    assert said.code == 0
    assert [repair["name"] for repair in said.json["repairs"]] == ["names", "vocabulary", "cache"]
    assert said.json["target"] == str(tmp_path / "out")
    assert said.json["renamed"] == 21
    assert said.json["weights"][0]["fate"] == "header"
    again = unshard("mend", broken, tmp_path / "out")
    assert again.code == 1
    assert "already exists" in again.err


def test_what_cannot_be_known_ends_with_3(broken: Path, unshard: Unshard) -> None:
    (broken / "config.json").unlink()
    before = contents(broken)
    said = unshard("mend", broken, "--in-place")
    assert said.code == 3
    assert "cannot be mended" in said.out
    assert "U904" in said.out
    assert contents(broken) == before


def test_only_and_skip_take_every_repair(broken: Path, unshard: Unshard) -> None:
    assert "wrong" in unshard("mend", broken, "--only", "wrong").err
    for name in EVERY_REPAIR:
        assert unshard("mend", broken, "--only", name, "--dry-run").code in (0, 3)
        assert name in unshard("mend", "--help").words


def test_names_of_files_and_tensors_cannot_speak_to_the_terminal(broken: Path, unshard: Unshard) -> None:
    (broken / "optimizer\x1b[31m.pt").write_bytes(b"x")
    set_config(broken, vocab_size=512, architectures=["FSDP\x1b[31mLlamaForCausalLM"])
    said = unshard("mend", broken, "--only", "cache")
    assert "\x1b" not in said.out + said.err
