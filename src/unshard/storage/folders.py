"""Outputs that appear whole or not at all.

What is written lies in a hidden folder beside the target, on the same file system (`claims` tells
how that folder is shared with other processes and with the dead). One rename makes it visible.

Source:
    The order of the `fsync`s is the one that survives a power cut on ext4, xfs and btrfs: every
    file, their folder, the rename, the parent. Success is reported after the last of them.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from unshard.errors import NoSpaceError, OutputInsideSourceError
from unshard.storage.claims import claimed
from unshard.storage.output_errors import FULL, already_exists, output_error, output_errors

_NO_LINKS = frozenset((errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK))


@contextmanager
def new_folder(target: Path, *, overwrite: bool, durable: bool) -> Iterator[Path]:
    """Yield an empty folder to fill; rename it to `target` only if the block succeeds.

    If the block raises, or is interrupted, everything that was made is removed, missing parents of
    `target` included. What is replaced is deleted after the new folder is in its place; for an
    instant between two renames there is neither, and after a crash in that instant the next run
    puts the old one back. Somebody who makes an *empty* folder at `target` meanwhile loses it.

    Args:
        target: The folder that appears.
        overwrite: Whether what is at `target` may be replaced.
        durable: Whether to wait until the disk has all of it, before and after the rename.

    Raises:
        OutputExistsError: There is something at `target`, and `overwrite` is not set.
        OutputPermissionError: The parent does not let us write.
        NoSpaceError: The disk became full, in the block or here.
        OutputError: Another process is writing `target`, or the system refuses for another reason.
    """
    target = Path(os.path.abspath(target))
    with _staging([target], overwrite=overwrite, durable=durable) as folder:
        yield folder
        with output_errors(target):
            if durable:
                _sync_tree(folder)
            _put_folder(folder, target, overwrite=overwrite)
            if durable:
                sync(target.parent)


@contextmanager
def new_files(folder: Path, names: Sequence[str], *, overwrite: bool, durable: bool) -> Iterator[Path]:
    """Yield an empty folder to put the files `names` into; move them to `folder` if the block succeeds.

    They are moved in the order of `names`, so the last one is the one whose presence means success.
    Otherwise as `new_folder`, with the same arguments and errors.
    """
    targets = [Path(os.path.abspath(folder)) / name for name in names]
    with _staging(targets, overwrite=overwrite, durable=durable) as staged:
        yield staged
        with output_errors(targets[-1]):
            if durable:
                _sync_tree(staged)
            _put_files(staged, targets, overwrite=overwrite)
            if durable:
                sync(targets[-1].parent)


def require_space(target: Path, byte_count: int) -> None:
    """Raise unless the disk that will hold `target` has `byte_count` bytes free.

    Raises:
        NoSpaceError: It has not. A disk that does not tell its size is believed to be large.
    """
    existing = next(parent for parent in Path(os.path.abspath(target)).parents if parent.exists())
    with output_errors(target):
        status = os.statvfs(existing)
    free = status.f_bavail * status.f_frsize
    if status.f_blocks and free < byte_count:
        raise NoSpaceError(
            target,
            "does not fit on the disk",
            saw=f"{free:,} bytes free at {existing}",
            expected=f"at least {byte_count:,}",
            hint="Free some space, or write to another disk.",
        )


def require_outside(target: Path, sources: Iterable[Path]) -> None:
    """Raise if `target` is one of `sources`, lies inside one, or holds one; links are followed.

    Raises:
        OutputInsideSourceError: Writing there would change, or replace, what is being read.
    """
    for source in sources:
        for theirs in _names(source):
            for ours in _names(target):
                if theirs == ours or theirs in ours.parents:
                    problem = "lies inside what is being read"
                elif ours in theirs.parents:
                    problem = "holds what is being read"
                else:
                    continue
                raise OutputInsideSourceError(
                    target,
                    problem,
                    saw=theirs,
                    expected="an output elsewhere",
                    hint="Choose an output that is neither inside nor around the checkpoint and the base.",
                )


def _names(path: Path) -> list[Path]:
    """Return `path` with all links followed, and with all but its last part followed."""
    absolute = Path(os.path.abspath(path))
    return [absolute.resolve(), absolute.parent.resolve() / absolute.name]


@contextmanager
def _staging(targets: Sequence[Path], *, overwrite: bool, durable: bool) -> Iterator[Path]:
    """Yield an empty folder beside the targets that is gone afterwards, however the block ends."""
    target = targets[-1]
    _require_absent(targets, overwrite=overwrite)
    with _parents(target, durable=durable), claimed(target) as hidden:
        # Again: clearing up after a crash may have put an old one back.
        _require_absent(targets, overwrite=overwrite)
        folder = hidden / f"new-{os.getpid()}-{os.urandom(4).hex()}"
        with output_errors(target):
            folder.mkdir()
        try:
            yield folder
        except OSError as error:
            if error.errno in FULL:  # only writing fails in this way; other errors explain themselves
                raise output_error(target, error) from error
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _require_absent(targets: Sequence[Path], *, overwrite: bool) -> None:
    for target in targets:
        if not overwrite and os.path.lexists(target):
            raise already_exists(target)


@contextmanager
def _parents(target: Path, *, durable: bool) -> Iterator[None]:
    """Make the missing parents of `target`; remove them again if the block raises."""
    missing = [parent for parent in target.parents if not parent.exists()]
    try:
        with output_errors(target):
            for parent in reversed(missing):
                parent.mkdir(exist_ok=True)
                if durable:
                    sync(parent.parent)
        yield
    except BaseException:
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()
        raise


def _put_folder(folder: Path, target: Path, *, overwrite: bool) -> None:
    """Rename `folder` to `target`; what was there waits as `old` until the claim is given up."""
    old = folder.parent / "old"
    _require_absent([target], overwrite=overwrite)
    if os.path.lexists(target):
        target.rename(old)
    try:
        folder.rename(target)
    except BaseException:
        if os.path.lexists(old):
            old.rename(target)
        raise


def _put_files(staged: Path, targets: Sequence[Path], *, overwrite: bool) -> None:
    """Move the staged files to `targets`, in order; all or none of them where nothing is replaced."""
    placed: list[Path] = []
    try:
        for target in targets:
            if overwrite:
                (staged / target.name).replace(target)
            else:
                _put_new_file(staged / target.name, target)
                placed.append(target)
    except BaseException:
        for target in placed:
            target.unlink()
        raise


def _put_new_file(staged: Path, target: Path) -> None:
    """Make `staged` appear as `target`, which must not exist: a link refuses where a rename replaces."""
    try:
        os.link(staged, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _require_absent([target], overwrite=False)
        staged.rename(target)


def _sync_tree(folder: Path) -> None:
    """Wait until the disk has every file and folder under `folder`."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(place, name))
        sync(Path(place))


def sync(path: Path) -> None:
    """Wait until the disk has `path`: a file, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot sync folders
            raise
    finally:
        os.close(descriptor)
