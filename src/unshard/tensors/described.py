"""The described tensor: a shape, a dtype, and pieces that lie in different places."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import EllipsisType
from typing import TYPE_CHECKING, Protocol

from unshard.dtypes import DType
from unshard.tensors.boxes import Box, box_ranges
from unshard.tensors.pieces import Arrangement, Piece, read_part, runs_of_parts
from unshard.tensors.sources import FileSource, Place, Run, Source

if TYPE_CHECKING:
    import numpy as np

    Index = int | slice | EllipsisType | tuple[int | slice | EllipsisType, ...]


class Tensor(Protocol):
    """What a writer sees of a tensor, whatever it comes from.

    Everything except `read` is known from metadata, so a whole conversion is planned, costed and
    refused before the first byte of a tensor is touched.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along every dimension."""

    @property
    def dtype(self) -> DType:
        """Number format of what `read` gives."""

    @property
    def origin(self) -> str:
        """Where the values come from, in words fit for an error."""

    @property
    def places(self) -> Iterator[Place]:
        """Where the bytes it is read from begin, one place for each piece that lies in a file."""

    def read(self, start: int, stop: int, into: memoryview) -> None:
        """Fill `into` with elements `start` to `stop` in row-major order, little-endian."""

    def runs(self, start: int, stop: int) -> list[Run] | None:
        """Return the bytes to copy for elements `start` to `stop`, or None where they must be read."""


def element_count(tensor: Tensor) -> int:
    """Return how many elements `tensor` has; 1 where it has no dimensions."""
    return math.prod(tensor.shape)


def byte_count(tensor: Tensor) -> int:
    """Return how many bytes the elements of `tensor` take."""
    return element_count(tensor) * tensor.dtype.itemsize


@dataclass(frozen=True)
class DescribedTensor:
    """A tensor whose elements lie in files, in one piece or in many.

    The pieces cover the shape exactly once; whoever builds the tensor has checked it.

    Attributes:
        shape: Elements along every dimension, as declared; never inferred from the pieces.
        dtype: Number format.
        pieces: Where the elements are.
    """

    shape: tuple[int, ...]
    dtype: DType
    pieces: Sequence[Piece]

    @property
    def origin(self) -> str:
        """Where the first piece is, and how many more there are."""
        if not self.pieces:
            return "nowhere: it has no elements"
        more = f" and {len(self.pieces) - 1} more places" if len(self.pieces) > 1 else ""
        return self.pieces[0].source.origin + more

    @property
    def places(self) -> Iterator[Place]:
        """Where the pieces begin, one after the other."""
        return (place for piece in self.pieces if (place := piece.source.place) is not None)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return byte_count(self)

    @cached_property
    def _single(self) -> Source | None:
        """The source of a tensor in one piece, which needs no geometry."""
        return self.pieces[0].source if len(self.pieces) == 1 else None

    @cached_property
    def _arrangement(self) -> Arrangement:
        return Arrangement(self.shape, self.pieces)

    def read(self, start: int, stop: int, into: memoryview) -> None:
        """Fill `into` with elements `start` to `stop` in row-major order, little-endian.

        Memory:
            Pieces that are whole rows are read straight into the buffer, others through 512 KiB.

        Raises:
            DamagedFileError: A file is shorter than it should be, or has changed.
        """
        if self._single is not None:
            self._single.read(start, stop, into)
            return
        for part in self._arrangement.parts(start, stop):
            read_part(part, into, self.dtype.itemsize)

    def runs(self, start: int, stop: int) -> list[Run] | None:
        """Return the bytes to copy for elements `start` to `stop`, or None where they must be read.

        Reading is faster where the bytes lie in short runs.
        """
        if self._single is not None:
            return self._single.runs(start, stop)
        return runs_of_parts(self._arrangement.parts(start, stop), self.dtype.itemsize)

    def numpy(self) -> np.ndarray:
        """Return all elements as an array that shares memory with nothing."""
        return self[...]

    def __getitem__(self, index: Index) -> np.ndarray:
        """Return part of the tensor as an array, reading only the bytes it spans.

        Takes integers, slices with positive steps, and one ellipsis, as numpy does.

        Raises:
            IndexError: The index does not fit the shape.
            ValueError: A step is not positive.
        """
        import numpy as np

        box, steps, kept = _resolve(self.shape, index)
        out = np.empty(box.shape, self.dtype.numpy)
        flat = out.reshape(-1).view(np.uint8).data
        done = 0
        for start, stop in box_ranges(self.shape, box):
            length = (stop - start) * self.dtype.itemsize
            self.read(start, stop, flat[done : done + length])
            done += length
        stepped = out[tuple(slice(None, None, step) for step in steps)]
        return stepped.reshape([n for n, keep in zip(stepped.shape, kept, strict=True) if keep])


def whole_tensor(source: FileSource, shape: Sequence[int] | None = None) -> DescribedTensor:
    """Return the tensor that one source holds whole, in the source's shape or another of equal size."""
    full = tuple(source.shape if shape is None else shape)
    return DescribedTensor(full, source.dtype, (Piece(Box.whole(full), source),))


def _resolve(shape: tuple[int, ...], index: Index) -> tuple[Box, tuple[int, ...], tuple[bool, ...]]:
    """Return the box an index spans, its steps, and which dimensions an integer did not remove."""
    items = list(index) if isinstance(index, tuple) else [index]
    if items.count(Ellipsis) > 1:
        raise IndexError("an index can have only one ellipsis ('...')")
    if Ellipsis not in items:
        items.append(Ellipsis)
    gap = items.index(Ellipsis)
    missing = len(shape) - (len(items) - 1)
    if missing < 0:
        raise IndexError(f"too many indices: the tensor has {len(shape)} dimensions")
    items[gap : gap + 1] = [slice(None)] * missing
    starts, stops, steps, kept = [], [], [], []
    for size, item in zip(shape, items, strict=True):
        if isinstance(item, slice):
            start, stop, step = item.indices(size)
            if step <= 0:
                raise ValueError("only positive steps can be read")
        else:
            assert not isinstance(item, EllipsisType)
            start, step = item + (size if item < 0 else 0), 1
            stop = start + 1
            if not 0 <= start < size:
                raise IndexError(f"index {item} is out of bounds for a dimension of {size}")
        starts.append(start)
        stops.append(max(start, stop))
        steps.append(step)
        kept.append(isinstance(item, slice))
    return Box(tuple(starts), tuple(stops)), tuple(steps), tuple(kept)
