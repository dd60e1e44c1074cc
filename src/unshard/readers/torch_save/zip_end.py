"""Where a zip archive's directory is, from the records at its end.

Source:
    PKWARE APPNOTE.TXT 6.3.10, sections 4.3.14 to 4.3.16.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from unshard.errors import DamagedFileError, UnsafeFileError, UnshardError
from unshard.sizes import format_size
from unshard.storage.files import InputFile

HINT_COPY = "Copy the file again from where it was written, and compare the sizes."
HINT_REPACK = "Copy the file again; if the original is the same, torch.save did not write it."

_END = struct.Struct("<4sHHHHIIH")
_LOCATOR = struct.Struct("<4sIQI")
_WIDE_END = struct.Struct("<4sQHHIIQQQQ")
_DIRECTORY_BYTES = 32 << 20
_TAIL_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Directory:
    """Bytes `start` to `stop` of the file, and how many members are in them."""

    start: int
    stop: int
    count: int


def describe_directory(file: InputFile, start: int, stop: int) -> Directory:
    """Return the directory of the archive that is bytes `start` to `stop` of `file`.

    Raises:
        DamagedFileError: The archive is cut short.
        UnsafeFileError: Its end records contradict each other, or do not stand at its end.
    """
    end = stop - _END.size
    if end < start:
        raise _cut_short(file, start, stop)
    magic, disk, first_disk, here, count, size, place, comment = _END.unpack(file.read(end, stop))
    if magic != b"PK\x05\x06":
        raise _explained(file, start, stop)
    narrow = (here, count, size, place)
    wide = _wide_end(file, start, end)
    if wide is not None:
        directory_stop, fields = wide
        limits = (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
        if any(a not in (b, full) for a, b, full in zip(narrow, fields, limits, strict=True)):
            raise contradiction(file, "describes its directory in two ways", saw=f"{narrow} and {fields}")
        here, count, size, place = fields
    else:
        directory_stop = end
    if disk or first_disk or comment or here != count:
        raise contradiction(file, "is one of several volumes, or has a comment")
    if start + place + size != directory_stop:
        saw = f"bytes {place} to {place + size}"
        raise contradiction(
            file,
            "has its directory elsewhere than it says",
            saw=saw,
            expected=f"up to {directory_stop - start}",
        )
    if size > _DIRECTORY_BYTES:
        limit = f"at most {format_size(_DIRECTORY_BYTES)}"
        raise contradiction(file, "has too large a directory", saw=format_size(size), expected=limit)
    return Directory(start + place, start + place + size, count)


def _wide_end(file: InputFile, start: int, end: int) -> tuple[int, tuple[int, int, int, int]] | None:
    """Return where the 64-bit end record is and what it says, or None where there is none."""
    locator = end - _LOCATOR.size
    if locator < start:
        return None
    magic, disk, place, disks = _LOCATOR.unpack(file.read(locator, end))
    if magic != b"PK\x06\x07":
        return None
    record = locator - _WIDE_END.size
    if disk or disks not in (0, 1) or start + place != record:
        raise contradiction(file, "has its 64-bit end record elsewhere than it says", saw=f"byte {place}")
    magic, length, _, _, disk, first_disk, here, count, size, place = _WIDE_END.unpack(
        file.read(record, locator)
    )
    if magic != b"PK\x06\x06" or length != _WIDE_END.size - 12 or disk or first_disk:
        raise contradiction(file, "has a 64-bit end record that cannot be read")
    return record, (here, count, size, place)


def _explained(file: InputFile, start: int, stop: int) -> UnshardError:
    """Return the error that says why no end record stands at the end."""
    tail = file.read(max(start, stop - _TAIL_BYTES), stop)
    found = tail.rfind(b"PK\x05\x06")
    if found >= 0:
        after = len(tail) - found - _END.size
        if after > 0 and not tail[found + _END.size :].strip(b"\0"):
            return DamagedFileError(
                file.path, "is padded with zeros after its end", saw=f"{after} of them", hint=HINT_COPY
            )
        return contradiction(file, "goes on after its end", saw=f"{max(after, 0)} more bytes")
    if not tail.strip(b"\0"):
        return DamagedFileError(
            file.path, f"ends in zeros: the last {format_size(len(tail))} were never written", hint=HINT_COPY
        )
    return _cut_short(file, start, stop)


def _cut_short(file: InputFile, start: int, stop: int) -> DamagedFileError:
    return DamagedFileError(
        file.path,
        "is truncated: a zip archive ends with a directory, and this one does not",
        saw=f"{stop - start:,} bytes",
        hint=HINT_COPY,
    )


def contradiction(
    file: InputFile, problem: str, *, saw: str | None = None, expected: str | None = None
) -> UnsafeFileError:
    """Return the error for an archive that no writer of checkpoints makes."""
    return UnsafeFileError(file.path, problem, saw=saw, expected=expected, hint=HINT_REPACK)
