"""Compressed blobs: a zstd stream around an archive of torch.save, unpacked into scratch files.

A stream cannot be read from its middle, so a blob is unpacked as a whole, when it is wanted, into a file
without a name where temporary files go. Two tensors' worth of them are kept; the one used longest ago
goes first.

Memory:
    One MiB per thread; scratch space is bounded as above, and a blob may not unpack to more than its
    chunk needs.

Source:
    torch/distributed/checkpoint/_extension.py (`ZStandard`).
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO, cast

from unshard.errors import (
    DamagedFileError,
    MissingExtraError,
    NoSpaceError,
    UnsafeFileError,
    UnsupportedLayoutError,
)
from unshard.readers.dcp.parts_of_files import UnlinkedFile, open_scratch
from unshard.readers.rendering import cut
from unshard.readers.torch_save.zip_end import HINT_COPY
from unshard.sizes import format_size
from unshard.tensors import Place, Run, Source

if TYPE_CHECKING:
    from unshard.readers.dcp.blobs import Blob, Found

_ZSTD = re.compile(r"stream\.zstd/1(\..*)?")
_BLOCK = 1 << 20
_MOST_KEPT = 64  # each is an open file


def require_known(transforms: Iterable[tuple[str, ...]], subject: object) -> None:
    """Raise unless every list of transforms is one that can be undone here.

    Raises:
        UnsupportedLayoutError: One names something else than one pass of zstd.
        MissingExtraError: The package that undoes it is not installed.
    """
    for names in transforms:
        if names and not (len(names) == 1 and _ZSTD.fullmatch(names[0])):
            raise UnsupportedLayoutError(
                subject,
                "has blobs that went through transforms that are not known",
                saw=", ".join(cut(name) for name in names),
                expected="stream.zstd/1",
                hint="Load it where it was made, and save it again without extensions.",
            )
        if names:
            try:
                import zstandard  # noqa: F401
            except ImportError:
                raise MissingExtraError(
                    "blobs compressed with zstd", extra="zstd", package="zstandard"
                ) from None


@dataclass(slots=True)
class Scratch:
    """The unpacked blobs of a checkpoint, as many as two of its largest tensors take.

    Attributes:
        capacity: Bytes to keep.
        look: Returns what an unpacked blob holds.
    """

    capacity: int
    look: Callable[[Blob], Found]
    _kept: OrderedDict[Blob, Found] = field(default_factory=OrderedDict)
    _sizes: dict[Blob, int] = field(default_factory=dict)
    _making: dict[Blob, threading.Lock] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def borrow(self, blob: Blob) -> Source:
        """Return the elements of a chunk in its unpacked blob, which stays while it is held.

        Raises:
            DamagedFileError: It cannot be unpacked, or disagrees with its checksum.
            UnsafeFileError: It unpacks to more than its chunk needs.
            NoSpaceError: There is no room for it.
        """
        with self._lock:
            making = self._making.setdefault(blob, threading.Lock())
        with making:  # whoever comes second finds what the first has unpacked
            with self._lock:
                if (kept := self._kept.get(blob)) is not None:
                    self._kept.move_to_end(blob)
                    return kept.source
                self._make_room(blob)
            found = _checked(self.look(_unpacked(blob)))
            with self._lock:
                self._kept[blob] = found
                self._making.pop(blob, None)
        return found.source

    def _make_room(self, blob: Blob) -> None:
        """Let go of the blobs used longest ago, until there is room for another one."""
        self._sizes[blob] = blob.most_unpacked
        while self._kept and (sum(self._sizes.values()) > self.capacity or len(self._kept) >= _MOST_KEPT):
            oldest, _ = self._kept.popitem(last=False)
            self._sizes.pop(oldest, None)


@dataclass(frozen=True, slots=True)
class CompressedSource:
    """The elements of a chunk whose blob is unpacked when they are read.

    Attributes:
        scratch: Unpacks it.
        blob: Where the blob is.
    """

    scratch: Scratch
    blob: Blob

    @property
    def count(self) -> int:
        """How many elements there are."""
        return self.blob.count

    @property
    def place(self) -> Place:
        """Where the compressed blob begins."""
        return Place(self.blob.file, self.blob.start)

    @property
    def origin(self) -> str:
        """Where the blob is, in words."""
        return f"{self.blob.origin}, compressed"

    def read(self, start: int, stop: int, into: memoryview) -> None:
        """Fill `into` with elements `start` to `stop`, little-endian."""
        self.scratch.borrow(self.blob).read(start, stop, into)

    def runs(self, start: int, stop: int) -> list[Run] | None:
        """Return None: the bytes on disk are compressed."""
        return None


def _unpacked(blob: Blob) -> Blob:
    """Return a blob as it was before it was compressed, in a scratch file."""
    most = blob.most_unpacked
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < most:
        raise _no_space(format_size(free), most)
    number = open_scratch()
    try:
        done = _unpack(blob, number, most)
    except OSError as error:
        os.close(number)
        raise _no_space(error.strerror or str(error), most) from error
    except BaseException:
        os.close(number)
        raise
    file = UnlinkedFile.adopt(number, blob.file)
    return blob.at(file, 0, done)


def _unpack(blob: Blob, number: int, most: int) -> int:
    """Write what a blob unpacks to; return how many bytes that is."""
    import zstandard

    done = 0
    packed = cast("BinaryIO", _Range(blob))
    stream = zstandard.ZstdDecompressor().stream_reader(packed, read_size=_BLOCK)
    try:
        while block := stream.read(_BLOCK):
            done += len(block)
            if done > most:
                raise UnsafeFileError(
                    f"{blob.file.path}: {blob.name}",
                    "unpacks to more than its chunk needs",
                    saw=f"more than {most:,} bytes in {blob.stop - blob.start:,} compressed ones",
                    hint="torch does not write such a file. Ask whoever made it.",
                )
            view = memoryview(block)
            while view:
                view = view[os.write(number, view) :]
    except zstandard.ZstdError as error:
        problem = "cannot be decompressed"
        raise DamagedFileError(
            f"{blob.file.path}: {blob.name}", problem, saw=error, hint=HINT_COPY
        ) from error
    return done


class _Range:
    """The bytes of a blob as a stream."""

    def __init__(self, blob: Blob) -> None:
        self._blob, self._at = blob, blob.start

    def read(self, size: int) -> bytes:
        """Return the next bytes, none at the end."""
        stop = min(self._at + size, self._blob.stop)
        data = self._blob.file.read(self._at, stop)
        self._at = stop
        return data


def _checked(found: Found) -> Found:
    """Return what was found, if it agrees with its checksum; nobody can check it later."""
    if (checksum := found.checksum) is None:
        return found
    crc, buffer = 0, bytearray(_BLOCK)
    for at in range(checksum.start, checksum.stop, _BLOCK):
        part = memoryview(buffer)[: min(_BLOCK, checksum.stop - at)]
        checksum.file.read_into(at, part)
        crc = zlib.crc32(part, crc)
    if crc != checksum.crc32:
        subject = f"{checksum.file.path}: {checksum.subject}"
        saw, expected = f"CRC-32 {crc:08x}", f"{checksum.crc32:08x}"
        raise DamagedFileError(
            subject, "disagrees with its checksum", saw=saw, expected=expected, hint=HINT_COPY
        )
    return found


def _no_space(saw: str, needed: int) -> NoSpaceError:
    return NoSpaceError(
        tempfile.gettempdir(),
        "has no room to unpack a compressed blob",
        saw=saw,
        expected=format_size(needed),
        hint="Name a folder with more room: TMPDIR=/path unshard ...",
    )
