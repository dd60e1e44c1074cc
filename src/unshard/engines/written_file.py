"""One output file while it is written, by any number of workers at once."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from unshard.storage.files import InputFile
from unshard.storage.output_errors import FULL, output_error, output_errors
from unshard.tensors import Run

# The kernel moves whole pages. Where source and target differ in their place within a page, it moves
# every page in two parts, and a buffer is faster.
_PAGE_BYTES = 4096
# One write: the kernel finds memory for it easily. Twice as much takes 1.7 times as long where memory
# is fragmented; half as much is called for too often.
_WRITE_BYTES = 128 << 10
# One read of what is then written in four parts: both are still in a core's cache.
_READ_BYTES = 512 << 10
# One copy by the kernel: long enough to cost nothing, short enough to share and to interrupt.
_COPY_BYTES = 8 << 20

# To wait for the disk now and then, while others go on writing, hides most of the wait: otherwise
# the disk is idle until the end. Doing so more often commits the file system's journal too often.
_SYNC_EVERY_BYTES = 256 << 20

# macOS has neither of these.
_kernel_copy: Callable[..., int] | None = getattr(os, "copy_file_range", None)
_sync_data: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


class WrittenFile:
    """A new file of known size, filled at any offset in any order."""

    def __init__(self, path: Path, size: int, *, subject: Path, durable: bool) -> None:
        """Create the file.

        Args:
            path: Where it lies for now.
            size: Its final size in bytes.
            subject: What errors call it: the output that the user knows of.
            durable: Whether `close` waits until the disk has all of it.

        Raises:
            OutputError: The system does not let us.
        """
        self._begin(subject, durable=durable)
        with output_errors(subject):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                os.ftruncate(self._number, size)
                _reserve(self._number, size)
            except OSError:
                self.abandon()
                raise

    @classmethod
    def reopened(cls, path: Path, *, subject: Path, durable: bool) -> Self:
        """Return a file that another process, or this one, has created, to be filled further.

        Raises:
            OutputError: The system does not let us.
        """
        file = cls.__new__(cls)
        file._begin(subject, durable=durable)
        with output_errors(subject):
            file._number = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        return file

    def _begin(self, subject: Path, *, durable: bool) -> None:
        self._subject = subject
        self._durable = durable
        self._lock = threading.Lock()
        self._unsynced = 0
        self._not_by_kernel: set[InputFile] = set()

    def write(self, offset: int, data: memoryview) -> None:
        """Put `data` at `offset`.

        Raises:
            OutputError: The disk is full, or the system refuses for another reason.
        """
        done = 0
        try:
            while done < len(data):
                stop = done + _WRITE_BYTES - (offset + done) % _WRITE_BYTES
                done += os.pwrite(self._number, data[done:stop], offset + done)
        except OSError as error:
            raise output_error(self._subject, error) from error

    def copy(self, run: Run, offset: int, scratch: memoryview) -> Iterator[int]:
        """Put the bytes of `run` at `offset`, and yield how many are done, every few MiB.

        The kernel copies what lies alike in its pages, or shares it where the file system can. The
        rest passes through `scratch`, as does everything where the kernel cannot (another file
        system, not Linux) or fails: only there it is certain which of the two files is at fault.

        Raises:
            DamagedFileError: The source is shorter than it should be, or has changed.
            OutputError: The disk is full, or the system refuses for another reason.
        """
        alike = (run.offset - offset) % _PAGE_BYTES == 0
        step = min(_READ_BYTES, len(scratch))
        done = 0
        while done < run.length:
            left = run.length - done
            count = self._copy_in_kernel(run.file, run.offset + done, offset + done, left) if alike else 0
            if not count:
                count = min(left, step - (offset + done) % step)
                run.file.read_into(run.offset + done, scratch[:count])
                self.write(offset + done, scratch[:count])
            done += count
            yield count

    def _copy_in_kernel(self, source: InputFile, start: int, offset: int, length: int) -> int:
        """Return how many bytes the kernel has copied: none where it cannot."""
        if _kernel_copy is None or source in self._not_by_kernel:
            return 0
        held = source.open()
        try:
            count = _kernel_copy(held.fileno(), self._number, min(length, _COPY_BYTES), start, offset)
        except OSError:
            count = 0
        if not count:
            self._not_by_kernel.add(source)
        return count

    def sync_now_and_then(self, count: int) -> None:
        """Wait for the disk, if the file is to be durable and much was written since the last time.

        Args:
            count: Bytes written since the last call from this thread.

        Raises:
            OutputError: The disk says only now that it could not write everything.
        """
        with self._lock:
            self._unsynced += count
            due = self._durable and self._unsynced >= _SYNC_EVERY_BYTES
            if due:
                self._unsynced = 0
        if due:
            with output_errors(self._subject):
                _sync_data(self._number)

    def close(self) -> None:
        """Close the file, after the disk has it if it is to be durable.

        Raises:
            OutputError: The disk says only now that it could not write everything.
        """
        with output_errors(self._subject):
            if self._durable:
                os.fsync(self._number)
            self.abandon()

    def abandon(self) -> None:
        """Close the file as it is, if it is still open."""
        number, self._number = self._number, -1
        if number >= 0:
            os.close(number)


def _reserve(number: int, size: int) -> None:
    """Take the disk space of a new file at once, where the file system can do that.

    It then need not look for space with every block that is written, which is a quarter of the cost of
    writing, and a full disk is known before anything is copied. Where the file system cannot, the C
    library would write into every block instead; that shows in the first one, which is then not a hole.

    Raises:
        OSError: There is not enough space.
    """
    if not hasattr(os, "posix_fallocate") or not size:
        return  # macOS has none
    try:
        os.posix_fallocate(number, 0, 1)
        if os.lseek(number, 0, os.SEEK_DATA) >= 0:
            return
    except OSError as error:
        if error.errno in FULL:
            raise
        if error.errno != errno.ENXIO:  # "there is no data" is what a reserved hole says
            return
    os.posix_fallocate(number, 0, size)
