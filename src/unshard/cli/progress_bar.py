"""A progress bar on stderr: bytes, bytes per second, time left."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from unshard.progress import Progress, Silence

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


class _Bar:
    """Progress shown by rich, one line per stage."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._task: int | None = None
        self._lock = threading.Lock()

    def start(self, stage: str, total_bytes: int) -> None:
        self._task = self._bar.add_task(stage, total=max(total_bytes, 1))

    def advance(self, count: int) -> None:
        with self._lock:
            if self._task is not None:
                self._bar.advance(self._task, count)  # type: ignore[arg-type]


@contextmanager
def progress_bar(*, shown: bool) -> Iterator[Progress]:
    """Give progress that is drawn while the block runs, where stderr is a terminal and it is wanted."""
    if not (shown and sys.stderr.isatty()):
        yield Silence()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Bar(bar)
