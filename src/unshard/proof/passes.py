"""What is read in one pass: a tensor, on one side or both, or the bytes that a checksum covers."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from unshard.dtypes import DType
from unshard.storage.checksums import Checksum, crc32_of_parts
from unshard.tensors import CastTensor, Tensor, cast_block
from unshard.tensors.boxes import row_major_strides

# Read at a time: small enough that both sides are still in the cache when they are compared, and
# large enough that what Python does for every block does not count.
_BLOCK_BYTES = 1 << 20


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
        self.cast = bytearray(_BLOCK_BYTES)
        self.actual = bytearray(_BLOCK_BYTES)


class SpanPass:
    """A pass over the bytes that a checksum covers, divided among any number of workers."""

    def __init__(self, checksum: Checksum) -> None:
        self.checksum = checksum
        self._parts: list[tuple[int, int, int]] = []

    def add(self, start: int, length: int, crc32: int) -> None:
        """Note the CRC-32 of a part; `start` only puts the parts in order."""
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


def uncast(tensor: Tensor) -> Tensor:
    """Return what a tensor is cast from, or itself where it is not cast."""
    return tensor.source if isinstance(tensor, CastTensor) else tensor


class TensorPass:
    """A pass over a tensor of the output, divided among workers unless a digest is taken."""

    def __init__(
        self, name: str, expected: Tensor | None, actual: Tensor, span: SpanPass | None, *, hashed: bool
    ) -> None:
        """Prepare the pass.

        Args:
            name: The tensor's name in the output.
            expected: What it should be, or None where it is only hashed.
            actual: What it is.
            span: Told the CRC-32 of the source's bytes, where those are all that a checksum covers.
            hashed: Whether to take the SHA-256 of the output's bytes; they are then read in order.
        """
        self.name = name
        self.expected = expected
        self.source = None if expected is None else uncast(expected)
        self.actual = actual
        self.hashed = hashed
        self.digest: str | None = None
        self._span = span
        self._wrong: list[tuple[int, str, str, int]] = []

    def read(self, start: int, stop: int, buffers: Buffers) -> Iterator[int]:
        """Read and compare elements `start` to `stop`, yielding how many bytes of the output are done."""
        hasher = hashlib.sha256() if self.hashed else None
        size = self.actual.dtype.itemsize
        source_size = self.source.dtype.itemsize if self.source else size
        step = _BLOCK_BYTES // max(size, source_size)
        crc32 = 0
        for first in range(start, stop, step):
            last = min(stop, first + step)
            actual = memoryview(buffers.actual)[: (last - first) * size]
            self.actual.read(first, last, actual)
            if hasher is not None:
                hasher.update(actual)
            if self.source is not None:
                raw = memoryview(buffers.source)[: (last - first) * source_size]
                self.source.read(first, last, raw)
                if self._span is not None:
                    crc32 = zlib.crc32(raw, crc32)
                self._compare(first, raw, actual, buffers)
            yield len(actual)
        if hasher is not None:
            self.digest = hasher.hexdigest()
        if self._span is not None:
            self._span.add(start, (stop - start) * source_size, crc32)

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
