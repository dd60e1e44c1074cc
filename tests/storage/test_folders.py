"""Outputs appear whole or not at all, and nothing is left behind."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest

from unshard.errors import (
    NoSpaceError,
    OutputError,
    OutputExistsError,
    OutputInsideSourceError,
    OutputPermissionError,
)
from unshard.storage.folders import new_files, new_folder, require_outside, require_space

Make = Callable[..., AbstractContextManager[Path]]


def folder_at(
    target: Path, *, overwrite: bool = False, durable: bool = False
) -> AbstractContextManager[Path]:
    return new_folder(target, overwrite=overwrite, durable=durable)


def files_at(target: Path, *, overwrite: bool = False, durable: bool = False) -> AbstractContextManager[Path]:
    names = (f"{target.name}.json", target.name)
    return new_files(target.parent, names, overwrite=overwrite, durable=durable)


def fill(folder: Path, text: str) -> None:
    """Write what both kinds of output need: for a folder, files in it; for files, the named ones."""
    for name in ("out", "out.json"):
        (folder / name).write_text(text)


def write(
    output: AbstractContextManager[Path], text: str = "new", *, then: Callable[[], object] = lambda: None
) -> None:
    """Fill an output; `then` happens before it is finished."""
    with output as folder:
        fill(folder, text)
        then()


def fail(error: type[BaseException]) -> None:
    raise error


both = pytest.mark.parametrize("make", [folder_at, files_at])


def shown(folder: Path) -> dict[str, str]:
    """Return every file under `folder` with its text."""
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


@both
@pytest.mark.parametrize("durable", [False, True])
def test_the_output_appears_when_the_block_ends_and_not_before(
    tmp_path: Path, make: Make, durable: bool
) -> None:
    target = tmp_path / "new" / "parents" / "out"
    with make(target, durable=durable) as folder:
        fill(folder, "new")
        assert not target.exists()
    assert target.exists()
    assert set(os.listdir(target.parent)) == ({"out"} if target.is_dir() else {"out", "out.json"})


@both
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_when_the_block_does_not_end_well(
    tmp_path: Path, make: Make, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        write(make(tmp_path / "new" / "parents" / "out"), then=partial(fail, error))
    assert not list(tmp_path.iterdir())


@both
def test_parents_that_were_there_stay(tmp_path: Path, make: Make) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError):
        write(make(tmp_path / "mine" / "new" / "out"), then=partial(fail, ValueError))
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    assert not list((tmp_path / "mine").iterdir())


def make_folder(target: Path) -> None:
    target.mkdir()
    (target / "precious").write_text("old")


OCCUPANTS: dict[str, Callable[[Path], object]] = {
    "a folder": make_folder,
    "an empty folder": Path.mkdir,
    "a file": lambda path: path.write_text("old"),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
}


@both
@pytest.mark.parametrize("occupant", OCCUPANTS)
def test_what_is_there_already_is_refused_and_untouched(tmp_path: Path, make: Make, occupant: str) -> None:
    OCCUPANTS[occupant](tmp_path / "out")
    before = [shown(tmp_path), os.lstat(tmp_path / "out").st_ino]
    with pytest.raises(OutputExistsError, match="already exists") as caught:
        write(make(tmp_path / "out"))
    assert "--overwrite" in str(caught.value)
    assert [shown(tmp_path), os.lstat(tmp_path / "out").st_ino] == before
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("occupant", OCCUPANTS)
def test_a_folder_replaces_anything_when_it_may(tmp_path: Path, occupant: str) -> None:
    OCCUPANTS[occupant](tmp_path / "out")
    with folder_at(tmp_path / "out", overwrite=True) as folder:
        (folder / "model").write_text("new")
    assert shown(tmp_path) == {"out/model": "new"}


def test_a_link_is_replaced_and_not_what_it_points_to(tmp_path: Path) -> None:
    make_folder(tmp_path / "elsewhere")
    (tmp_path / "out").symlink_to("elsewhere")
    with folder_at(tmp_path / "out", overwrite=True) as folder:
        (folder / "model").write_text("new")
    assert shown(tmp_path) == {"out/model": "new", "elsewhere/precious": "old"}


def test_files_replace_files_when_they_may(tmp_path: Path) -> None:
    fill(tmp_path, "old")
    with files_at(tmp_path / "out", overwrite=True) as folder:
        fill(folder, "new")
    assert shown(tmp_path) == {"out": "new", "out.json": "new"}


@both
def test_the_old_output_stays_when_its_replacement_fails(tmp_path: Path, make: Make) -> None:
    make_folder(tmp_path / "out") if make is folder_at else fill(tmp_path, "old")
    before = shown(tmp_path)
    with pytest.raises(ValueError):
        write(make(tmp_path / "out", overwrite=True), then=partial(fail, ValueError))
    assert shown(tmp_path) == before


def test_one_taken_name_refuses_all_files(tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text("old")
    with pytest.raises(OutputExistsError, match=r"out\.json"), files_at(tmp_path / "out"):
        pass
    assert shown(tmp_path) == {"out.json": "old"}


@pytest.mark.parametrize("taken", ["out", "out.json"])
def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path, taken: str) -> None:
    appear = partial((tmp_path / taken).write_text, "somebody else's")
    with pytest.raises(OutputExistsError):
        write(files_at(tmp_path / "out"), then=appear)
    assert shown(tmp_path) == {taken: "somebody else's"}


@pytest.mark.parametrize("occupant", ["a folder", "a file", "a link to nothing"])
def test_a_folder_that_appears_meanwhile_is_not_replaced(tmp_path: Path, occupant: str) -> None:
    with pytest.raises(OutputExistsError):
        write(folder_at(tmp_path / "out"), then=partial(OCCUPANTS[occupant], tmp_path / "out"))
    assert os.listdir(tmp_path) == ["out"]
    assert "new" not in shown(tmp_path).values()


@both
def test_modes_are_those_of_the_umask(tmp_path: Path, make: Make) -> None:
    before = os.umask(0o027)
    try:
        with make(tmp_path / "out") as folder:
            fill(folder, "new")
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o640)


@both
def test_a_live_writer_is_recognised(tmp_path: Path, make: Make) -> None:
    with make(tmp_path / "out") as folder:
        with pytest.raises(OutputError, match="is being written by another process"), make(tmp_path / "out"):
            pass
        fill(folder, "new")
    assert (tmp_path / "out").exists()


CHILD = """
import os, signal, sys
from pathlib import Path
from unshard.storage.folders import new_folder
with new_folder(Path(sys.argv[1]), overwrite=False, durable=False) as folder:
    (folder / "half").write_text("half of it")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    child = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path / "out")], check=False)
    assert child.returncode == -signal.SIGKILL
    assert os.listdir(tmp_path) == [".out.unshard"]
    with folder_at(tmp_path / "out") as folder:
        assert not list(folder.iterdir())
        (folder / "model").write_text("new")
    assert shown(tmp_path) == {"out/model": "new"}


