"""The bytes of an output file, put together from what ranks hold.

All ranks know where every byte comes from. For any stretch of a file, a rank tells what it has of it, and
puts the stretch together from its own elements and those that others sent, which come in the same order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from unshard.plan import OutputFile, Placement
from unshard.tensors import Box, CastTensor, Piece, Place, Run
from unshard.tensors.boxes import box_range, box_ranges, row_major_strides
from unshard.tensors.pieces import Arrangement, Part, read_part
from unshard.tensors.strided import SHORTEST_RUN_BYTES, contiguous_stretch
from unshard.training.live.source import owned_pieces
from unshard.training.writing.giving import GivenSource, Seen
from unshard.training.writing.ownership import ANYBODY, Extent, Stretch


class _GivenTensor:
    """A tensor of a file, and which rank gives which part of it."""

    def __init__(self, placement: Placement, seen: Seen) -> None:
        tensor = placement.tensor
        self.start, self.itemsize = placement.start, tensor.dtype.itemsize
        self.shape = tensor.shape or (1,)
        before = tensor.source.dtype if isinstance(tensor, CastTensor) else tensor.dtype
        self.pieces = [
            Piece(
                each.piece.box if tensor.shape else Box((0,), (1,)),
                GivenSource(each.rank, each.piece.source, before, tensor.dtype, placement.name, seen),
            )
            for each in owned_pieces(tensor)
            if each.piece.box.volume
        ]
        self._arrangement: Arrangement | None = None

    def parts(self, start: int, stop: int) -> Iterator[tuple[int, Part]]:
        """Yield what bytes of the file, counted from the tensor's first, are made of, and who gives it."""
        if self._arrangement is None:
            self._arrangement = Arrangement(self.shape, self.pieces)
        for part in self._arrangement.parts(start // self.itemsize, stop // self.itemsize):
            assert isinstance(part.source, GivenSource)
            yield part.source.rank, part

    def extents(self, stop: int) -> list[Extent]:
        """Return who holds which bytes of the file, which end at `stop`."""
        found = list[Extent]()
        for piece in self.pieces:
            assert isinstance(piece.source, GivenSource)
            length = contiguous_stretch(piece.box.shape, row_major_strides(self.shape)) * self.itemsize
            if box_range(self.shape, piece.box) is None and length < SHORTEST_RUN_BYTES:
                return [Extent(self.start, stop, None)]
            found += [
                Extent(self.start + a * self.itemsize, self.start + b * self.itemsize, piece.source.rank)
                for a, b in box_ranges(self.shape, piece.box)
            ]
        return sorted(found, key=lambda extent: extent.start)


@dataclass(frozen=True, slots=True)
class _Arrived:
    """Elements of a part that another rank sent, as a source of the piece that it is a part of."""

    first: int
    data: memoryview
    itemsize: int

    @property
    def count(self) -> int:
        return len(self.data) // self.itemsize

    @property
    def place(self) -> Place | None:
        return None

    @property
    def origin(self) -> str:
        return "another rank"

    def runs(self, start: int, stop: int) -> list[Run] | None:
        return None

    def read(self, start: int, stop: int, into: memoryview) -> None:
        begin = (start - self.first) * self.itemsize
        into[:] = self.data[begin : begin + len(into)]


class AssembledFile:
    """An output file as all ranks know it."""

    def __init__(self, planned: OutputFile, seen: Seen) -> None:
        """Look at every piece of every tensor once.

        Args:
            planned: The file.
            seen: Where what is read is looked at.
        """
        self.planned = planned
        items: list[tuple[int, int, str, bytes | _GivenTensor]] = [
            (start, start + len(content), "", content) for start, content in planned.literals
        ]
        items += [(p.start, p.stop, p.name, _GivenTensor(p, seen)) for p in planned.placements]
        self._items = sorted((item for item in items if item[0] < item[1]), key=lambda item: item[0])
        self._stops = [stop for _, stop, _, _ in self._items]

    def extents(self) -> list[Extent]:
        """Return who holds which bytes, by rising offset."""
        return [
            extent
            for start, stop, _, item in self._items
            for extent in ([Extent(start, stop, ANYBODY)] if isinstance(item, bytes) else item.extents(stop))
        ]

    def tensors_in(self, start: int, stop: int) -> Iterator[tuple[str, int, int]]:
        """Yield the names of tensors in a stretch, with the bytes of the file that are theirs."""
        for name, _, first, last in self._met(start, stop):
            if name:
                yield name, first, last

    def contributed(self, stretch: Stretch) -> Mapping[int, int]:
        """Return how many bytes of a stretch every rank gives."""
        found = Counter[int]()
        for _, item, first, last in self._met(stretch.start, stretch.stop):
            if not isinstance(item, bytes):
                for rank, part in item.parts(first - item.start, last - item.start):
                    found[rank] += (part.stop - part.start) * item.itemsize
        return found

    def give(self, rank: int, start: int, stop: int, into: memoryview) -> None:
        """Fill `into` with what `rank`, which is this one, has of a stretch."""
        done = 0
        for _, item, first, last in self._met(start, stop):
            if isinstance(item, bytes):
                continue
            for owner, part in item.parts(first - item.start, last - item.start):
                if owner == rank:
                    length = (part.stop - part.start) * item.itemsize
                    part.source.read(part.start, part.stop, into[done : done + length])
                    done += length

    def assemble(
        self, rank: int, start: int, stop: int, into: memoryview, arrived: Mapping[int, memoryview]
    ) -> None:
        """Fill `into` with a stretch.

        Args:
            rank: This rank.
            start: The first byte of the file.
            stop: The byte after the last one.
            into: As long as that; gaps of the file keep what it holds.
            arrived: What every other rank gave of it.
        """
        taken = Counter[int]()
        for _, item, first, last in self._met(start, stop):
            target = into[first - start : last - start]
            if isinstance(item, bytes):
                target[:] = item
                continue
            for owner, part in item.parts(first - item.start, last - item.start):
                given = part
                if owner != rank:
                    length = (part.stop - part.start) * item.itemsize
                    data = arrived[owner][taken[owner] : taken[owner] + length]
                    taken[owner] += length
                    given = part._replace(source=_Arrived(part.start, data, item.itemsize))
                read_part(given, target, item.itemsize)

    def _met(self, start: int, stop: int) -> Iterator[tuple[str, bytes | _GivenTensor, int, int]]:
        """Yield what lies in a stretch: of tensors the whole, of literals the bytes; and where it lies."""
        for index in range(bisect_right(self._stops, start), len(self._items)):
            begin, end, name, item = self._items[index]
            if begin >= stop:
                return
            first, last = max(start, begin), min(stop, end)
            yield name, item[first - begin : last - begin] if isinstance(item, bytes) else item, first, last
