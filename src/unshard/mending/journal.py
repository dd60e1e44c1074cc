"""Changes to a folder that happen all or not at all, whenever the process dies.

    .unshard-mend/
        new/<n>         what will be in the folder
        old/<n>         what was in it
        journal.json    written last: {"moves": [...], "patches": [...]}

First everything that is new is written into `new`, and nothing of the folder has changed. Then the journal
appears by one rename: from now on the folder is being changed, and everything is there to complete that
or to take it back. Files change places by renames, in order; headers are written over with as many bytes
as they had, of which the old ones are kept. At the end the journal goes first and the rest after it.

Every file is known by its inode, so a step that was done before a crash is not done twice. A folder may come
from a stranger, and its journal, too: names that lead out of the folder, and links, are refused.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from unshard.errors import OutputError, UnsafeFileError
from unshard.storage.folders import sync

JOURNAL_FOLDER = ".unshard-mend"
JOURNAL = "journal.json"
_LARGEST_JOURNAL = 64 << 20
_DEEPEST = 3


@dataclass(frozen=True, slots=True)
class Move:
    """A file that changes its place; both names are relative to the folder."""

    inode: int
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Patch:
    """The beginning of a file that is written over by as many bytes.

    Attributes:
        inode: The file.
        name: Its name when the moves are done.
        size: Its bytes, which stay as many.
        before: The name of the file that keeps the old bytes.
        after: The name of the file that holds the new ones.
    """

    inode: int
    name: str
    size: int
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Journal:
    """Everything that is changed in a folder, in order: first the moves, then the patches."""

    moves: tuple[Move, ...]
    patches: tuple[Patch, ...]


def is_being_mended(folder: Path) -> bool:
    """Return whether a process prepares to change the folder, changes it, or died over that."""
    return os.path.lexists(folder / JOURNAL_FOLDER)


def recover(folder: Path) -> bool:
    """Complete what a process that died had begun to change; return whether there was anything.

    The caller keeps others from changing the folder.

    Raises:
        OutputError: Its files are not those of the journal.
        UnsafeFileError: The journal leads out of the folder.
    """
    place = folder / JOURNAL_FOLDER
    if not os.path.lexists(place):
        return False
    _require_folder(place)
    begun = os.path.lexists(place / JOURNAL)
    if begun:
        journal = _read_journal(folder)
        for part in ("new", "old"):
            _require_folder(place / part)
        complete(folder, journal)
    finish(folder)
    return begun


def complete(folder: Path, journal: Journal) -> None:
    """Do every step that is not done yet."""
    for move in journal.moves:
        _rename(folder, move.inode, move.before, move.after)
    _require_places(folder, {move.inode: move.after for move in journal.moves})
    for patch in journal.patches:
        _write_over(folder, patch, patch.after)
    _sync_places(folder, journal)


def take_back(folder: Path, journal: Journal) -> None:
    """Undo every step that is done."""
    if all(_inode(folder / patch.name) == patch.inode for patch in journal.patches):
        for patch in journal.patches:  # none was written before all files were in their places
            _write_over(folder, patch, patch.before)
    for move in reversed(journal.moves):
        _rename(folder, move.inode, move.after, move.before)
    _require_places(folder, {move.inode: move.before for move in reversed(journal.moves)})
    _sync_places(folder, journal)


def finish(folder: Path) -> None:
    """Remove the journal, after which the rest means nothing, and then the rest."""
    place = folder / JOURNAL_FOLDER
    with suppress(FileNotFoundError):
        (place / JOURNAL).unlink()
        sync(place)
    shutil.rmtree(place)


def _rename(folder: Path, inode: int, before: str, after: str) -> None:
    """Move a file, if it is still where it comes from; nothing that is elsewhere is replaced."""
    source, target = folder / before, folder / after
    if _inode(source) != inode:
        return
    if os.path.lexists(target):
        raise _changed(target, "a file that was not there before")
    target.parent.mkdir(exist_ok=True)
    source.rename(target)


def _require_places(folder: Path, places: dict[int, str]) -> None:
    for inode, name in places.items():
        if _inode(folder / name) != inode:
            raise _changed(folder / name, "another file, or none")


def _inode(path: Path) -> int | None:
    try:
        return path.lstat().st_ino
    except (FileNotFoundError, NotADirectoryError):
        return None


def _write_over(folder: Path, patch: Patch, source: str) -> None:
    """Write the beginning of a file, which must be the one that the journal speaks of."""
    content = (folder / source).read_bytes()
    descriptor = os.open(folder / patch.name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if (status.st_ino, status.st_size) != (patch.inode, patch.size) or len(content) > patch.size:
            raise _changed(folder / patch.name, f"{status.st_size} bytes, inode {status.st_ino}")
        done = 0
        while done < len(content):
            done += os.pwrite(descriptor, content[done:], done)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _changed(path: Path, saw: str) -> OutputError:
    return OutputError(
        path,
        "was changed by somebody else while the folder was being mended",
        saw=saw,
        hint=f"Old and new files are in {JOURNAL_FOLDER}: put the right ones in place, and remove it.",
    )


def write_journal(folder: Path, journal: Journal) -> None:
    """Let the journal appear, whole, on the disk."""
    place = folder / JOURNAL_FOLDER
    unfinished = place / f"{JOURNAL}.unfinished"
    unfinished.write_text(json.dumps(asdict(journal)))
    sync(unfinished)
    unfinished.rename(place / JOURNAL)
    sync(place)


def _read_journal(folder: Path) -> Journal:
    """Return the journal of a folder.

    Raises:
        UnsafeFileError: It is none, or leads out of the folder.
    """
    path = folder / JOURNAL_FOLDER / JOURNAL
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST_JOURNAL:
            raise ValueError("it is no regular file, or too large")
        plain = json.loads(path.read_bytes())
        moves = tuple(Move(**move) for move in plain["moves"])
        patches = tuple(Patch(**patch) for patch in plain["patches"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unsafe(path, str(error)) from error
    names = [name for move in moves for name in (move.before, move.after)]
    names += [name for patch in patches for name in (patch.name, patch.before, patch.after)]
    for name in names:
        _require_inside(folder, name, path)
    return Journal(moves, patches)


def _require_inside(folder: Path, name: object, journal: Path) -> None:
    """Raise unless a name is that of a place in the folder, to which no link leads."""
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    if not 0 < len(parts) <= _DEEPEST or not {"..", "/"}.isdisjoint(parts) or "\0" in str(name):
        raise _unsafe(journal, f"the name {name!r}")
    place = folder
    for part in parts[:-1]:
        place = place / part
        if os.path.lexists(place):
            _require_folder(place)


def _require_folder(path: Path) -> None:
    if not stat.S_ISDIR(path.lstat().st_mode):
        raise _unsafe(path, "a file or a link where a folder should be")


def _unsafe(path: Path, saw: str) -> UnsafeFileError:
    return UnsafeFileError(
        path,
        "is no journal that this program writes",
        saw=saw,
        expected="names of files in the folder",
        hint=f"If nobody is mending the folder, remove {JOURNAL_FOLDER} from it.",
    )


def _sync_places(folder: Path, journal: Journal) -> None:
    """Wait until the disk has the names of everything that was moved."""
    names = [name for move in journal.moves for name in (move.before, move.after)]
    for parent in {(folder / name).parent for name in names}:
        if parent.exists():
            sync(parent)
