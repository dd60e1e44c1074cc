"""Checksums that writers left, and the CRC-32 of a whole from the CRC-32 of its parts.

Parts can then be read by different workers. Appending `n` bytes multiplies the checksum of what came
before by x^(8n), in the field of polynomials modulo the one that CRC-32 is defined by.

Source:
    ISO 3309 / ITU-T V.42 (the polynomial, bits reflected); zlib's `crc32_combine` (the idea).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from unshard.storage.files import InputFile

_POLYNOMIAL = 0xEDB88320
_ONE = 0x80000000  # reflected: the highest bit is x^0


@dataclass(frozen=True, slots=True)
class Checksum:
    """A CRC-32 that the writer left for bytes `start` to `stop` of a file."""

    file: InputFile
    start: int
    stop: int
    crc32: int
    subject: str


@dataclass(frozen=True, slots=True)
class Checksums:
    """All checksums of a checkpoint, which may lie where the tensors do and are then found late.

    Attributes:
        nbytes: The bytes they cover, as far as is known without looking for them.
        locate: Returns them; it may have to read a little of every file.
    """

    nbytes: int
    locate: Callable[[], Iterable[Checksum]]

    @classmethod
    def listed(cls, checksums: Iterable[Checksum]) -> Checksums:
        """Return checksums that are known already."""
        known = tuple(checksums)
        return cls(sum(c.stop - c.start for c in known), lambda: known)

    def __iter__(self) -> Iterator[Checksum]:
        return iter(self.locate())


def combine_crc32(first: int, second: int, second_length: int) -> int:
    """Return the CRC-32 of two stretches of bytes, one after the other, from their own CRC-32s."""
    return (_product(first, _power_of_x(8 * second_length)) if first else 0) ^ second


def crc32_of_parts(parts: Iterable[tuple[int, int, int]]) -> int:
    """Return the CRC-32 of a whole from (start, length, CRC-32) of its parts, given in any order."""
    whole = 0
    for _, length, crc32 in sorted(parts):
        whole = combine_crc32(whole, crc32, length)
    return whole


@lru_cache(maxsize=64)  # blocks are nearly always of the same length
def _power_of_x(exponent: int) -> int:
    """Return x^exponent modulo the polynomial."""
    result, square = _ONE, _ONE >> 1
    while exponent:
        if exponent & 1:
            result = _product(result, square)
        square = _product(square, square)
        exponent >>= 1
    return result


def _product(a: int, b: int) -> int:
    """Return a * b modulo the polynomial."""
    result = 0
    while a:
        if a & _ONE:
            result ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return result
