"""The members of a zip archive and where their bytes are, from its directory; stricter than zip.

    local header, name, padding    one for each member, followed by
    content                        its bytes, as they are or deflated, and sometimes
    descriptor                     checksum and sizes once more
    directory                      one entry for each member: name, sizes, checksum, place of its header
    end records                    [64-bit record and its locator,] then 22 bytes at the very end

Readers differ in which of two records that disagree they believe, so every disagreement is refused by
name: local header against directory, sizes against places, 64-bit against 32-bit records; names that
are equal when their case is ignored, or that leave the archive; bytes that belong to no member, to two
members, or follow the end; comments; encryption; members that claim to be folders or links. An archive
may lie inside a larger file. Nothing is ever extracted.

Source:
    PKWARE APPNOTE.TXT 6.3.10, sections 4.3 and 4.4.
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from unshard.errors import DamagedFileError, UnsafeFileError, UnsupportedLayoutError
from unshard.readers.torch_save.zip_end import (
    HINT_COPY,
    HINT_REPACK,
    Directory,
    contradiction,
    describe_directory,
)
from unshard.storage.files import InputFile

_ENTRY = struct.Struct("<4sHHHHHHIIIHHHHHII")
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_FULL_16, _FULL_32 = 0xFFFF, 0xFFFFFFFF
_DESCRIPTOR_FOLLOWS, _UTF8, _DEFLATE_LEVEL = 0x0008, 0x0800, 0x0006
_STORED, _DEFLATED = 0, 8
_FOLDER = 0x10  # DOS attribute
_LONGEST_DESCRIPTOR = 24


@dataclass(frozen=True, slots=True)
class Member:
    """One member of an archive.

    Attributes:
        name: Its whole name.
        start: Byte of the file its content begins at.
        stop: Byte of the file its content ends before.
        size: Bytes of the content when it is not deflated.
        crc32: Checksum of those bytes; meaningless where `Archive.has_checksums` is False.
        deflated: Whether the content is compressed.
    """

    name: str
    start: int
    stop: int
    size: int
    crc32: int
    deflated: bool


@dataclass(frozen=True, slots=True)
class Archive:
    """A zip archive in a file, or in a part of one.

    Attributes:
        file: The file.
        members: Every member by its whole name, in the order of the directory.
        has_checksums: Whether the writer computed checksums; if not, all of them are zero.
    """

    file: InputFile
    members: dict[str, Member]
    has_checksums: bool

    def read(self, member: Member, *, at_most: int) -> bytes:
        """Return the content of a small member, checked against its checksum.

        Raises:
            UnsafeFileError: It is larger than `at_most`, or does not unfold to its size.
            DamagedFileError: It disagrees with its checksum.
        """
        subject = f"{self.file.path}: {member.name}"
        if max(member.size, member.stop - member.start) > at_most:
            saw = f"{max(member.size, member.stop - member.start)} bytes"
            raise UnsafeFileError(subject, "is too large to be read whole", saw=saw, expected=f"<= {at_most}")
        content = self.file.read(member.start, member.stop)
        if member.deflated:
            content = _inflated(content, member.size, subject)
        if self.has_checksums and (crc := zlib.crc32(content)) != member.crc32:
            raise DamagedFileError(
                subject,
                "disagrees with its checksum",
                saw=f"CRC-32 {crc:08x}",
                expected=f"{member.crc32:08x}",
                hint=HINT_COPY,
            )
        return content


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the directory says about a member."""

    name: bytes
    flags: int
    method: int
    crc32: int
    packed: int
    size: int
    place: int  # of the local header, in the file


def describe_archive(file: InputFile, start: int, stop: int) -> Archive:
    """Return the zip archive that is bytes `start` to `stop` of `file`.

    Raises:
        DamagedFileError: It is cut short.
        UnsafeFileError: It contradicts itself.
        UnsupportedLayoutError: It uses a compression that is not read.
    """
    directory = describe_directory(file, start, stop)
    entries = list(_entries(file, directory, start))
    names = _names(file, entries)
    places = _contents(file, entries, start, directory.start)
    members = {
        name: Member(name, *places[entry.place], entry.size, entry.crc32, entry.method == _DEFLATED)
        for name, entry in zip(names, entries, strict=True)
    }
    checked = not entries or any(e.crc32 for e in entries) or not any(e.size for e in entries)
    return Archive(file, members, checked)


