"""Pickles read as data: the only room that knows their instructions, and it can run none of them.

A pickle is a program for a small stack machine. Three of its instructions make Python import what they
name, five make it call what was imported. Here a name becomes a `Global`, which is two words, and a call
becomes a `Record`, which is the name and the arguments. Nothing is imported and nothing is called.

    read          protocols 0 to 5; one pickle exactly, or one of several that follow each other
    made data     dict, list, tuple, str, bytes, int, float, bool, None; OrderedDict; `getattr(class,
                  name)`, which is how nested classes are named
    kept inert    every other class: its name, arguments, state, and what was put into it
    refused       calls of Python's own functions that make no data (`os.system`, `eval`); the extension
                  registry; buffers outside of the file; frames that lie; memo slots written twice or
                  read unwritten; keys given twice; bytes after the end; anything beyond `Limits`

Memory:
    Linear in the pickle; `Limits.operations` bounds it below 1 GiB whatever the file says.

Source:
    CPython Lib/pickletools.py (the instructions) and Lib/pickle.py (`_Unpickler`).
"""

from __future__ import annotations

from dataclasses import dataclass

from unshard.errors import DamagedFileError, UnsafeFileError
from unshard.readers.unpickling.instructions import INSTRUCTIONS
from unshard.readers.unpickling.machine import Limits, Machine, PickleCutShortError
from unshard.readers.unpickling.python_names import is_python
from unshard.readers.unpickling.records import (
    BrokenPickleError,
    Entries,
    Global,
    HostilePickleError,
    PersistentId,
    Record,
    bytes_of,
)

__all__ = [
    "Entries",
    "Global",
    "Limits",
    "PersistentId",
    "Pickle",
    "Record",
    "bytes_of",
    "cut_short",
    "is_python",
    "read_pickle",
    "read_pickle_at",
]


@dataclass(frozen=True, slots=True)
class Pickle:
    """One pickle, read.

    Attributes:
        value: What it holds.
        stop: Offset after its last byte.
        classes: Full names of all classes and functions it mentions, in order.
        references: What it refers to outside of itself, one value each time it does.
    """

    value: object
    stop: int
    classes: tuple[str, ...]
    references: tuple[object, ...]


def read_pickle(data: bytes, subject: object, *, limits: Limits | None = None) -> Pickle:
    """Return the one pickle that `data` is.

    Raises:
        DamagedFileError: It is no pickle, or does not end.
        UnsafeFileError: It asks for something to be called, contradicts itself, or exceeds the limits.
    """
    pickle = read_pickle_at(data, 0, subject, limits=limits)
    if pickle is None:
        raise cut_short(subject, len(data))
    if pickle.stop != len(data):
        extra = len(data) - pickle.stop
        raise UnsafeFileError(subject, f"carries {extra} bytes after its pickle", hint=_HINT_UNSAFE)
    return pickle


def read_pickle_at(
    data: bytes, start: int, subject: object, *, limits: Limits | None = None
) -> Pickle | None:
    """Return the pickle that begins at `start` of `data`, or None where the data ends before it does.

    Raises:
        DamagedFileError: It is no pickle.
        UnsafeFileError: It asks for something to be called, contradicts itself, or exceeds the limits.
    """
    machine = Machine(data, start, limits or Limits())
    try:
        value = machine.run(INSTRUCTIONS)
    except PickleCutShortError:
        return None
    except BrokenPickleError as error:
        where = f"at byte {machine.at}, {error}"
        raise DamagedFileError(subject, "holds a broken pickle", saw=where, hint=_HINT_DAMAGED) from None
    except HostilePickleError as error:
        raise UnsafeFileError(subject, f"holds a pickle that {error}", hint=_HINT_UNSAFE) from None
    return Pickle(value, machine.at, tuple(machine.names), tuple(machine.references))


def cut_short(subject: object, length: int) -> DamagedFileError:
    """Return the error for a file that ends in the middle of a pickle."""
    saw = f"{length:,} bytes"
    return DamagedFileError(subject, "ends in the middle of its pickle", saw=saw, hint=_HINT_DAMAGED)


_HINT_DAMAGED = "Copy the file again; if the original is the same, its save was cut short."
_HINT_UNSAFE = (
    "Nothing in it was run. Copy the file again; if the original is the same, ask whoever made it for a"
    " plain state dict."
)
