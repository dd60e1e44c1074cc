"""Sources whose place in their file is found when they are first read.

A checkpoint of a million chunks is described from one index, and every chunk may be an archive of its
own, of which the index tells only where it begins. To look into each costs a read, so it happens when
the bytes are wanted, and not when the tensor is described.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from unshard.tensors.sources import Place, Run, Source


class Locator(Protocol):
    """Finds sources by their number. All late sources of a checkpoint share one.

    It is asked from several threads, and may be asked for the same source more than once.
    """

    def count(self, index: int) -> int:
        """Return how many elements source `index` has, without looking into the file."""

    def origin(self, index: int) -> str:
        """Return where it is, as far as that is known without looking, in words fit for an error."""

    def locate(self, index: int) -> Source:
        """Return the source itself, after looking into the file.

        Raises:
            DamagedFileError: What lies there is not what the index says.
        """


@dataclass(frozen=True, slots=True)
class LateSource:
    """Elements that a locator finds when they are first asked for, and that are then remembered.

    Attributes:
        locator: Finds them.
        index: Their number there.

    Memory:
        Three words until they are found; all else is the locator's.
    """

    locator: Locator
    index: int
    _found: Source | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def count(self) -> int:
        """How many elements there are."""
        return self.locator.count(self.index)

    @property
    def place(self) -> Place | None:
        """Where they begin, exactly: they are found for it.

        Raises:
            DamagedFileError: They cannot be found.
        """
        return self.located().place

    @property
    def origin(self) -> str:
        """Where they are, in words; more exactly once they are found."""
        return self.locator.origin(self.index) if self._found is None else self._found.origin

    def located(self) -> Source:
        """Return the source that holds the elements.

        Two threads may both look for it; they find the same, so nobody waits.

        Raises:
            DamagedFileError: It cannot be found.
        """
        found = self._found
        if found is None:
            found = self.locator.locate(self.index)
            object.__setattr__(self, "_found", found)
        return found

    def read(self, start: int, stop: int, into: memoryview) -> None:
        """Fill `into` with elements `start` to `stop`, little-endian."""
        self.located().read(start, stop, into)

    def runs(self, start: int, stop: int) -> list[Run] | None:
        """Return the bytes that are elements `start` to `stop`, or None where they must be read."""
        return self.located().runs(start, stop)
