"""CRC-32 of a whole from its parts, against zlib."""

import itertools
import zlib
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unshard.storage.checksums import combine_crc32, crc32_of_parts


@given(st.binary(max_size=2000), st.binary(max_size=2000))
def test_two_stretches_have_the_checksum_of_both_together(first: bytes, second: bytes) -> None:
    combined = combine_crc32(zlib.crc32(first), zlib.crc32(second), len(second))
    assert combined == zlib.crc32(first + second)


@given(st.binary(max_size=5000), st.lists(st.integers(0, 5000), max_size=8), st.randoms())
def test_parts_may_come_in_any_order(data: bytes, cuts: list[int], random: Random) -> None:
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    parts = [(a, b - a, zlib.crc32(data[a:b])) for a, b in itertools.pairwise(edges)]
    random.shuffle(parts)
    assert crc32_of_parts(parts) == zlib.crc32(data)


@pytest.mark.parametrize("length", [(1 << 32) - 1, (1 << 32) + 5, 3 * 10**12])
def test_lengths_beyond_32_bits_are_right(length: int) -> None:
    # A stretch of zeros is the only one of this size whose checksum is known without reading it:
    # it is built here by doubling.
    crc32, size = zlib.crc32(b"\0"), 1
    built, built_size = 0, 0
    while size <= length:
        if length & size:
            built, built_size = combine_crc32(built, crc32, size), built_size + size
        crc32, size = combine_crc32(crc32, crc32, size), size * 2
    assert built_size == length
    small = 100_000_000
    halves = combine_crc32(zlib.crc32(bytes(small)), built, length)
    assert halves == combine_crc32(built, zlib.crc32(bytes(small)), small)
