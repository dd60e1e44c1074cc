"""Small whole numbers that lie several to a word, as a tensor of one number per element."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unshard.dtypes import DTYPES
from unshard.tensors.boxes import Box, split_range
from unshard.tensors.computed import computed_tensor
from unshard.tensors.described import DescribedTensor
from unshard.tensors.sources import Place, Run

if TYPE_CHECKING:
    import numpy as np

MOST_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class UnpackedSource:
    """Unsigned numbers of a few bits each, as bytes.

    Attributes:
        words: Holds them; its bytes count, whatever its dtype says they are.
        word_bytes: Bytes of a word, little-endian.
        shifts: How far up in its word each number lies, in the order of the elements.
        bits: Of a number.
        rows: How many rows of numbers there are.
        columns: How many numbers a row has.
        down: Whether the numbers of a word lie below one another, and not side by side. Side by side, every
            row begins with a word; what its last one holds beyond the columns is padding.

    Memory:
        About 2 MiB, however much is read at once.
    """

    words: DescribedTensor
    word_bytes: int
    shifts: tuple[int, ...]
    bits: int
    rows: int
    columns: int
    down: bool = False

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return self.rows * self.columns

    @property
    def place(self) -> Place | None:
        """Where the words begin."""
        return next(self.words.places, None)

    @property
    def origin(self) -> str:
        """Where the words are."""
        return f"{self.words.origin}, unpacked"

    def runs(self, start: int, stop: int) -> list[Run] | None:
        """Return None: no byte on disk is a number."""
        return None

    def read(self, start: int, stop: int, into: memoryview) -> None:
        """Fill `into` with numbers `start` to `stop`."""
        import numpy as np

        out, done = np.frombuffer(into, np.uint8), 0
        for box in bounded_boxes(self.rows, self.columns, start, stop):
            out[done : done + box.volume] = self._numbers(box).reshape(-1)
            done += box.volume

    def _numbers(self, box: Box) -> np.ndarray:
        """Return the numbers of a box: one row, or whole rows."""
        (top, left), (bottom, right) = box.start, box.stop
        each = len(self.shifts)
        if self.down:
            first, last = top // each, -(-bottom // each)
            words = self._words(first * self.columns + left, (last - 1) * self.columns + right)
            below = self._words_apart(words.reshape(last - first, 1, -1), axis=1)
            return below.reshape(-1, right - left)[top - first * each : bottom - first * each]
        first, last, width = left // each, -(-right // each), -(-self.columns // each)
        words = self._words(top * width + first, (bottom - 1) * width + last)
        beside = self._words_apart(words.reshape(bottom - top, -1, 1), axis=2)
        return beside.reshape(bottom - top, -1)[:, left - first * each : right - first * each]

    def _words_apart(self, words: np.ndarray, *, axis: int) -> np.ndarray:
        """Return what words hold, along an axis that they have for it."""
        import numpy as np

        shape = list(words.shape)
        shape[axis] = len(self.shifts)
        apart, mask = np.empty(shape, np.uint8), words.dtype.type((1 << self.bits) - 1)
        for number, shift in enumerate(self.shifts):  # one by one: faster than along a short dimension
            place = (slice(None),) * axis + (slice(number, number + 1),)
            np.copyto(apart[place], (words >> words.dtype.type(shift)) & mask, casting="unsafe")
        return apart

    def _words(self, start: int, stop: int) -> np.ndarray:
        import numpy as np

        size = self.words.dtype.itemsize
        begin, end = start * self.word_bytes, stop * self.word_bytes
        first, last = begin // size, -(-end // size)
        raw = bytearray((last - first) * size)
        self.words.read(first, last, memoryview(raw))
        return np.frombuffer(raw, np.uint8)[begin - first * size :][: end - begin].view(
            f"<u{self.word_bytes}"
        )


def unpacked(
    words: DescribedTensor,
    shape: Sequence[int],
    *,
    word_bytes: int,
    shifts: tuple[int, ...],
    bits: int,
    down: bool = False,
) -> DescribedTensor:
    """Return the numbers that lie in words, as a tensor of uint8.

    Args:
        words: Rows of words.
        shape: Of the numbers.
        word_bytes: Bytes of a word.
        shifts: How far up in its word each number lies, in the order of the elements.
        bits: Of a number.
        down: Whether the numbers of a word lie below one another, and not side by side.

    Raises:
        ValueError: The words do not hold so many numbers, or hold more.
    """
    *leading, columns = shape
    rows, each = math.prod(leading), len(shifts)
    needed = rows // each * columns if down else rows * -(-columns // each)
    if needed * word_bytes != words.nbytes or (down and rows % each):
        raise ValueError(f"{words.nbytes:,} bytes do not hold {list(shape)} numbers of {bits} bits")
    source = UnpackedSource(words, word_bytes, shifts, bits, rows, columns, down)
    return computed_tensor(source, shape, DTYPES["uint8"])


def bounded_boxes(rows: int, columns: int, start: int, stop: int) -> Iterator[Box]:
    """Yield a range of a matrix as boxes of at most `MOST_ELEMENTS`, each of one row or of whole rows."""
    for box in split_range((rows, columns), start, stop):
        (top, left), (bottom, right) = box.start, box.stop
        high = max(1, MOST_ELEMENTS // (right - left))
        for first in range(top, bottom, high):
            last = min(bottom, first + high)
            for begin in range(left, right, MOST_ELEMENTS):
                yield Box((first, begin), (last, min(right, begin + MOST_ELEMENTS)))
