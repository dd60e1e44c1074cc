"""The hidden folder beside an output, which belongs to one process at a time.

    .out.unshard/
        lock                locked while a process writes; the kernel lets go when it dies
        old                 the `out` that is being replaced, until the new one is in its place
        new-<pid>-<random>  what will be `out`

Where the lock is free and the folder is there, its process was killed: what is left in it is
removed, and `old` goes back where it finds no target. On file systems without locks (some Lustre
mounts) leftovers stay, because they may be somebody's work.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unshard.errors import OutputError
from unshard.storage.output_errors import output_errors

_NO_LOCKS = frozenset((errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP))


@contextmanager
def claimed(target: Path) -> Iterator[Path]:
    """Yield the hidden folder of `target`, cleared and locked; remove it afterwards.

    Raises:
        OutputError: Another process is writing `target`, or the hidden folder cannot be made.
    """
    hidden = target.parent / f".{target.name}.unshard"
    with output_errors(target):
        descriptor, locked = _lock(hidden, target)
    try:
        if locked:
            with output_errors(target):
                _clear(hidden, target)
        yield hidden
    finally:
        with suppress(OSError):
            if locked:
                _clear(hidden, target)
            (hidden / "lock").unlink()
        os.close(descriptor)
        with suppress(OSError):  # the next process may already wait in it
            hidden.rmdir()


def _lock(hidden: Path, target: Path) -> tuple[int, bool]:
    """Return an open descriptor of the lock in `hidden`, and whether this file system has locks.

    Raises:
        OutputError: Another process holds it.
    """
    while True:
        hidden.mkdir(exist_ok=True)
        try:
            descriptor = os.open(hidden / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            continue  # whoever had it has just finished and removed the folder
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(hidden / "lock")):
                return descriptor, True
        except FileNotFoundError:
            pass  # removed between the opening and the locking: not the lock of this folder any more
        except BlockingIOError as error:
            os.close(descriptor)
            raise OutputError(
                target,
                "is being written by another process",
                hint="Wait until it has finished, or choose another output.",
            ) from error
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return descriptor, False
            os.close(descriptor)
            raise
        os.close(descriptor)


def _clear(hidden: Path, target: Path) -> None:
    """Remove everything but the lock, after putting back a target that was about to be replaced."""
    old = hidden / "old"
    if os.path.lexists(old) and not os.path.lexists(target):
        old.rename(target)
    for entry in hidden.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != "lock":
            entry.unlink()
