"""What is read in one pass: a tensor, on one side or both, or the bytes that a checksum covers."""

from __future__ import annotations

import hashlib
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from unshard.dtypes import DType
from unshard.storage.checksums import Checksum, crc32_of_parts
from unshard.tensors import CastTensor, Tensor, cast_block
from unshard.tensors.boxes import row_major_strides, row_ranges

# Read at a time: large enough that a tensor in columns is read in long stretches of each piece, and what
# Python does for every block does not count.
_BLOCK_BYTES = 2 << 20
# Where the source is cast, there are three blocks, and all should be in the cache when they are compared.
_CAST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Difference:
    """A tensor that is not what it should be.

    Attributes:
        name: Its name in the output.
        saw: The value of the first element that differs, or what the output has instead.
        expected: What it should be.
        index: Where that element is, or None where the two sides cannot be compared.
        elements: How many elements differ.
    """

    name: str
    saw: str
    expected: str
    index: tuple[int, ...] | None
    elements: int


class Buffers:
    """What one worker reads into: a block of the source, of its cast, and of the output."""

    def __init__(self) -> None:
        self.source = bytearray(_BLOCK_BYTES)
        self.cast = bytearray(_CAST_BYTES)
        self.actual = bytearray(_BLOCK_BYTES)


class SpanPass:
    """A pass over the bytes that a checksum covers, in parts that anybody reads.

    Parts are claimed before anything is read, so that each byte is read once: by the pass over a
    tensor that meets it anyway, or on its own.
    """

    __slots__ = ("_claimed", "_parts", "checksum")

    def __init__(self, checksum: Checksum) -> None:
        self.checksum = checksum
        self._claimed: list[tuple[int, int]] = []
        self._parts: list[tuple[int, int, int]] = []

    def claim(self, start: int, stop: int) -> bool:
        """Return whether bytes `start` to `stop` of the file are nobody's yet; then they are taken."""
        index = bisect_right(self._claimed, (start, stop))
        neighbours = self._claimed[max(0, index - 1) : index + 1]
        if any(a < stop and start < b for a, b in neighbours):
            return False
        self._claimed.insert(index, (start, stop))
        return True

    def unclaimed(self) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) of the bytes that nobody has claimed."""
        end = self.checksum.start
        for start, stop in (*self._claimed, (self.checksum.stop, self.checksum.stop)):
            if end < start:
                yield end, start
            end = stop

    def add(self, start: int, length: int, crc32: int) -> None:
        """Note the CRC-32 of a part that begins at byte `start` of the file."""
        self._parts.append((start, length, crc32))

    def crc32(self) -> int:
        """Return the CRC-32 of all that was read."""
        return crc32_of_parts(self._parts)

    def read(self, start: int, stop: int, buffers: Buffers) -> Iterator[int]:
        """Read bytes `start` to `stop` of the file, yielding how many are done."""
        crc32 = 0
        for begin in range(start, stop, _BLOCK_BYTES):
            block = memoryview(buffers.source)[: min(stop - begin, _BLOCK_BYTES)]
            self.checksum.file.read_into(begin, block)
            crc32 = zlib.crc32(block, crc32)
            yield len(block)
        self.add(start, stop - start, crc32)


class Segment(NamedTuple):
    """Elements of a tensor's source that are a part of a span.

    Attributes:
        start: The first element, in row-major order.
        stop: The element after the last one.
        offset: Where the first one lies in the file.
        span: Told the CRC-32 of their bytes.
    """

    start: int
    stop: int
    offset: int
    span: SpanPass


class _Sums:
    """The CRC-32 of segments, taken while one job reads a tensor in order."""

    def __init__(self, segments: Sequence[Segment], start: int, stop: int, itemsize: int) -> None:
        self._segments = segments
        self._start, self._stop, self._size = start, stop, itemsize
        self._next = bisect_right(segments, start, key=lambda segment: segment.stop)
        self._crc32 = 0

    def see(self, first: int, block: memoryview) -> None:
        """Take in a block that begins at element `first`, where the last one ended."""
        size, last = self._size, first + len(block) // self._size
        while self._next < len(self._segments):
            segment = self._segments[self._next]
            begin, end = max(first, segment.start), min(last, segment.stop)
            if begin >= end:
                return
            self._crc32 = zlib.crc32(block[(begin - first) * size : (end - first) * size], self._crc32)
            if end == segment.stop or end == self._stop:
                begun = max(self._start, segment.start)
                offset = segment.offset + (begun - segment.start) * size
                segment.span.add(offset, (end - begun) * size, self._crc32)
                self._crc32 = 0
            if end < segment.stop:
                return
            self._next += 1


def uncast(tensor: Tensor) -> Tensor:
    """Return what a tensor is cast from, or itself where it is not cast."""
    return tensor.source if isinstance(tensor, CastTensor) else tensor


class TensorPass:
    """A pass over a tensor of the output, divided among workers unless a digest is taken."""

    def __init__(
        self,
        name: str,
        expected: Tensor | None,
        actual: Tensor,
        segments: Sequence[Segment],
        *,
        hashed: bool,
    ) -> None:
        """Prepare the pass.

        Args:
            name: The tensor's name in the output.
            expected: What it should be, or None where it is only hashed.
            actual: What it is.
            segments: Elements of the source whose spans are told their CRC-32, by rising start.
            hashed: Whether to take the SHA-256 of the output's bytes; they are then read in order.
        """
        self.name = name
        self.expected = expected
        self.source = None if expected is None else uncast(expected)
        self.actual = actual
        self.hashed = hashed
        self.digest: str | None = None
        self._segments = segments
        self._wrong: list[tuple[int, str, str, int]] = []

    def read(self, start: int, stop: int, buffers: Buffers) -> Iterator[int]:
        """Read and compare elements `start` to `stop`, yielding how many bytes of the output are done."""
        hasher = hashlib.sha256() if self.hashed else None
        size = self.actual.dtype.itemsize
        source_size = self.source.dtype.itemsize if self.source else size
        block = _BLOCK_BYTES if self.expected is self.source else _CAST_BYTES
        most = block // max(size, source_size)
        sums = _Sums(self._segments, start, stop, source_size)
        for first, last in row_ranges(self.actual.shape, start, stop, most):
            actual = memoryview(buffers.actual)[: (last - first) * size]
            self.actual.read(first, last, actual)
            if hasher is not None:
                hasher.update(actual)
            if self.source is not None:
                raw = memoryview(buffers.source)[: (last - first) * source_size]
                self.source.read(first, last, raw)
                sums.see(first, raw)
                self._compare(first, raw, actual, buffers)
            yield len(actual)
        if hasher is not None:
            self.digest = hasher.hexdigest()

    def _compare(self, first: int, raw: memoryview, actual: memoryview, buffers: Buffers) -> None:
        """Note where a block of the output, which begins at element `first`, differs from its source."""
        wanted = buffers.source
        if self.expected is not self.source:
            import numpy as np

            assert self.source is not None
            wanted = buffers.cast
            computed = np.frombuffer(
                wanted, self.actual.dtype.numpy, len(actual) // self.actual.dtype.itemsize
            )
            cast_block(np.frombuffer(raw, self.source.dtype.numpy), computed)
        # This is memcmp, without a copy; slices of a bytearray would be copies.
        if not wanted.startswith(actual):
            self._wrong.append(
                _first_difference(first, memoryview(wanted)[: len(actual)], actual, self.actual.dtype)
            )

    def difference(self) -> Difference | None:
        """Return what was found to differ."""
        if not self._wrong:
            return None
        first, saw, expected, _ = min(self._wrong)
        index = tuple(_index(first, self.actual.shape))
        return Difference(self.name, saw, expected, index, sum(count for *_, count in self._wrong))


def _first_difference(
    first: int, wanted: memoryview, actual: memoryview, dtype: DType
) -> tuple[int, str, str, int]:
    """Return (element, saw, expected, elements that differ) of a block that begins at element `first`."""
    import numpy as np

    ours, theirs = np.frombuffer(actual, f"V{dtype.itemsize}"), np.frombuffer(wanted, f"V{dtype.itemsize}")
    differs = np.flatnonzero(ours != theirs)
    at = int(differs[0])

    def told(values: memoryview) -> str:
        bits = bytes(values[at * dtype.itemsize : (at + 1) * dtype.itemsize])
        return f"{np.frombuffer(bits, dtype.numpy)[0]} (0x{bits[::-1].hex()})"

    return first + at, told(actual), told(wanted), len(differs)


def _index(element: int, shape: tuple[int, ...]) -> Iterator[int]:
    """Yield the coordinates of the n-th element in row-major order."""
    for stride in row_major_strides(shape):
        coordinate, element = divmod(element, stride)
        yield coordinate
