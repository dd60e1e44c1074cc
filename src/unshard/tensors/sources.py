"""How the elements of one piece lie in one place.

A source holds a sequence of elements in row-major order and gives any range of it. Where the bytes
on disk are already the bytes that are wanted, it also tells the *runs* to copy, so that the kernel
can move them without the program seeing one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from unshard.dtypes import DType
from unshard.storage.files import InputFile
from unshard.tensors.boxes import row_major_strides
from unshard.tensors.strided import SHORTEST_RUN_BYTES, contiguous_stretch, gather, is_contiguous, stretches


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes `offset` to `offset + length` of a file, wanted as they are."""

    file: InputFile
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a source begins: a file, and the byte of its first element."""

    file: InputFile
    offset: int


class Source(Protocol):
    """Elements in row-major order, somewhere."""

    @property
    def count(self) -> int:
        """How many elements there are."""

    @property
    def place(self) -> Place | None:
        """Where they begin, or None where they do not lie in a file."""

    @property
    def origin(self) -> str:
        """Where they are, in words fit for an error."""

    def read(self, start: int, stop: int, into: memoryview) -> None:
        """Fill `into` with elements `start` to `stop`, little-endian."""

    def runs(self, start: int, stop: int) -> list[Run] | None:
        """Return the bytes that are elements `start` to `stop`, or None where they must be read."""


@dataclass(frozen=True, slots=True)
class FileSource:
    """Elements of a file: a strided view that begins at `offset`.

    Attributes:
        file: The file.
        offset: Byte of the first element of the view.
        shape: The view's own shape; its row-major order is the order of the elements.
        strides: Elements (not bytes) between neighbours along every dimension; never negative.
        dtype: Number format.
        byte_order: How every number is stored.

    Memory:
        A contiguous view is read straight into the buffer; any other one through at most 1 MiB.
    """

    file: InputFile
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: DType
    byte_order: Literal["little", "big"] = "little"

    @classmethod
    def contiguous(cls, file: InputFile, offset: int, shape: Sequence[int], dtype: DType) -> FileSource:
        """Return the source of a tensor whose elements lie one after the other."""
        return cls(file, offset, tuple(shape), row_major_strides(shape), dtype)

    @property
    def count(self) -> int:
        """How many elements there are."""
        return math.prod(self.shape)

    @property
    def place(self) -> Place:
        """File and offset of the first element."""
        return Place(self.file, self.offset)

    @property
    def origin(self) -> str:
        """File and offset, in words."""
        return f"{self.file.path.name} at byte {self.offset}"

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie one after the other."""
        return is_contiguous(self.shape, self.strides)

    def runs(self, start: int, stop: int) -> list[Run] | None:
        """Return the byte ranges that are elements `start` to `stop`.

        None where they are in the other byte order, or so scattered that reading them is faster.
        """
        size = self.dtype.itemsize
        if self.byte_order == "big" and size > 1:
            return None
        if self.is_contiguous:
            length = (stop - start) * size
            return [Run(self.file, self.offset + start * size, length)] if length else []
        inner = contiguous_stretch(self.shape, self.strides)
        if inner * size < SHORTEST_RUN_BYTES:
            return None
        return [
            Run(self.file, self.offset + first * size, count * size)
            for first, count in stretches(self.shape, self.strides, start, stop, inner)
        ]

    def read(self, start: int, stop: int, into: memoryview) -> None:
        """Fill `into` with elements `start` to `stop`, little-endian.

        Raises:
            DamagedFileError: The file is shorter than it should be, or has changed.
        """
        if self.is_contiguous:
            self.file.read_into(self.offset + start * self.dtype.itemsize, into)
        else:
            gather(
                self.shape, self.strides, start, stop, into, itemsize=self.dtype.itemsize, fetch=self._fetch
            )
        if self.byte_order == "big":
            _swap_bytes(into, self.dtype)

    def _fetch(self, element: int, into: memoryview) -> None:
        self.file.read_into(self.offset + element * self.dtype.itemsize, into)


@dataclass(frozen=True, slots=True)
class RangeSource:
    """Elements `start` to `stop` of another source."""

    whole: Source
    start: int
    stop: int

    @property
    def count(self) -> int:
        """How many elements there are."""
        return self.stop - self.start

    @property
    def place(self) -> Place | None:
        """Where the whole begins."""
        return self.whole.place

    @property
    def origin(self) -> str:
        """Where they are, in words."""
        return f"{self.whole.origin}, elements {self.start:,} to {self.stop:,}"

    def read(self, start: int, stop: int, into: memoryview) -> None:
        """Fill `into` with elements `start` to `stop` of the range, little-endian."""
        self.whole.read(self.start + start, self.start + stop, into)

    def runs(self, start: int, stop: int) -> list[Run] | None:
        """Return the bytes that are elements `start` to `stop` of the range, or None."""
        return self.whole.runs(self.start + start, self.start + stop)


def _swap_bytes(buffer: memoryview, dtype: DType) -> None:
    """Reverse the bytes of every number in `buffer`; a complex number is two of them."""
    import numpy as np

    size = dtype.itemsize // 2 if dtype.kind == "complex" else dtype.itemsize
    np.frombuffer(buffer, dtype=f"u{size}").byteswap(inplace=True)
