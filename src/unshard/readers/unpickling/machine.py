"""The stack machine that reads a pickle as data: its state, its limits, and the loop."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat

from unshard.readers.unpickling.records import BrokenPickleError, Global, HostilePickleError

# Positions after every end, which make the loop look up: a frame begins; the program has stopped.
FRAMED, STOPPED = 1 << 61, 1 << 62


@dataclass(frozen=True, slots=True)
class Limits:
    """What one pickle may cost.

    Attributes:
        operations: Instructions.
        string_bytes: Bytes of one string.
        integer_bytes: Bytes of one integer.
        marks: Collections that are open at the same time.
        classes: Different classes and functions that are named.
        name_length: Characters of a module's or a class's name.
    """

    operations: int = 5 << 20
    string_bytes: int = 16 << 20
    integer_bytes: int = 4096
    marks: int = 10_000
    classes: int = 10_000
    name_length: int = 512


class PickleCutShortError(Exception):
    """The data ends where more is needed."""


class Machine:
    """What one pickle has put on its stack and into its memo so far."""

    __slots__ = (
        "at",
        "data",
        "frame_stop",
        "limits",
        "marks",
        "memo",
        "names",
        "references",
        "stack",
        "start",
    )

    def __init__(self, data: bytes, start: int, limits: Limits) -> None:
        self.data = data
        self.at = start  # of the instruction being carried out; after the run, of what follows the pickle
        self.start = start
        self.frame_stop = start
        self.limits = limits
        self.stack: list[object] = []  # what lies above the last mark
        self.marks: list[list[object]] = []  # what lies below each of the marks
        self.memo: dict[int, object] = {}
        self.names: dict[str, Global] = {}
        self.references: list[object] = []

    def run(self, table: Sequence[Instruction]) -> object:
        """Return the value of the pickle; `table` has the function of every byte that may stand in it."""
        data, at, fence = self.data, self.at, len(self.data)
        try:
            for _ in repeat(None, self.limits.operations):
                if at >= fence:
                    at, fence = self._cross(at, fence)
                    if at == STOPPED:
                        return self._result()
                    continue
                self.at = at
                at = table[data[at]](self, at + 1)
        except (IndexError, struct.error) as error:
            if self.at + 9 > len(data):  # the longest instruction, its text aside
                raise PickleCutShortError("an instruction is cut off") from error
            raise BrokenPickleError("an instruction takes more than the stack holds") from error
        except KeyError as error:
            raise BrokenPickleError(f"memo slot {error} is read before it is written") from error
        except ValueError as error:  # UnicodeDecodeError included
            raise BrokenPickleError(f"there is text that cannot be read: {error}") from error
        raise HostilePickleError(f"has more than {self.limits.operations} instructions")

    def _cross(self, at: int, fence: int) -> tuple[int, int]:
        """Return where to go on, and the next fence: a frame begins or ends, or the data does."""
        whole = len(self.data)
        if at == STOPPED:
            return at, fence
        if at >= FRAMED:
            return at - FRAMED, self.frame_stop
        if at > fence and fence != whole:
            raise HostilePickleError("has a frame that ends inside an instruction")
        if at >= whole:
            raise PickleCutShortError("its last instruction is missing")
        return at, whole

    def _result(self) -> object:
        self.at += 1
        if self.at < self.frame_stop:
            raise HostilePickleError("stops inside a frame")
        if len(self.stack) != 1 or self.marks:
            raise BrokenPickleError("it stops with another number of values than one")
        return self.stack[0]

    def take_marked(self) -> list[object]:
        """Return what lies above the last mark, and remove it with the mark."""
        if not self.marks:
            raise BrokenPickleError("an instruction needs a mark, and there is none")
        items, self.stack = self.stack, self.marks.pop()
        return items

    def text(self, start: int, length: int) -> bytes:
        """Return `length` bytes from `start`."""
        if length > self.limits.string_bytes:
            raise HostilePickleError(
                f"holds a string of {length} bytes: more than {self.limits.string_bytes}"
            )
        if start + length > len(self.data):
            raise PickleCutShortError(f"a string of {length} bytes is cut off")
        return self.data[start : start + length]

    def line(self, start: int) -> bytes:
        """Return the text from `start` to the end of the line."""
        stop = self.data.find(b"\n", start, start + self.limits.string_bytes)
        if stop < 0:
            raise PickleCutShortError("a line does not end")
        return self.data[start:stop]

    def named(self, module: object, name: object) -> Global:
        """Return the class or function of that name; equal names give the same object."""
        if type(module) is not str or type(name) is not str:
            raise BrokenPickleError("a class is named by something that is not text")
        if len(module) > self.limits.name_length or len(name) > self.limits.name_length:
            raise HostilePickleError(f"names a class in more than {self.limits.name_length} letters")
        known = self.names.get(f"{module}.{name}")
        if known is None:
            if len(self.names) == self.limits.classes:
                raise HostilePickleError(f"names more than {self.limits.classes} classes")
            known = Global(module, name)
            self.names[known.path] = known
        return known


# Takes the machine and the position after its own byte; returns where the next instruction is.
Instruction = Callable[[Machine, int], int]
