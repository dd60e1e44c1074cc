"""Files that are read by range.

A file is identified when it is first described (size, time of change, inode). Every later opening
checks that it is still the same file, so a checkpoint that is being overwritten is refused instead
of mixed. Descriptors are opened late and shared; only the most recently used stay open, so that a
checkpoint of thousands of files does not exhaust the process's limit.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from unshard.errors import DamagedFileError, InputError, PathNotFoundError, UnsafeFileError

_OPEN_AT_MOST = 256


class Descriptor:
    """An open file that closes itself when the last thread that holds it lets go."""

    __slots__ = ("number",)

    def __init__(self, path: Path) -> None:
        self.number = -1
        # O_NONBLOCK: opening a FIFO that took the file's place must not wait for a writer.
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)

    def fileno(self) -> int:
        """Return the descriptor's number, valid as long as this object is held."""
        return self.number

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


_open: OrderedDict[InputFile, Descriptor] = OrderedDict()
_open_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file as it was when it was described; equal only to itself, unchanged.

    Attributes:
        path: Where it lies. A link is followed when the file is opened.
        size: Bytes.
        mtime_ns: Time of its last change, in nanoseconds.
        inode: Its number on its file system.
    """

    path: Path
    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def describe(cls, path: Path) -> InputFile:
        """Return the file at `path` without opening it.

        Raises:
            PathNotFoundError: There is nothing at `path`.
            UnsafeFileError: It is not a regular file (a folder, a device, a FIFO).
            InputError: The operating system does not let us look at it.
        """
        try:
            status = path.stat()
        except FileNotFoundError as error:
            raise PathNotFoundError(path, "does not exist") from error
        except OSError as error:
            raise InputError(path, "cannot be read", saw=error.strerror) from error
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeFileError(path, "is not a regular file", saw=stat.filemode(status.st_mode))
        return cls(path, status.st_size, status.st_mtime_ns, status.st_ino)

    def open(self) -> Descriptor:
        """Return an open descriptor of the file, shared with other threads.

        Raises:
            DamagedFileError: The file is no longer the one that was described.
            InputError: It cannot be opened.
        """
        with _open_lock:
            if (held := _open.get(self)) is not None:
                _open.move_to_end(self)
                return held
        try:
            descriptor = Descriptor(self.path)
        except OSError as error:
            raise InputError(self.path, "cannot be opened", saw=error.strerror) from error
        self._require_unchanged(descriptor)
        with _open_lock:
            descriptor = _open.setdefault(self, descriptor)
            while len(_open) > _OPEN_AT_MOST:
                _open.popitem(last=False)
        return descriptor

    def read_into(self, offset: int, into: memoryview) -> None:
        """Fill `into` with the bytes that begin at `offset`.

        Raises:
            DamagedFileError: The file ends before `into` is full, or has changed since it was described.
            InputError: It cannot be read.
        """
        descriptor = self.open()
        done = 0
        while done < len(into):
            try:
                count = os.preadv(descriptor.number, [into[done:]], offset + done)
            except OSError as error:
                raise InputError(self.path, "cannot be read", saw=error.strerror) from error
            if count == 0:
                raise DamagedFileError(
                    self.path,
                    f"ends in the middle of bytes {offset}..{offset + len(into)}",
                    saw=f"{offset + done} bytes",
                    expected=f"at least {offset + len(into)}",
                    hint="Copy the file again; it is truncated.",
                )
            done += count

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes `start` to `stop`; for headers and other small things."""
        buffer = bytearray(stop - start)
        self.read_into(start, memoryview(buffer))
        return bytes(buffer)

    def require_unchanged(self) -> None:
        """Raise unless the file is still the one that was described.

        Raises:
            DamagedFileError: Its size, time of change or inode differs.
        """
        self._require_unchanged(self.open())

    def _require_unchanged(self, descriptor: Descriptor) -> None:
        status = os.fstat(descriptor.number)
        if (status.st_size, status.st_mtime_ns, status.st_ino) != (self.size, self.mtime_ns, self.inode):
            raise DamagedFileError(
                self.path,
                "changed while it was being read",
                saw=f"{status.st_size} bytes, inode {status.st_ino}",
                expected=f"{self.size} bytes, inode {self.inode}, unchanged",
                hint="Wait until training has finished writing, then run the command again.",
            )
