"""Files that are no files: a part of one, and one that has no name any more.

Parsers ask for ranges of a file. A part of a file, from some byte to its end, answers as a file would; so
does a temporary file that was deleted while it is open, and that the system frees when nobody holds it.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass

from unshard.storage.files import Descriptor, InputFile


@dataclass(frozen=True, slots=True)
class RestOfFile(InputFile):
    """A file from byte `first` on, for parsers; sources must name the whole file.

    Attributes:
        whole: The file.
        first: What is byte 0 here.
    """

    whole: InputFile
    first: int

    @classmethod
    def after(cls, whole: InputFile, first: int) -> RestOfFile:
        """Return what follows byte `first` of a file."""
        return cls(whole.path, whole.size - first, whole.mtime_ns, whole.inode, whole, first)

    def read_into(self, offset: int, into: memoryview) -> None:
        """Fill `into` with the bytes that begin at `offset` of this part."""
        self.whole.read_into(self.first + offset, into)


@dataclass(frozen=True, slots=True)
class UnlinkedFile(InputFile):
    """A temporary file without a name, open as long as somebody holds it.

    Attributes:
        descriptor: Keeps it open.
    """

    descriptor: Descriptor

    @classmethod
    def adopt(cls, number: int, like: InputFile) -> UnlinkedFile:
        """Return the file that is open as descriptor `number`, called after another file in messages."""
        descriptor = Descriptor.__new__(Descriptor)
        descriptor.number = number
        status = os.fstat(number)
        return cls(like.path, status.st_size, status.st_mtime_ns, status.st_ino, descriptor)

    def open(self) -> Descriptor:
        """Return the descriptor that it is held open by."""
        return self.descriptor


def open_scratch() -> int:
    """Return the descriptor of a new file without a name, where temporary files go (TMPDIR)."""
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
