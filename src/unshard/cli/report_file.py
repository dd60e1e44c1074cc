"""`--report`: the page for people who would rather look, beside the answer that is printed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from unshard.cli.printing import note

if TYPE_CHECKING:
    from unshard.report import Report


def require_report_place(path: Path | None) -> None:
    """Raise where the page could not be written, before anything else is done.

    Raises:
        OutputError: There is no folder to put it in, or something else than a file is in its place.
    """
    if path is not None:
        from unshard.report import require_writable

        require_writable(path)


def write_report_file(path: Path | None, make: Callable[[], Report]) -> None:
    """Make the page and write it, where one is wanted; its place is told on stderr.

    Raises:
        OutputError: It cannot be written.
    """
    if path is not None:
        from unshard.report import write_report

        write_report(make(), path)
        note(f"report: {path}")
