"""Putting the page on the disk: whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unshard.errors import OutputError
from unshard.report.contents import Report
from unshard.storage.output_errors import output_errors


def require_writable(path: Path) -> None:
    """Raise where a report cannot be put, before hours are spent on what it tells.

    Raises:
        OutputError: There is no folder to put it in, or something else than a file is in its place.
        OutputPermissionError: The folder does not let us write.
    """
    if path.is_dir():
        raise OutputError(
            path, "is a folder, and a report is one file", hint=f"Name the file: {path / 'report.html'}"
        )
    if path.exists() and not path.is_file():
        raise OutputError(path, "is not a file, so no report is put in its place")
    if not path.parent.is_dir():
        raise OutputError(
            path, "cannot be written: there is no such folder", hint="Name a file in a folder that is there."
        )
    with output_errors(path), _file_beside(path):
        pass


def write_report(report: Report, path: Path) -> None:
    """Write the page to `path`, in place of one that is there.

    Raises:
        OutputError: It cannot be written; what was there before is still there.
    """
    from unshard.report.rendering import render_report

    require_writable(path)
    content = render_report(report).encode()
    with output_errors(path), _file_beside(path) as made:
        made.write_bytes(content)
        os.replace(made, path)


@contextmanager
def _file_beside(path: Path) -> Iterator[Path]:
    """Yield a new file in the folder of `path`, which is gone after the block unless it was moved."""
    made = path.with_name(f".unshard-report-{secrets.token_hex(8)}")
    made.touch(exist_ok=False)
    try:
        yield made
    finally:
        with suppress(OSError):
            made.unlink(missing_ok=True)
