"""How long work tells how far it is, without knowing who listens."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told about stages of work, from any thread."""

    def start(self, stage: str, total_bytes: int) -> None:
        """Begin a stage that will move `total_bytes`; the stage before it is over."""

    def advance(self, count: int) -> None:
        """Report that `count` more bytes of the stage are done."""


class Silence:
    """Progress that nobody listens to."""

    def start(self, stage: str, total_bytes: int) -> None:
        """Do nothing."""

    def advance(self, count: int) -> None:
        """Do nothing."""