def _entries(file: InputFile, directory: Directory, start: int) -> Iterator[_Entry]:
    """Yield the entries of the directory."""
    data = file.read(directory.start, directory.stop)
    at = 0
    for _ in range(directory.count):
        if at + _ENTRY.size > len(data):
            raise contradiction(file, "has fewer members than it counts", expected=str(directory.count))
        fields = _ENTRY.unpack_from(data, at)
        magic, _, _, flags, method, _, _, crc32, packed, size, n, x, c, disk, _, attributes, place = fields
        name = data[at + _ENTRY.size : at + _ENTRY.size + n]
        extra = data[at + _ENTRY.size + n : at + _ENTRY.size + n + x]
        at += _ENTRY.size + n + x + c
        if magic != b"PK\x01\x02" or at > len(data):
            raise contradiction(file, "has a directory whose entries do not follow one another")
        subject = name.decode(errors="backslashreplace")
        if c or disk not in (0, _FULL_16):
            raise contradiction(file, f"has a comment, or another volume, at member `{subject}`")
        _require_plain(file, subject, flags, method, attributes)
        size, packed, place = _wide(file, subject, extra, (size, packed, place))
        if method == _STORED and size != packed:
            raise contradiction(file, f"gives two sizes for `{subject}`", saw=f"{packed} and {size} bytes")
        yield _Entry(name, flags, method, crc32, packed, size, start + place)
    if at != len(data):
        raise contradiction(file, "has more members than it counts", expected=str(directory.count))


def _require_plain(file: InputFile, name: str, flags: int, method: int, attributes: int) -> None:
    """Raise unless a member is an ordinary file, in a form that can be read."""
    if flags & 1:
        raise contradiction(file, f"is encrypted at member `{name}`")
    if method not in (_STORED, _DEFLATED):
        raise UnsupportedLayoutError(
            file.path,
            f"compresses its member `{name}`",
            saw=f"method {method}",
            expected="torch.save's archives, which are not compressed",
            hint=HINT_REPACK,
        )
    allowed = _DESCRIPTOR_FOLLOWS | _UTF8 | (_DEFLATE_LEVEL if method == _DEFLATED else 0)
    if flags & ~allowed:
        raise contradiction(file, f"has flags that make no sense at member `{name}`", saw=f"{flags:#06x}")
    if attributes & _FOLDER or stat.S_IFMT(attributes >> 16) not in (0, stat.S_IFREG):
        raise contradiction(file, f"marks its member `{name}` as a folder, a link or a device")


def _wide(file: InputFile, name: str, extra: bytes, fields: tuple[int, ...]) -> tuple[int, ...]:
    """Return the fields of a header, those that are full in 32 bits from the 64-bit extra field."""
    if _FULL_32 not in fields:
        return fields
    wanted = fields.count(_FULL_32)
    found = _extra_field(extra, 1)
    if found is None or len(found) != 8 * wanted:
        raise contradiction(file, f"has no 64-bit sizes, or other ones than are needed, at member `{name}`")
    values = iter(struct.unpack(f"<{wanted}Q", found))
    return tuple(next(values) if field == _FULL_32 else field for field in fields)


def _extra_field(extra: bytes, wanted: int) -> bytes | None:
    """Return the content of an extra field by its number."""
    at = 0
    while at + 4 <= len(extra):
        number, length = struct.unpack_from("<HH", extra, at)
        if number == wanted:
            return extra[at + 4 : at + 4 + length]
        at += 4 + length
    return None


def _names(file: InputFile, entries: list[_Entry]) -> list[str]:
    """Return the names of all members, which must be plain, and different even without their case."""
    names: list[str] = []
    seen: dict[str, str] = {}
    for entry in entries:
        try:
            name = entry.name.decode("utf-8" if entry.flags & _UTF8 else "ascii")
        except UnicodeDecodeError:
            raise contradiction(file, "has a member whose name is no text", saw=repr(entry.name)) from None
        if "\\" in name or not name.isprintable() or {"", ".", ".."} & set(name.split("/")):
            raise contradiction(file, "has a member whose name is no plain path", saw=f"`{name}`")
        if (other := seen.setdefault(name.casefold(), name)) != name or len(seen) == len(names):
            raise contradiction(file, "has two members of one name", saw=f"`{other}` and `{name}`")
        names.append(name)
    return names


