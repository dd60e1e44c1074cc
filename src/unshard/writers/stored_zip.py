"""The zip archive that torch writes: stored members, each at a multiple of 64 bytes.

    local header, padded by an extra field named "FB"
    the member's bytes
    data descriptor: the checksum and the sizes (none after a member without bytes)
    ...
    central directory, zip64 end record, its locator, end record

All of it is known before the bytes are, except for the checksums. torch computes offsets from this
layout instead of reading them when it may, so every byte of it is as torch has it.

Source:
    PKWARE APPNOTE.TXT 6.3.10: 4.3.7 local header, 4.3.9 data descriptor, 4.3.12 central header,
    4.3.14 to 4.3.16 end records, 4.5.3 zip64 extra field. caffe2/serialize/inline_container.cc
    (`getPadding`) and third_party/miniz-3.0.2/miniz.c (`mz_zip_writer_add_mem_ex_v2`).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_ALIGNMENT = 64
_TOO_LARGE = 0xFFFFFFFF  # from here on a number stands in a zip64 field
_UTF8 = 0x0800
_DESCRIPTOR_FOLLOWS = 0x0008


@dataclass(frozen=True, slots=True)
class Member:
    """One file of the archive.

    Attributes:
        name: Its name.
        size: Bytes.
        header_start: Where its local header begins.
    """

    name: str
    size: int
    header_start: int

    @property
    def start(self) -> int:
        """Where its bytes begin."""
        return self.header_start + len(self.header())

    @property
    def stop(self) -> int:
        """Where its bytes end."""
        return self.start + self.size

    @property
    def end(self) -> int:
        """Where the next member begins."""
        return self.stop + len(self.descriptor(0))

    def header(self) -> bytes:
        """Return the local header, which leaves checksum and sizes to the descriptor."""
        name, large = self.name.encode(), self._large_numbers(0)
        fixed = 30 + len(name) + len(large) + 4
        padding = -(self.header_start + fixed) % _ALIGNMENT
        extra = large + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        numbers = (b"PK\3\4", 0, self._flags, 0, 0, 0, 0, 0, 0, len(name), len(extra))
        return struct.pack("<4s5H3I2H", *numbers) + name + extra

    def descriptor(self, crc32: int) -> bytes:
        """Return what follows the bytes."""
        if not self.size:
            return b""
        width = "Q" if self._large_numbers(0) else "I"
        return struct.pack(f"<4sI2{width}", b"PK\7\x08", crc32, self.size, self.size)

    def entry(self, crc32: int) -> bytes:
        """Return the member's header in the central directory."""
        name, large = self.name.encode(), self._large_numbers(self.size)
        size, start = min(self.size, _TOO_LARGE), min(self.header_start, _TOO_LARGE)
        numbers = (b"PK\1\2", 0, 0, self._flags, 0, 0, 0, crc32, size, size)
        return struct.pack("<4s6H3I5H2I", *numbers, len(name), len(large), 0, 0, 0, 0, start) + name + large

    @property
    def _flags(self) -> int:
        return _UTF8 | (_DESCRIPTOR_FOLLOWS if self.size else 0)

    def _large_numbers(self, stored_size: int) -> bytes:
        """Return the zip64 field, which is empty where no number needs it."""
        numbers = [self.size, stored_size] if self.size >= _TOO_LARGE else []
        if self.header_start >= _TOO_LARGE:
            numbers.append(self.header_start)
        return struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers) if numbers else b""


def place_members(sizes: Mapping[str, int]) -> list[Member]:
    """Return the members of an archive, one after another, from their names and sizes."""
    members: list[Member] = []
    for name, size in sizes.items():
        members.append(Member(name, size, members[-1].end if members else 0))
    return members


def directory(members: Sequence[Member], crc32s: Sequence[int]) -> bytes:
    """Return everything after the last member, from the checksum of every member."""
    start, count = members[-1].end, len(members)
    entries = b"".join(member.entry(crc32) for member, crc32 in zip(members, crc32s, strict=True))
    size = len(entries)
    return b"".join(
        (
            entries,
            struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 0x031E, 45, 0, 0, count, count, size, start),
            struct.pack("<4sIQI", b"PK\6\7", 0, start + size, 1),
            struct.pack(
                "<4s4H2IH", b"PK\5\6", 0, 0, *[min(count, 0xFFFF)] * 2, size, min(start, _TOO_LARGE), 0
            ),
        )
    )
