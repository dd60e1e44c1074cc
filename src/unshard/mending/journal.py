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

import errno
import fcntl
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from unshard.errors import OutputError, UnsafeFileError
from unshard.storage.output_errors import output_errors

JOURNAL_FOLDER = ".unshard-mend"
_JOURNAL = "journal.json"
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


class Staging:
    """The hidden place in a folder where what is new is made, and the steps that bring it out."""

    def __init__(self, folder: Path) -> None:
        """Make the place; whatever a dead process left there must have been dealt with before."""
        self._folder = folder
        self._moves: list[Move] = []
        self._patches: list[Patch] = []
        self.new = folder / JOURNAL_FOLDER / "new"
        for path in (self.new.parent, self.new, self.new.parent / "old"):
            path.mkdir()

    def write(self, name: str, content: bytes) -> None:
        """Let `name` hold `content`, in the place of what it holds now."""
        staged = self.new / str(self._number())
        staged.write_bytes(content)
        self.put(staged, name)

    def put(self, staged: Path, name: str) -> None:
        """Let a file in `new` become `name`, in the place of what is there now."""
        _copy_owner(self._folder / name, staged)
        self._make_room(name)
        self._move(str(staged.relative_to(self._folder)), name)

    def remove(self, name: str) -> None:
        """Let `name` vanish."""
        self._move(name, f"{JOURNAL_FOLDER}/old/{self._number()}")

    def rename(self, names: Mapping[str, str]) -> None:
        """Let files have other names, which others of them may have now."""
        taken: list[tuple[Move, str]] = []
        for name, target in names.items():
            self._move(name, f"{JOURNAL_FOLDER}/new/{self._number()}")
            taken.append((self._moves[-1], target))
        for move, target in taken:
            self._make_room(target)
            self._moves.append(Move(move.inode, move.after, target))

    def patch(self, name: str, target: str, content: bytes) -> None:
        """Let a file, called `target` by then, begin with `content`, which is as long as what it replaces."""
        number, path = self._number(), self._folder / name
        status = path.lstat()
        with path.open("rb") as file:
            (self.new.parent / "old" / str(number)).write_bytes(file.read(len(content)))
        (self.new / str(number)).write_bytes(content)
        kept, new = f"{JOURNAL_FOLDER}/old/{number}", f"{JOURNAL_FOLDER}/new/{number}"
        self._patches.append(Patch(status.st_ino, target, status.st_size, kept, new))

    def commit(self, verify: Callable[[], None]) -> None:
        """Change the folder: all of it, or nothing where that fails, or `verify` raises afterwards."""
        journal = Journal(tuple(self._moves), tuple(self._patches))
        _sync_tree(self.new.parent)
        _write_journal(self._folder, journal)
        try:
            _complete(self._folder, journal)
            verify()
        except BaseException:
            _take_back(self._folder, journal)
            _finish(self._folder)
            raise
        _finish(self._folder)

    def abandon(self) -> None:
        """Remove what was staged, if nothing was committed."""
        if not os.path.lexists(self.new.parent / _JOURNAL):
            shutil.rmtree(self.new.parent, ignore_errors=True)

    def _make_room(self, name: str) -> None:
        if os.path.lexists(self._folder / name) and not any(m.before == name for m in self._moves):
            self.remove(name)

    def _number(self) -> int:
        return len(self._moves) + len(self._patches)

    def _move(self, before: str, after: str) -> None:
        self._moves.append(Move((self._folder / before).lstat().st_ino, before, after))


@contextmanager
def staged_changes(folder: Path, *, verify: Callable[[], None]) -> Iterator[Staging]:
    """Yield where changes of a folder are prepared; they happen when the block ends well.

    Args:
        folder: The folder.
        verify: Raises if the changed folder is not what it should be; it is then as it was before.

    Raises:
        OutputError: Another process is changing the folder, or the system refuses.
    """
    with _locked(folder), output_errors(folder):
        recover(folder)
        staging = Staging(folder)
        try:
            yield staging
            staging.commit(verify)
        finally:
            staging.abandon()


def is_being_mended(folder: Path) -> bool:
    """Return whether a process prepares to change the folder, changes it, or died over that."""
    return os.path.lexists(folder / JOURNAL_FOLDER)


def recover_folder(folder: Path) -> bool:
    """Complete what a process that died had begun to change; return whether there was anything.

    Raises:
        OutputError: Another process is changing the folder, or its files are not those of the journal.
        UnsafeFileError: The journal leads out of the folder.
    """
    if not os.path.lexists(folder / JOURNAL_FOLDER):
        return False
    with _locked(folder), output_errors(folder):
        return recover(folder)


def recover(folder: Path) -> bool:
    """Do what `recover_folder` does, in a folder that is locked."""
    place = folder / JOURNAL_FOLDER
    if not os.path.lexists(place):
        return False
    _require_folder(place)
    begun = os.path.lexists(place / _JOURNAL)
    if begun:
        journal = _read_journal(folder)
        for part in ("new", "old"):
            _require_folder(place / part)
        _complete(folder, journal)
    _finish(folder)
    return begun


def _complete(folder: Path, journal: Journal) -> None:
    """Do every step that is not done yet."""
    for move in journal.moves:
        _rename(folder, move.inode, move.before, move.after)
    _require_places(folder, {move.inode: move.after for move in journal.moves})
    for patch in journal.patches:
        _write_over(folder, patch, patch.after)
    _sync_places(folder, journal)


def _take_back(folder: Path, journal: Journal) -> None:
    """Undo every step that is done."""
    if all(_inode(folder / patch.name) == patch.inode for patch in journal.patches):
        for patch in journal.patches:  # none was written before all files were in their places
            _write_over(folder, patch, patch.before)
    for move in reversed(journal.moves):
        _rename(folder, move.inode, move.after, move.before)
    _require_places(folder, {move.inode: move.before for move in reversed(journal.moves)})
    _sync_places(folder, journal)


def _finish(folder: Path) -> None:
    """Remove the journal, after which the rest means nothing, and then the rest."""
    place = folder / JOURNAL_FOLDER
    with suppress(FileNotFoundError):
        (place / _JOURNAL).unlink()
        _sync(place)
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


def _copy_owner(path: Path, staged: Path) -> None:
    """Let a staged file have the mode, and as far as we may the owner, of the file it takes the place of."""
    if path.is_file():
        status = path.stat()
        staged.chmod(stat.S_IMODE(status.st_mode))
        if os.geteuid() == 0:
            os.chown(staged, status.st_uid, status.st_gid)


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


def _write_journal(folder: Path, journal: Journal) -> None:
    """Let the journal appear, whole, on the disk."""
    place = folder / JOURNAL_FOLDER
    unfinished = place / f"{_JOURNAL}.unfinished"
    unfinished.write_text(json.dumps(asdict(journal)))
    _sync(unfinished)
    unfinished.rename(place / _JOURNAL)
    _sync(place)


def _read_journal(folder: Path) -> Journal:
    """Return the journal of a folder.

    Raises:
        UnsafeFileError: It is none, or leads out of the folder.
    """
    path = folder / JOURNAL_FOLDER / _JOURNAL
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
            _sync(parent)


def _sync_tree(folder: Path) -> None:
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync(Path(place, name))
        _sync(Path(place))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot sync folders
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep others from mending the folder; the kernel lets go when the process dies.

    Raises:
        OutputError: Another process is mending it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                folder, "is being mended by another process", hint="Wait until it has finished."
            ) from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)