def _contents(file: InputFile, entries: list[_Entry], start: int, stop: int) -> dict[int, tuple[int, int]]:
    """Return where the content of every member is, by the place of its local header.

    Members must follow one another without a gap from `start` to `stop`.
    """
    contents: dict[int, tuple[int, int]] = {}
    done, last = start, None
    for entry in sorted(entries, key=lambda e: e.place):
        header = _read_between(file, done, entry.place, last, 30 + len(entry.name))
        done = _content_start(file, entry, header)
        contents[entry.place] = (done, done + entry.packed)
        done, last = done + entry.packed, entry
    _read_between(file, done, stop, last, 0)
    return contents


def _read_between(file: InputFile, done: int, place: int, last: _Entry | None, length: int) -> bytes:
    """Return `length` bytes at `place`; what lies between `done` and `place` must be a descriptor."""
    gap = place - done
    name = last.name.decode(errors="backslashreplace") if last else "its beginning"
    if gap < 0:
        raise contradiction(file, f"has members that overlap after `{name}`", saw=f"{-gap} bytes")
    if gap > _LONGEST_DESCRIPTOR:
        raise contradiction(file, f"has bytes that belong to no member after `{name}`", saw=f"{gap} bytes")
    data = file.read(done, place + length)
    if last and last.flags & _DESCRIPTOR_FOLLOWS:
        if data[:gap] not in _descriptors(last):
            raise contradiction(file, f"describes `{name}` in two ways", saw="a descriptor that disagrees")
    elif gap:
        raise contradiction(file, f"has bytes that belong to no member after `{name}`", saw=f"{gap} bytes")
    return data[gap:]


def _descriptors(entry: _Entry) -> tuple[bytes, ...]:
    """Return the forms in which a descriptor may repeat an entry."""
    wide = struct.pack("<IQQ", entry.crc32, entry.packed, entry.size)
    forms = [wide, b"PK\x07\x08" + wide]
    if max(entry.packed, entry.size) <= _FULL_32:
        narrow = struct.pack("<III", entry.crc32, entry.packed, entry.size)
        forms += [narrow, b"PK\x07\x08" + narrow]
    return tuple(forms)


def _content_start(file: InputFile, entry: _Entry, header: bytes) -> int:
    """Return where a member's content begins; its local header must say what the directory says."""
    magic, _, flags, method, _, _, crc32, packed, size, n, x = _LOCAL.unpack_from(header)
    name = entry.name.decode(errors="backslashreplace")
    if magic != b"PK\x03\x04":
        raise contradiction(file, f"has no header where `{name}` should be", saw=f"byte {entry.place}")
    here = (flags, method, header[30:])
    if here != (entry.flags, entry.method, entry.name) or n != len(entry.name):
        raise contradiction(file, f"describes `{name}` in two ways", saw="a local header that disagrees")
    stated = (crc32, size, packed)
    later = flags & _DESCRIPTOR_FOLLOWS and all(value in (0, _FULL_32) for value in stated)
    if not later:
        extra = file.read(entry.place + 30 + n, entry.place + 30 + n + x) if _FULL_32 in stated[1:] else b""
        if (crc32, *_wide(file, name, extra, stated[1:])) != (entry.crc32, entry.size, entry.packed):
            raise contradiction(file, f"describes `{name}` in two ways", saw="sizes that disagree")
    return entry.place + _LOCAL.size + len(entry.name) + int(x)


def _inflated(content: bytes, size: int, subject: str) -> bytes:
    """Return a member's content unfolded to exactly the size that was declared."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflater.decompress(content, size + 1)
    except zlib.error as error:
        raise DamagedFileError(subject, "cannot be decompressed", saw=error, hint=HINT_COPY) from error
    if len(data) != size or not inflater.eof or inflater.unused_data:
        saw = f"{'more' if len(data) > size else 'less'} than {size} bytes"
        raise UnsafeFileError(subject, "does not decompress to the size it declares", saw=saw)
    return data
