"""Which of the checksums that a writer left cover which bytes."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from unshard.storage.checksums import Checksum
from unshard.storage.files import InputFile
from unshard.tensors import DescribedTensor, Piece, Place, Tensor
from unshard.tensors.boxes import box_range


@dataclass(frozen=True, slots=True)
class Stretch:
    """Elements of a tensor that lie one after the other in bytes that one checksum covers.

    Attributes:
        start: The first element, in row-major order.
        stop: The element after the last one.
        offset: Where the first one lies in the file.
        checksum: What covers them, and maybe more.
    """

    start: int
    stop: int
    offset: int
    checksum: Checksum


class Coverage:
    """Checksums by the bytes they cover, which never overlap."""

    def __init__(self, checksums: Sequence[Checksum]) -> None:
        self._by_file: defaultdict[InputFile, list[Checksum]] = defaultdict(list)
        for checksum in sorted(checksums, key=lambda c: c.start):
            self._by_file[checksum.file].append(checksum)

    def of_place(self, place: Place) -> Checksum | None:
        """Return the checksum of the byte at `place`."""
        candidates = self._by_file.get(place.file, [])
        index = bisect_right(candidates, place.offset, key=lambda c: c.start) - 1
        found = candidates[index] if index >= 0 else None
        return found if found is not None and place.offset < found.stop else None

    def stretches(self, tensor: Tensor) -> list[Stretch]:
        """Return what a pass over `tensor` in its own order reads in the order of checksums, by start.

        That is nothing of a tensor that is computed, or whose pieces interleave in every row.
        """
        if not isinstance(tensor, DescribedTensor):
            return []
        found = (each for piece in tensor.pieces for each in self._of_piece(piece, tensor))
        return sorted(found, key=lambda each: each.start)

    def _of_piece(self, piece: Piece, tensor: DescribedTensor) -> Iterator[Stretch]:
        elements = box_range(tensor.shape, piece.box)
        if elements is None:
            return
        start, stop = elements
        for run in piece.source.runs(0, stop - start) or ():
            end = start + run.length // tensor.dtype.itemsize
            checksum = self.of_place(Place(run.file, run.offset))
            if checksum is not None and run.offset + run.length <= checksum.stop:
                yield Stretch(start, end, run.offset, checksum)
            start = end

    def covers(self, tensor: Tensor) -> bool:
        """Return whether every piece of `tensor` that holds elements begins where a checksum covers it."""
        places: Iterable[Place | None] = tensor.places
        if isinstance(tensor, DescribedTensor):
            places = (piece.source.place for piece in tensor.pieces if piece.box.volume)
        return all(place is not None and self.of_place(place) is not None for place in places)


def used_checksums(checksums: Iterable[Checksum], tensors: Iterable[Tensor]) -> tuple[Checksum, ...]:
    """Return those of `checksums` that cover bytes of `tensors`, in their order."""
    known = tuple(checksums)
    coverage = Coverage(known)
    used = {id(coverage.of_place(place)) for tensor in tensors for place in tensor.places}
    return tuple(checksum for checksum in known if id(checksum) in used)
