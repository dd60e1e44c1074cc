"""Sources that are views of other sources, and pieces that are made when they are looked at."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import overload

from unshard.dtypes import DType
from unshard.tensors.boxes import Box, row_major_strides
from unshard.tensors.pieces import Piece
from unshard.tensors.sources import FileSource, Place, Run, Source
from unshard.tensors.strided import (
    SHORTEST_RUN_BYTES,
    contiguous_stretch,
    gather,
    is_contiguous,
    restrided,
    stretches,
)


@dataclass(frozen=True, slots=True)
class ViewSource:
    """A strided view of the elements of another source.

    Attributes:
        whole: The other source.
        dtype: Number format.
        offset: Its element at which the view begins.
        shape: The view's shape; its row-major order is the order of the elements.
        strides: Elements of the other source between neighbours along every dimension.

    Memory:
        A contiguous view is read straight into the buffer; any other one through at most 1 MiB.
    """

    whole: Source
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many elements there are."""
        return math.prod(self.shape)

    @property
    def place(self) -> Place | None:
        """Where the whole begins."""
        return self.whole.place

    @property
    def origin(self) -> str:
        """Where they are, in words."""
        return f"{self.whole.origin}, from element {self.offset:,} on" if self.offset else self.whole.origin

    def read(self, start: int, stop: int, into: memoryview) -> None:
        """Fill `into` with elements `start` to `stop` of the view, little-endian."""
        if is_contiguous(self.shape, self.strides):
            self.whole.read(self.offset + start, self.offset + stop, into)
        else:
            gather(
                self.shape, self.strides, start, stop, into, itemsize=self.dtype.itemsize, fetch=self._fetch
            )

    def _fetch(self, element: int, into: memoryview) -> None:
        begin = self.offset + element
        self.whole.read(begin, begin + len(into) // self.dtype.itemsize, into)

    def runs(self, start: int, stop: int) -> list[Run] | None:
        """Return the bytes that are elements `start` to `stop`, or None where they must be read."""
        if is_contiguous(self.shape, self.strides):
            return self.whole.runs(self.offset + start, self.offset + stop)
        length = contiguous_stretch(self.shape, self.strides)
        if length * self.dtype.itemsize < SHORTEST_RUN_BYTES:
            return None
        runs: list[Run] = []
        for first, count in stretches(self.shape, self.strides, start, stop, length):
            part = self.whole.runs(self.offset + first, self.offset + first + count)
            if part is None:
                return None
            runs += part
        return runs


def part_of(piece: Piece, dtype: DType, inside: Box, order: Sequence[int] | None = None) -> Source:
    """Return the source of a box inside a piece, its dimensions in another order where one is given."""
    shape = piece.box.shape
    if order is None and inside == Box.whole(shape):
        return piece.source
    source = piece.source
    view: FileSource | ViewSource | None = None
    if isinstance(source, FileSource | ViewSource):
        strides = restrided(source.shape, source.strides, shape)
        view = None if strides is None else replace(source, shape=shape, strides=strides)
    if view is None:
        view = ViewSource(source, dtype, 0, shape, row_major_strides(shape))
    first = sum(i * s for i, s in zip(inside.start, view.strides, strict=True))
    kept = range(len(shape)) if order is None else order
    unit = dtype.itemsize if isinstance(view, FileSource) else 1
    return replace(
        view,
        offset=view.offset + first * unit,
        shape=tuple(inside.shape[d] for d in kept),
        strides=tuple(view.strides[d] for d in kept),
    )


class LatePieces(Sequence[Piece]):
    """Pieces that are made when they are first looked at."""

    def __init__(self, make: Callable[[], Iterator[Piece]]) -> None:
        self._make = make

    @cached_property
    def _made(self) -> tuple[Piece, ...]:
        return tuple(self._make())

    def __len__(self) -> int:
        return len(self._made)

    @overload
    def __getitem__(self, index: int) -> Piece: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Piece]: ...
    def __getitem__(self, index: int | slice) -> Piece | Sequence[Piece]:
        return self._made[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._made == tuple(other)

    def __hash__(self) -> int:
        return hash(self._made)
