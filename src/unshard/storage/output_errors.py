"""The one place where what the operating system says about writing becomes an `OutputError`."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unshard.errors import (
    NoSpaceError,
    OutputError,
    OutputExistsError,
    OutputPermissionError,
    UnshardError,
)

FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
_FORBIDDEN = frozenset((errno.EACCES, errno.EPERM, errno.EROFS))
_TAKEN = frozenset((errno.EEXIST, errno.ENOTEMPTY))


@contextmanager
def output_errors(subject: Path) -> Iterator[None]:
    """Turn any `OSError` of the block, which must only write `subject`, into an `OutputError`."""
    try:
        yield
    except UnshardError:
        raise
    except OSError as error:
        raise output_error(subject, error) from error


def output_error(subject: Path, error: OSError) -> OutputError:
    """Return what `error` means for somebody who wanted `subject` to be written."""
    if error.errno in FULL:
        return NoSpaceError(
            subject,
            "cannot be written",
            saw=error.strerror,
            hint="Nothing was left behind. Free some space, or write to another disk.",
        )
    if error.errno in _FORBIDDEN:
        return OutputPermissionError(
            subject,
            "cannot be written",
            saw=error.strerror,
            hint="Choose a folder that this user may write to.",
        )
    if error.errno in _TAKEN:
        return already_exists(subject)
    return OutputError(subject, "cannot be written", saw=error.strerror)


def already_exists(target: Path) -> OutputExistsError:
    """Return the error that says `target` is taken."""
    return OutputExistsError(
        target, "already exists", hint="Choose another output, or replace this one with --overwrite."
    )
