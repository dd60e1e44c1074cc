"""What mending writes, and what it never touches: data behind a header, files of other folders, links."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from folders_to_mend import (
    assert_loads_as,
    contents,
    copied,
    rename_weights,
    same,
    set_config,
    weights_of,
    wrapped,
)
from safetensors.torch import save_file

from unshard import UnshardError, mend
from unshard.errors import OutputError, OutputPermissionError
from unshard.mending.applying import verify_result
from unshard.mending.journal import JOURNAL_FOLDER
from unshard.mending.staging import staged_changes


@pytest.fixture
def broken(llama: Path, tmp_path: Path) -> Path:
    folder = copied(llama, tmp_path / "broken")
    rename_weights(folder, wrapped)
    return folder


def header_length(path: Path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def test_only_the_header_is_written_over(broken: Path, llama: Path) -> None:
    file = broken / "model.safetensors"
    before, length, inode = file.read_bytes(), header_length(file), file.stat().st_ino
    done = mend(broken, in_place=True)
    after = file.read_bytes()
    assert file.stat().st_ino == inode
    assert after[:8] == before[:8]
    assert after[length:] == before[length:]
    assert after[8:length] != before[8:length]
    assert done.written_bytes == length
    assert same(weights_of(broken), weights_of(llama))


def test_a_longer_header_moves_the_data_by_whole_pages(broken: Path, llama: Path) -> None:
    rename_weights(broken, lambda name: wrapped_off(name).removeprefix("model."))
    file = broken / "model.safetensors"
    before, length = file.read_bytes(), header_length(file)
    file.chmod(0o640)
    done = mend(broken, in_place=True)
    after = file.read_bytes()
    grown = header_length(file) - length
    assert [planned.fate for planned in done.plan.weights] == ["copied"]
    assert grown > 0
    assert grown % 4096 == 0
    assert after[length + grown :] == before[length:]
    assert file.stat().st_mode & 0o777 == 0o640
    assert same(weights_of(broken), weights_of(llama))


def wrapped_off(name: str) -> str:
    drop = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
    return ".".join(part for part in name.split(".") if part not in drop)


@pytest.mark.parametrize("arguments", [{}, {"dry_run": True}, {"dry_run": True, "in_place": True}])
def test_without_being_asked_nothing_is_written(broken: Path, arguments: dict[str, bool]) -> None:
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in broken.iterdir()}
    done = mend(broken, **arguments)  # type: ignore[arg-type]
    assert done.plan.changes
    assert done.target is None
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in broken.iterdir()} == before


def test_what_stays_is_linked_and_what_changes_is_copied(llama: Path, tmp_path: Path) -> None:
    folder = copied(llama, tmp_path / "broken")
    set_config(folder, use_cache=False)
    mend(folder, tmp_path / "out")
    weights = [path / "model.safetensors" for path in (folder, tmp_path / "out")]
    assert os.path.samefile(*weights)
    assert not os.path.samefile(folder / "tokenizer.json", tmp_path / "out" / "tokenizer.json")
    mend(folder, tmp_path / "apart", links=False)
    assert not os.path.samefile(weights[0], tmp_path / "apart" / "model.safetensors")
    assert contents(tmp_path / "out") == contents(tmp_path / "apart")


def test_a_file_with_another_header_is_never_linked(broken: Path, tmp_path: Path) -> None:
    before = contents(broken)
    mend(broken, tmp_path / "out")
    assert (broken / "model.safetensors").stat().st_nlink == 1
    assert contents(broken) == before


def test_a_folder_that_shares_its_weights_is_not_mended_where_it_is(
    broken: Path, tmp_path: Path, llama: Path
) -> None:
    set_config(broken, use_cache=False)
    mend(broken, tmp_path / "shares", skip=["names"])
    assert (tmp_path / "shares" / "model.safetensors").stat().st_nlink == 2
    before = contents(broken)
    with pytest.raises(OutputError, match="lies in another folder, too") as caught:
        mend(tmp_path / "shares", in_place=True)
    assert "unshard mend" in str(caught.value)
    assert contents(broken) == before
    mend(tmp_path / "shares", tmp_path / "out")
    assert contents(broken) == before
    assert same(weights_of(tmp_path / "out"), weights_of(llama))


def test_small_files_that_are_shared_are_replaced_and_not_written_to(llama: Path, tmp_path: Path) -> None:
    folder = copied(llama, tmp_path / "broken")
    set_config(folder, use_cache=False)
    os.link(folder / "config.json", tmp_path / "config of somebody else")
    before = (folder / "config.json").read_bytes()
    mend(folder, in_place=True)
    assert (tmp_path / "config of somebody else").read_bytes() == before
    assert (folder / "config.json").read_bytes() != before


@pytest.fixture
def snapshot(broken: Path, tmp_path: Path) -> Path:
    """The broken folder as a hub cache has it: links into a folder of blobs."""
    model = tmp_path / "models--a--b"
    (model / "blobs").mkdir(parents=True)
    folder = model / "snapshots" / "1234"
    folder.mkdir(parents=True)
    for number, path in enumerate(sorted(broken.iterdir())):
        path.rename(model / "blobs" / str(number))
        (folder / path.name).symlink_to(f"../../blobs/{number}")
    return folder


def test_a_snapshot_of_a_hub_cache_is_only_mended_into_a_new_folder(
    snapshot: Path, llama: Path, tmp_path: Path
) -> None:
    before = contents(snapshot.parents[1])
    with pytest.raises(OutputError, match="is a link"):
        mend(snapshot, in_place=True)
    mend(snapshot, tmp_path / "out")
    assert contents(snapshot.parents[1]) == before
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    assert_loads_as(llama, tmp_path / "out")


@pytest.fixture
def reachable(tmp_path: Path) -> Iterator[None]:
    """Let other users reach the test's folder."""
    parents = [tmp_path, *tmp_path.parents[:3]]
    before = {path: path.stat().st_mode for path in parents}
    for path in parents:
        path.chmod(0o755)
    yield
    for path, mode in before.items():
        path.chmod(mode)


