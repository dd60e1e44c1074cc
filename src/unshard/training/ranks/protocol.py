"""The ranks of a training, as far as saving needs them: agree, fail together, pass bytes, miss nobody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Ranks(Protocol):
    """Every rank of a training, seen from one of them. All calls but `rank` and `size` are collective.

    A rank that fails, dies or hangs ends the call on every other rank with an error that names it.
    """

    @property
    def rank(self) -> int:
        """This rank."""

    @property
    def size(self) -> int:
        """How many ranks there are."""

    def gather(self, phase: str, value: T) -> list[T]:
        """Return the value of every rank, in their order."""

    def broadcast(self, phase: str, value: T | None) -> T:
        """Return the value of rank 0; what the others give is ignored."""

    def together(self, phase: str, work: Callable[[], T]) -> list[T]:
        """Return what `work` returns on every rank; where it raises on any, raise the same error on all."""

    def exchange(self, phase: str, outgoing: dict[int, memoryview], incoming: dict[int, memoryview]) -> None:
        """Send bytes to some ranks and fill buffers with what some ranks send; lengths are known to both."""
