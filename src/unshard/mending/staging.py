"""Where changes of a folder are prepared, and the lock that keeps others from making their own.

Nothing of the folder changes before everything that is new lies on the disk; `journal` tells how it then
changes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from unshard.errors import OutputError
from unshard.mending.journal import (
    JOURNAL,
    JOURNAL_FOLDER,
    Journal,
    Move,
    Patch,
    complete,
    finish,
    recover,
    take_back,
    write_journal,
)
from unshard.storage.folders import sync
from unshard.storage.output_errors import output_errors


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
        write_journal(self._folder, journal)
        try:
            complete(self._folder, journal)
            verify()
        except BaseException:
            take_back(self._folder, journal)
            finish(self._folder)
            raise
        finish(self._folder)

    def abandon(self) -> None:
        """Remove what was staged, if nothing was committed."""
        if not os.path.lexists(self.new.parent / JOURNAL):
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


def _copy_owner(path: Path, staged: Path) -> None:
    """Let a staged file have the mode, and as far as we may the owner, of the file it takes the place of."""
    if path.is_file():
        status = path.stat()
        staged.chmod(stat.S_IMODE(status.st_mode))
        if os.geteuid() == 0:
            os.chown(staged, status.st_uid, status.st_gid)


def _sync_tree(folder: Path) -> None:
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(place, name))
        sync(Path(place))


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
