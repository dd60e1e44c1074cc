"""The chunks of one model: checked as geometry, and turned into pieces when they are asked for.

Memory:
    The rows of the tables; pieces are made one by one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, overload

from unshard.checkpoint import Replica
from unshard.dtypes import DTYPES, DType
from unshard.errors import InputError
from unshard.readers.dcp.blobs import Blob, Found, look_into
from unshard.readers.dcp.compressed import CompressedSource, Scratch
from unshard.readers.dcp.likeness import Likeness
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
        scratch: Unpacks compressed blobs.
    """

    keys: Sequence[str]
    rows: Sequence[TensorRow]
    dtypes: Sequence[DType]
    numbers: Sequence[np.ndarray]
    kept: Sequence[Sequence[int]]
    files: Sequence[InputFile | None]
    scratch: Scratch
    _starts: list[int] = field(default_factory=list)
    _found: dict[int, Found] = field(default_factory=dict)
    _alike: Likeness = field(default_factory=Likeness)

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

    def replicas(self, groups: Sequence[Sequence[Sequence[int]]]) -> list[Replica]:
        """Return the chunks that repeat one of those that are pieces.

        Args:
            groups: For every tensor, groups of chunks that are the same; the first of each is a piece.
        """
        found = []
        for at, repeated in enumerate(groups):
            for first, *others in repeated:
                kept = self.piece(at, first)
                for other in others:
                    source = self.piece(at, other).source
                    found.append(Replica(self.rows[at].name, kept.box, kept.source, source))
        return found

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
        numbers = self.numbers[at][index - self._starts[at]].tolist()
        dimensions = len(self.rows[at].shape)
        file, start, length, _ = numbers[-PLACE_FIELDS:]
        described = self.files[file]
        assert described is not None
        return Blob(
            name=self.rows[at].name,
            key=self.keys[at],
            file=described,
            start=start,
            stop=start + length,
            offset=tuple(numbers[:dimensions]),
            shape=tuple(numbers[dimensions : 2 * dimensions]),
            dtype=self.dtypes[at],
        )

    def is_compressed(self, index: int) -> bool:
        """Return whether the blob of a chunk is compressed."""
        at = bisect_right(self._starts, index) - 1
        return bool(self.numbers[at][index - self._starts[at], -1])

    def count(self, index: int) -> int:
        """Return how many elements a chunk has."""
        return self.blob(index).count

    def origin(self, index: int) -> str:
        """Return which file a chunk lies in, and where."""
        return self.blob(index).origin

    def locate(self, index: int) -> Source:
        """Return the elements of a chunk."""
        if self.is_compressed(index):
            return CompressedSource(self.scratch, self.blob(index))
        return self.find(index).source

    def find(self, index: int) -> Found:
        """Return what lies where a chunk lies; what was found is remembered for a while."""
        found = self._found.get(index)
        if found is None:
            found = self._look_into(self.blob(index))
            if len(self._found) >= _MOST_REMEMBERED:
                self._found.clear()
            self._found[index] = found
        return found

    def _look_into(self, blob: Blob) -> Found:
        found = self._alike.find(blob)
        if found is None:
            found = look_into(blob)
            self._alike.remember(blob, found)
        return found

    @property
    def checked_bytes(self) -> int:
        """Bytes of all chunks that are not compressed; each is expected to have a checksum."""
        total = 0
        for row, dtype, numbers in zip(self.rows, self.dtypes, self.numbers, strict=True):
            dimensions = len(row.shape)
            plain = numbers[numbers[:, -1] == 0]
            total += int(plain[:, dimensions : 2 * dimensions].prod(axis=1).sum()) * dtype.itemsize
        return total

    @property
    def scratch_bytes(self) -> int:
        """Room that compressed blobs take when they are unpacked, at the most."""
        compressed = sum(int(numbers[:, -1].any()) for numbers in self.numbers)
        return self.scratch.capacity if compressed else 0

    def has_checksums(self) -> bool:
        """Return whether the first chunk has a checksum, as then all have; True where that cannot be told."""
        if not len(self) or self.is_compressed(0):
            return True
        try:
            return self.find(0).checksum is not None
        except InputError:  # which is told when it is read
            return True

    def checksums(self) -> Iterator[Checksum]:
        """Yield the checksum of every chunk that has one; compressed ones are checked when they are read."""
        for index in range(len(self)):
            checksum = None if self.is_compressed(index) else self.find(index).checksum
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
