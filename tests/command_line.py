"""Runs the command line inside the test's process, and keeps what it says."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from unshard.cli.main import main


@dataclass(frozen=True, slots=True)
class Said:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def words(self) -> str:
        """Everything on both streams, with line breaks taken for spaces."""
        return re.sub(r"\s+", " ", f"{self.out} {self.err}")


Unshard = Callable[..., Said]


@pytest.fixture
def unshard(capsys: pytest.CaptureFixture[str]) -> Unshard:
    """The command, as a function of its arguments."""

    def run(*words: object) -> Said:
        capsys.readouterr()
        terminate = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as ended:
                main([str(word) for word in words])
        finally:
            signal.signal(signal.SIGTERM, terminate)
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Said(ended.value.code, said.out, said.err)

    return run


def files_below(folder: Path) -> list[str]:
    """Return every path below a folder, hidden ones included."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