@pytest.mark.usefixtures("reachable")
def test_files_of_another_user_are_refused(broken: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may act for another user")
    mend(broken)  # everything is imported
    broken.chmod(0o777)
    for path in broken.iterdir():
        path.chmod(0o666)
    before = contents(broken)
    os.seteuid(65533)
    try:
        with pytest.raises(OutputPermissionError, match="may not be changed by this user") as caught:
            mend(broken, in_place=True)
        assert "owner 0" in str(caught.value)
        broken_for_us = Path(mend(broken).plan.path)
    finally:
        os.seteuid(0)
    assert broken_for_us == broken
    assert contents(broken) == before


def test_a_read_only_folder_is_refused(broken: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("cannot mount here")
    try:
        folder = copied(broken, disk / "broken")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(OutputPermissionError, match="may not be changed by this user"):
            mend(folder, in_place=True)
        mend(folder, tmp_path / "out")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    assert (tmp_path / "out" / "model.safetensors").stat().st_nlink == 1


def test_a_folder_that_is_still_being_written_is_refused(broken: Path) -> None:
    (broken / "model-00002.safetensors.incomplete").write_bytes(b"half")
    with pytest.raises(UnshardError, match="is still being written"):
        mend(broken, in_place=True)


def test_two_cannot_mend_one_folder_at_once(broken: Path) -> None:
    with staged_changes(broken, verify=lambda: None), pytest.raises(OutputError, match="by another process"):
        mend(broken, in_place=True)


def test_what_fails_to_verify_is_taken_back(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (broken / "model.safetensors").rename(broken / "weights.safetensors")
    set_config(broken, use_cache=False)
    before = contents(broken)
    seen = {}

    def refuse(plan: object, folder: Path) -> None:
        verify_result(plan, folder)  # type: ignore[arg-type]
        seen.update(contents(folder))
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("unshard.mending.applying.verify_result", refuse)
    with pytest.raises(OutputError, match="Input/output error"):
        mend(broken, in_place=True)
    assert "model.safetensors" in seen
    assert contents(broken) == before
    assert not (broken / JOURNAL_FOLDER).exists()


def test_an_output_inside_the_folder_is_refused(broken: Path) -> None:
    with pytest.raises(OutputError, match="lies inside"):
        mend(broken, broken / "out")
    with pytest.raises(UnshardError, match="exclude each other"):
        mend(broken, broken / "out", in_place=True)


def test_more_names_than_the_header_has_room_for_still_become_one_file(
    tmp_path: Path, healthy: Callable[[str], Path]
) -> None:
    folder = copied(healthy("llama"), tmp_path / "broken")
    state = weights_of(folder)
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.tensor([1.0, 0.5])
    save_file(state, folder / "model.safetensors")
    told = mend(folder, base=healthy("llama"))
    assert told.plan.is_refused  # numbers that are not those the model computes
    assert "inv_freq" in told.remains[0].saw
