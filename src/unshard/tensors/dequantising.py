"""Numbers that were quantised, times their scales: computed range by range, in float32.

Every format is one formula, of which most leave parts out:

    (code[number] - zeros - zero) * scale * factor + offset

with one scale and one zero for every block of a matrix. Each operation is rounded once, in this order.
Libraries that compute in the dtype of their scales round a product that float32 holds exactly, so one
cast to that dtype gives their bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from unshard.dtypes import FLOAT32, DType
from unshard.errors import DamagedFileError
from unshard.tensors.boxes import Box
from unshard.tensors.casting import cast_block
from unshard.tensors.described import DescribedTensor
from unshard.tensors.sources import Place, Run
from unshard.tensors.unpacking import bounded_boxes

if TYPE_CHECKING:
    import numpy as np

_E8M0_BIAS = 127


@dataclass(frozen=True)
class Grid:
    """What belongs to the blocks of a matrix, or of matrices that lie one below the other.

    Attributes:
        scales: Two dimensions, one scale for every block; uint8 means a power of two, `2 ** (byte - 127)`.
        block: Rows and columns of a block; the last ones of a matrix may have fewer.
        matrix: Rows of one matrix, and rows of the grid that belong to it.
        zeros: What is subtracted first, of the shape of `scales`, or None.
        groups: For every column of the matrix the column of the grid, where these are not in order.
    """

    scales: DescribedTensor
    block: tuple[int, int]
    matrix: tuple[int, int]
    zeros: DescribedTensor | None = None
    groups: DescribedTensor | None = None

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return the row of the grid for every row of the matrices."""
        import numpy as np

        rows = np.arange(start, stop)
        height, parts = self.matrix
        return rows // height * parts + rows % height // self.block[0]

    def columns(self, start: int, stop: int) -> np.ndarray:
        """Return the column of the grid for every column of the matrix, or for equal stretches of them.

        Raises:
            DamagedFileError: A column belongs to a group that is not there.
        """
        import numpy as np

        if self.groups is not None:
            found = self.groups[start:stop]
            if found.size and not 0 <= found.min() <= found.max() < self.scales.shape[1]:
                raise DamagedFileError(
                    self.groups.origin,
                    "names a group of columns that has no scale",
                    saw=f"groups {found.min()} to {found.max()}",
                    expected=f"0 to {self.scales.shape[1] - 1}",
                    hint="Copy the file again, or dequantise another step of the run.",
                )
            return found
        width = self.block[1]
        if start // width == (stop - 1) // width:
            return np.array([start // width])
        if start % width == stop % width == 0:
            return np.arange(start // width, stop // width)
        return np.arange(start, stop) // width


@dataclass(frozen=True)
class DequantisedSource:
    """A matrix that was quantised, or matrices that lie one below the other.

    Attributes:
        values: The quantised numbers in row-major order.
        rows: How many rows there are.
        width: How many columns.
        grid: The scales.
        dtype: What is given: the float32 result, rounded once.
        code: What each quantised number stands for; the number itself where None.
        zero: What is subtracted everywhere.
        factor: What every scaled number is multiplied with.
        offset: What is added last.

    Memory:
        About 5 MiB, however much is read at once.
    """

    values: DescribedTensor
    rows: int
    width: int
    grid: Grid
    dtype: DType = FLOAT32
    code: tuple[float, ...] | DescribedTensor | None = None
    zero: int = 0
    factor: float = 1.0
    offset: float = 0.0

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return self.rows * self.width

    @property
    def place(self) -> Place | None:
        """Where the quantised numbers begin."""
        return next(self.values.places, None)

    @property
    def origin(self) -> str:
        """Where the quantised numbers are."""
        return f"{self.values.origin}, dequantised"

    def runs(self, start: int, stop: int) -> list[Run] | None:
        """Return None: no byte on disk is the result."""
        return None

    def read(self, start: int, stop: int, into: memoryview) -> None:
        """Fill `into` with elements `start` to `stop`.

        Raises:
            DamagedFileError: A column belongs to a group that is not there.
        """
        import numpy as np

        out, done = np.frombuffer(into, self.dtype.numpy), 0
        with np.errstate(all="ignore"):
            for box in bounded_boxes(self.rows, self.width, start, stop):
                cast_block(self._computed(box).reshape(-1), out[done : done + box.volume])
                done += box.volume

    def _computed(self, box: Box) -> np.ndarray:
        """Return the numbers of a box, which is one row or whole rows, in float32."""
        import numpy as np

        (top, left), (bottom, right) = box.start, box.stop
        rows, columns = self.grid.rows(top, bottom), self.grid.columns(left, right)
        numbers = self._numbers(box).reshape(bottom - top, columns.size, -1)
        if self.grid.zeros is not None:
            numbers -= _part(self.grid.zeros, rows, columns)
        if self.zero:
            numbers -= np.float32(self.zero)
        numbers *= _scales(_part(self.grid.scales, rows, columns))
        if self.factor != 1.0:
            numbers *= np.float32(self.factor)
        if self.offset:
            numbers += np.float32(self.offset)
        return numbers

    def _numbers(self, box: Box) -> np.ndarray:
        """Return what the quantised numbers of a box stand for, in float32."""
        import numpy as np

        first = box.start[0] * self.width + box.start[1]
        raw = bytearray(box.volume * self.values.dtype.itemsize)
        self.values.read(first, first + box.volume, memoryview(raw))
        if self._table is not None:
            return np.asarray(self._table[np.frombuffer(raw, np.uint8)])
        return np.frombuffer(raw, self.values.dtype.numpy).astype(np.float32)

    @cached_property
    def _table(self) -> np.ndarray | None:
        """What every byte stands for, in float32; None where numbers are not bytes."""
        import numpy as np

        if self.code is None:
            bytes_ = np.arange(256, dtype=np.uint8)
            is_byte = self.values.dtype.itemsize == 1
            return bytes_.view(self.values.dtype.numpy).astype(np.float32) if is_byte else None
        given = self.code.numpy() if isinstance(self.code, DescribedTensor) else self.code
        return np.asarray(given, np.float32).reshape(-1)


def _part(grid: DescribedTensor, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return what a grid holds for rows and stretches of columns, with a dimension for their columns."""
    import numpy as np

    top, left = int(rows.min()), int(columns.min())
    found = grid[top : int(rows.max()) + 1, left : int(columns.max()) + 1]
    return np.asarray(found[rows - top][:, columns - left, None])


def _scales(found: np.ndarray) -> np.ndarray:
    """Return scales as float32 numbers.

    Source:
        OCP Microscaling Formats (MX) Specification 1.0, E8M0, for bytes. Its NaN, 255, becomes infinity, as
        in transformers/integrations/mxfp4.py (`convert_moe_packed_tensors`).
    """
    import numpy as np

    if found.dtype == np.uint8:
        return np.asarray(np.ldexp(np.float32(1), found.astype(np.int32) - _E8M0_BIAS))
    return found.astype(np.float32)
