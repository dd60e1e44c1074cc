"""A process that dies while it mends leaves the old folder or the new one within reach."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from folders_to_mend import contents, copied, rename_weights, set_config, split, wrapped

from unshard import UnshardError, mend
from unshard.mending.journal import JOURNAL, JOURNAL_FOLDER

# For n = 1, 2, ...: copies a folder and forks a child that mends the copy, and kills itself before its n-th
# change of the file system. Ends with the first child that is done before it is killed, or that leaves a
# certain file.
DRIVER = """
import json, os, shutil, signal, sys
from pathlib import Path
import numpy
from unshard.mending import mend
import unshard.mending.applying, unshard.mending.job

broken, root, options, early = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.chown", "shutil.rmtree"}
left, folder = 0, broken

def count_down():
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

def hook(event, arguments):
    if event not in CHANGES or (event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)):
        return
    # `rmtree` names what it removes relative to the folder that it is in.
    if str(arguments[0]).startswith(str(folder)) or not os.path.isabs(str(arguments[0])):
        count_down()

def counting(number, *arguments):
    if ".unshard-mend" not in os.readlink(f"/proc/self/fd/{number}"):
        count_down()
    return pwrite(number, *arguments)

pwrite, ended, number = os.pwrite, -1, 0
while ended != 0 and not (early and (folder / early).exists()):
    number += 1
    folder = shutil.copytree(broken, root / str(number))
    child = os.fork()
    if child == 0:
        left, os.pwrite = number, counting
        sys.addaudithook(hook)
        mend(folder, in_place=True, workers=1, **options)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended in (0, -signal.SIGKILL), ended
