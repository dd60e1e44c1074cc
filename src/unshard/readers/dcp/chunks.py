"""The chunks of one model: checked as geometry, and turned into pieces when they are asked for.

Memory:
    The rows of the tables; pieces are made one by one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, overload

from unshard.dtypes import DTYPES, DType
from unshard.readers.dcp.blobs import Blob, Found, look_into
from unshard.readers.dcp.tables import PLACE_FIELDS, TensorRow
from unshard.storage.checksums import Checksum
from unshard.storage.files import InputFile
from unshard.tensors import Box, DescribedTensor, LateSource, Piece, Source

if TYPE_CHECKING:
    import numpy as np

_MOST_REMEMBERED = 1 << 16


def dtype_of(row: TensorRow) -> DType | None:
    """Return the dtype of a tensor, or None where it is not known."""
    package, _, name = row.dtype.rpartition(".")
    return DTYPES.get(name) if package == "torch" else None


@dataclass(frozen=True, slots=True)
class Chunks:
    """All chunks of a model, by number; finds what lies in each of them.

    Attributes:
        keys: The whole names of the tensors.
        rows: The tensors, by the names that people know.
        dtypes: Their dtypes.
        numbers: The rows of their chunks.
        kept: For every tensor, which of its chunks are its pieces; others repeat one of these.
        files: Every file by its number in the tables; those that hold nothing of the model are None.
    """

    keys: Sequence[str]
    rows: Sequence[TensorRow]
    dtypes: Sequence[DType]
    numbers: Sequence[np.ndarray]
    kept: Sequence[Sequence[int]]
    files: Sequence[InputFile | None]
    _starts: list[int] = field(default_factory=list)
    _found: dict[int, Found] = field(default_factory=dict)

    def __post_init__(self) -> None:
        total = 0
        for one in self.numbers:
            self._starts.append(total)
            total += len(one)
        self._starts.append(total)

    def __len__(self) -> int:
        return self._starts[-1]

    def tensors(self) -> dict[str, DescribedTensor]:
        """Return the tensors by name, their pieces made when they are asked for."""
        return {
            row.name: DescribedTensor(row.shape, self.dtypes[i], ChunkPieces(self, i))
            for i, row in enumerate(self.rows)
        }

    def piece(self, at: int, number: int) -> Piece:
        """Return chunk `number` of tensor `at`."""
        dimensions = len(self.rows[at].shape)
        numbers = self.numbers[at][number, : 2 * dimensions].tolist()
        start, size = numbers[:dimensions], numbers[dimensions:]
        box = Box(tuple(start), tuple(a + n for a, n in zip(start, size, strict=True)))
        return Piece(box, LateSource(self, self._starts[at] + number))

    def blob(self, index: int) -> Blob:
        """Return what the metadata says of a chunk."""
        at = bisect_right(self._starts, index) - 1
        row = self.rows[at]
        numbers = self.numbers[at][index - self._starts[at]].tolist()
        dimensions = len(row.shape)
        file, start, length, _ = numbers[-PLACE_FIELDS:]
        described = self.files[file]
        assert described is not None
        shape = tuple(numbers[dimensions : 2 * dimensions])
        return Blob(row.name, described, start, start + length, shape, self.dtypes[at])

    def count(self, index: int) -> int:
        """Return how many elements a chunk has."""
        at = bisect_right(self._starts, index) - 1
        dimensions = len(self.rows[at].shape)
        count = 1
        for size in self.numbers[at][index - self._starts[at]][dimensions : 2 * dimensions].tolist():
            count *= size
        return count

    def origin(self, index: int) -> str:
        """Return which file a chunk lies in, and where."""
        return self.blob(index).origin

    def locate(self, index: int) -> Source:
        """Return the elements of a chunk."""
        return self.find(index).source

    def find(self, index: int) -> Found:
        """Return what lies where a chunk lies; what was found is remembered for a while."""
        found = self._found.get(index)
        if found is None:
            found = look_into(self.blob(index))
            if len(self._found) >= _MOST_REMEMBERED:
                self._found.clear()
            self._found[index] = found
        return found

    def checksums(self) -> Iterator[Checksum]:
        """Yield the checksum of every chunk that has one."""
        for index in range(len(self)):
            checksum = self.find(index).checksum
            if checksum is not None:
                yield checksum


@dataclass(frozen=True, slots=True)
class ChunkPieces(Sequence[Piece]):
    """The pieces of one tensor, each made when it is asked for and then remembered.

    Attributes:
        chunks: All chunks of the model.
        at: Which tensor it is.
    """

    chunks: Chunks
    at: int
    _made: dict[int, Piece] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.chunks.kept[self.at])

    @overload
    def __getitem__(self, index: int) -> Piece: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Piece]: ...
    def __getitem__(self, index: int | slice) -> Piece | Sequence[Piece]:
        """Return one piece, or several."""
        if isinstance(index, slice):
            return [self._piece(number) for number in self.chunks.kept[self.at][index]]
        return self._piece(self.chunks.kept[self.at][index])

    def __iter__(self) -> Iterator[Piece]:
        return map(self._piece, self.chunks.kept[self.at])

    def _piece(self, number: int) -> Piece:
        piece = self._made.get(number)
        return piece or self._made.setdefault(number, self.chunks.piece(self.at, number))