def killed_between_two_renames(tmp_path: Path) -> None:
    """Leave what a process leaves that dies after moving the old folder away."""
    make_folder(tmp_path / "out")
    (tmp_path / ".out.unshard" / "new-1-0").mkdir(parents=True)
    (tmp_path / ".out.unshard" / "lock").touch()
    (tmp_path / "out").rename(tmp_path / ".out.unshard" / "old")


def test_an_old_folder_comes_back_after_a_crash_in_the_middle_of_its_replacement(tmp_path: Path) -> None:
    killed_between_two_renames(tmp_path)
    with pytest.raises(OutputExistsError), folder_at(tmp_path / "out"):
        pass
    assert shown(tmp_path) == {"out/precious": "old"}
    assert os.listdir(tmp_path) == ["out"]


def test_a_crash_in_the_middle_of_a_replacement_does_not_stop_the_next(tmp_path: Path) -> None:
    killed_between_two_renames(tmp_path)
    with folder_at(tmp_path / "out", overwrite=True) as folder:
        assert shown(tmp_path / "out") == {"precious": "old"}
        (folder / "model").write_text("new")
    assert shown(tmp_path) == {"out/model": "new"}


def test_without_locks_the_leftovers_of_others_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(_descriptor: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with folder_at(tmp_path / "out") as first:
        fill(first, "first")
        with folder_at(tmp_path / "out") as second:
            fill(second, "second")
            assert shown(first)["out"] == "first"
        with pytest.raises(OutputExistsError), folder_at(tmp_path / "out"):
            pass
        (tmp_path / "out").rename(tmp_path / "kept")
    assert shown(tmp_path / "kept")["out"] == "second"
    assert shown(tmp_path / "out")["out"] == "first"


def test_without_hard_links_files_are_renamed_and_still_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(_source: Path, _target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    (tmp_path / "there").mkdir()
    appear = partial((tmp_path / "there" / "out").write_text, "somebody else's")
    write(files_at(tmp_path / "out"))
    with pytest.raises(OutputExistsError):
        write(files_at(tmp_path / "there" / "out"), then=appear)
    assert shown(tmp_path) == {"out": "new", "out.json": "new", "there/out": "somebody else's"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@both
def test_a_disk_that_becomes_full_is_told_and_left_clean(small_disk: Path, make: Make) -> None:
    with (
        pytest.raises(NoSpaceError, match="No space left on device"),
        make(small_disk / "new" / "out") as folder,
    ):
        (folder / "out").write_bytes(bytes(3 << 20))
    assert not list(small_disk.iterdir())


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(small_disk: Path) -> None:
    require_space(small_disk / "out", 2 << 20)
    with pytest.raises(NoSpaceError, match=r"2,097,152 bytes free at .* at least 2,097,153"):
        require_space(small_disk / "not" / "there" / "yet", (2 << 20) + 1)


@both
def test_a_place_that_may_not_be_written_to_is_told(small_disk: Path, make: Make) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OutputPermissionError, match="Read-only file system"), make(small_disk / "out"):
        pass


def test_a_parent_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="Not a directory"), folder_at(tmp_path / "file" / "out"):
        pass


def test_a_mount_point_is_not_replaced(small_disk: Path) -> None:
    (small_disk / "precious").write_text("old")
    with pytest.raises(OutputError, match="busy"), folder_at(small_disk, overwrite=True) as folder:
        fill(folder, "new")
    assert shown(small_disk.parent) == {"disk/precious": "old"}


def test_errors_of_the_block_that_are_not_about_writing_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="somewhere else"), folder_at(tmp_path / "out"):
        (tmp_path / "somewhere else").read_text()


@pytest.mark.parametrize(
    ("output", "source", "problem"),
    [
        ("run/out", "run", "lies inside"),
        ("run", "run", "lies inside"),
        ("run/model.pt", "run/model.pt", "lies inside"),
        ("link/out", "run", "lies inside"),
        ("run/out", "link", "lies inside"),
        (".", "run", "holds"),
        ("run", "run/model.pt", "holds"),
        ("link", "run/model.pt", "holds"),
        ("run", "run/elsewhere.pt", "holds"),
    ],
)
def test_an_output_in_or_around_the_source_is_refused(
    tmp_path: Path, output: str, source: str, problem: str
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.pt").touch()
    (tmp_path / "other.pt").touch()
    (tmp_path / "run" / "elsewhere.pt").symlink_to("../other.pt")
    (tmp_path / "link").symlink_to("run")
    with pytest.raises(OutputInsideSourceError, match=problem):
        require_outside(tmp_path / output, [tmp_path / source])


@pytest.mark.parametrize(
    ("output", "source"), [("run-2", "run"), ("run/out", "run/model.pt"), ("out", "link")]
)
def test_an_output_beside_the_source_is_fine(tmp_path: Path, output: str, source: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    require_outside(tmp_path / output, [tmp_path / source])