"""


def kill_everywhere(broken: Path, root: Path, options: Mapping[str, object], early: str = "") -> list[Path]:
    """Return what is left of a folder, whenever a process dies that mends it; the last was not killed.

    It is, where a file is named to end with as soon as it is left.
    """
    root.mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [str(broken), str(root), json.dumps(options), early]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *arguments], env=environment, check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    return sorted(root.iterdir(), key=lambda path: int(path.name))


def break_headers(folder: Path) -> None:
    """One header that is written over, and two small files that are replaced."""
    rename_weights(folder, wrapped)
    set_config(folder, use_cache=False)


def break_longer(folder: Path) -> None:
    """A header that becomes longer, under another name."""
    rename_weights(folder, lambda name: name.removeprefix("model."))
    (folder / "model.safetensors").rename(folder / "weights.safetensors")


def break_names(folder: Path) -> None:
    """Files of weights that exchange their names, and no index."""
    split(folder)
    names = sorted(path.name for path in folder.glob("model-*.safetensors"))
    (folder / names[0]).rename(folder / "model-00000.safetensors")
    (folder / "model.safetensors.index.json").unlink()


CASES: Mapping[str, tuple[Callable[[Path], None], Mapping[str, object]]] = {
    "headers": (break_headers, {}),
    "longer headers": (break_longer, {}),
    "names of files": (break_names, {}),
    "another split": (break_headers, {"max_shard_size": "200KB"}),
}


@pytest.mark.parametrize("case", CASES)
def test_killed_before_any_change_of_the_file_system(llama: Path, tmp_path: Path, case: str) -> None:
    damage, options = CASES[case]
    damage(copied(llama, tmp_path / "broken"))
    options = {**options, "base": str(llama)}
    *killed, whole = kill_everywhere(tmp_path / "broken", tmp_path / "dead", options)
    old, new = contents(tmp_path / "broken"), contents(whole)
    states = []
    for folder in killed:
        begun = (folder / JOURNAL_FOLDER / JOURNAL).exists()
        shown = {name: text for name, text in contents(folder).items() if not name.startswith(".")}
        assert begun or shown in (old, new), folder.name
        states.append("between" if begun else "old" if shown == old else "new")
        done = mend(folder, in_place=True, **options)  # type: ignore[arg-type]
        assert done.recovered == begun
        assert contents(folder) == new, folder.name
    assert list(dict.fromkeys(states)) == ["old", "between", "new"]
    assert len(killed) > 10


@pytest.fixture
def dead(llama: Path, tmp_path: Path) -> Path:
    """A folder in the middle of being mended by a process that is dead."""
    break_headers(copied(llama, tmp_path / "broken"))
    return kill_everywhere(tmp_path / "broken", tmp_path / "dead", {}, f"{JOURNAL_FOLDER}/{JOURNAL}")[-1]


def test_a_folder_that_is_in_between_is_not_read(dead: Path, tmp_path: Path) -> None:
    for arguments in ((), (tmp_path / "out",)):
        with pytest.raises(UnshardError, match="is being mended, or was when the process died"):
            mend(dead, *arguments)


def test_a_file_that_somebody_replaced_meanwhile_is_not_written_to(dead: Path) -> None:
    content = (dead / "model.safetensors").read_bytes()
    (dead / "model.safetensors").unlink()
    (dead / "another").write_bytes(b"it takes the number of the old file")
    (dead / "model.safetensors").write_bytes(content)
    with pytest.raises(UnshardError, match="was changed by somebody else"):
        mend(dead, in_place=True)
    assert (dead / "model.safetensors").read_bytes() == content
    assert (dead / JOURNAL_FOLDER / JOURNAL).exists()


HOSTILE: Mapping[str, object] = {
    "no object": [1],
    "no lists": {"moves": 3, "patches": []},
    "other fields": {"moves": [{"inode": 1, "source": "a"}], "patches": []},
    "a way out": {
        "moves": [{"inode": 1, "before": "../secret", "after": "model.safetensors"}],
        "patches": [],
    },
    "an absolute path": {"moves": [{"inode": 1, "before": "a", "after": "/tmp/a"}], "patches": []},
    "a null byte": {"moves": [{"inode": 1, "before": "a", "after": "a\0b"}], "patches": []},
    "a number": {"moves": [{"inode": 1, "before": "a", "after": 7}], "patches": []},
    "a patch outside": {
        "moves": [],
        "patches": [
            {"inode": 1, "name": "../secret", "size": 6, "before": "x", "after": ".unshard-mend/new/0"}
        ],
    },
    "a link on the way": {"moves": [{"inode": 1, "before": "link/secret", "after": "a"}], "patches": []},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_journal_that_leads_out_of_the_folder_is_refused(llama: Path, tmp_path: Path, case: str) -> None:
    folder = copied(llama, tmp_path / "folder")
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path)
    for name in ("new", "old"):
        (folder / JOURNAL_FOLDER / name).mkdir(parents=True)
    (folder / JOURNAL_FOLDER / "new" / "0").write_text("broken")
    (folder / JOURNAL_FOLDER / JOURNAL).write_text(json.dumps(HOSTILE[case]))
    before = contents(folder)
    with pytest.raises(UnshardError, match="is no journal that this program writes"):
        mend(folder, in_place=True)
    assert contents(folder) == before
    assert (tmp_path / "secret").read_text() == "secret"


@pytest.mark.parametrize("place", ["", "new", "old"])
def test_a_journal_behind_a_link_is_refused(llama: Path, tmp_path: Path, place: str) -> None:
    folder = copied(llama, tmp_path / "folder")
    elsewhere = tmp_path / "elsewhere"
    for name in ("new", "old"):
        (elsewhere / name).mkdir(parents=True)
    for parent in (elsewhere, elsewhere / "new", elsewhere / "old"):
        (parent / JOURNAL).write_text('{"moves": [], "patches": []}')
    if place:
        (folder / JOURNAL_FOLDER).mkdir()
        for name in ("new", "old"):
            if name != place:
                (folder / JOURNAL_FOLDER / name).mkdir()
        (folder / JOURNAL_FOLDER / JOURNAL).write_text('{"moves": [], "patches": []}')
    (folder / JOURNAL_FOLDER / place).symlink_to(elsewhere / place)
    before = contents(elsewhere)
    with pytest.raises(UnshardError, match="is no journal that this program writes"):
        mend(folder, in_place=True)
    assert contents(elsewhere) == before
