"""The tensor that a weight becomes when an adapter of low rank is merged into it, range by range.

    LoRA    W + scale * B @ A
    DoRA    magnitude * (W + scale * B @ A) / |W + scale * B @ A|, the norm over what one output sums up

A weight that a layer holds the other way round (`Conv1D`, an embedding) gets the transposed product, and
one of a convolution that of its dimensions after the first as one.

Products and sums are float64, and the result is rounded to float32: once, and correctly but for ties. So
it does not matter how many workers there are, which machine computes it, or which range is asked for:
every element is computed in a tile that always has the same place.

Memory:
    2 MiB for every worker: a tile of 64 Ki elements, and the factors of one stretch of it. Factors of up
    to 8 MiB are kept in memory together; larger ones are read again for every tile.

Source:
    Hu et al., "LoRA", section 4.1, eq. 3 (arXiv:2106.09685); Liu et al., "DoRA", eq. 5
    (arXiv:2402.09353); peft src/peft/tuners/lora/layer.py (`get_delta_weight`), variants.py
    (`DoraLinearVariant.merge_safe`), dora.py (`get_weight_norm`).
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unshard.tensors.casting import CastTensor
from unshard.tensors.sources import Place, Run

if TYPE_CHECKING:
    import numpy as np

    from unshard.tensors.described import Tensor

    Array = np.ndarray[Any, np.dtype[np.float64]]

# Elements computed together: their float64 stay in a core's cache, and so does what they are made of.
_TILE = 1 << 16
# Elements of one factor that are float64 at a time.
_STRETCH = 1 << 16
_KEPT_BYTES = 8 << 20

_last = threading.local()


@dataclass(frozen=True, slots=True, eq=False)
class MergedSource:
    """A weight with an adapter merged into it, as float32.

    Attributes:
        weight: The weight of the base, of at least two dimensions.
        a: The first factor: rank x inputs, dimensions after the second counted as inputs.
        b: The second factor: outputs x rank.
        scale: What the product is multiplied by.
        transposed: Whether the weight is inputs x outputs.
        magnitude: DoRA's norm of every output, or None for LoRA.
    """

    weight: Tensor
    a: Tensor
    b: Tensor
    scale: float
    transposed: bool = False
    magnitude: Tensor | None = None

    @property
    def count(self) -> int:
        """How many elements there are."""
        return math.prod(self.weight.shape)

    @property
    def place(self) -> Place | None:
        """Where the weight begins."""
        return next(self.weight.places, None)

    @property
    def origin(self) -> str:
        """Where the weight and the adapter are."""
        return f"{self.weight.origin}, with the adapter from {self.a.origin}"

    @property
    def rows(self) -> int:
        """The first dimension of the weight."""
        return self.weight.shape[0]

    @property
    def columns(self) -> int:
        """All other dimensions of the weight."""
        return math.prod(self.weight.shape[1:])

    @property
    def rank(self) -> int:
        """Rows of the first factor."""
        return self.a.shape[0]

    def runs(self, start: int, stop: int) -> list[Run] | None:
        """Return None: the bytes are nowhere on disk."""
        return None

    def read(self, start: int, stop: int, into: memoryview) -> None:
        """Fill `into` with elements `start` to `stop`, as float32.

        Raises:
            DamagedFileError: A file is shorter than it should be, or has changed.
        """
        import numpy as np

        out = np.frombuffer(into, np.float32)
        width = min(self.columns, _TILE)
        while start < stop:
            row, column = divmod(start, self.columns)
            first = row - row % self._tile_rows if width == self.columns else row
            left = column - column % width
            values = self._tile(first, left)
            begin = (start - first * self.columns) - left
            taken = min(stop - start, values.size - begin)
            out[:taken] = values[begin : begin + taken]
            out, start = out[taken:], start + taken

    @property
    def _tile_rows(self) -> int:
        return max(1, _TILE // max(self.columns, self.rank))

    def _tile(self, row: int, column: int) -> np.ndarray:
        """Return the flat tile that begins at an element; the last one of a thread is kept."""
        import numpy as np

        key = (id(self), row, column)
        if getattr(_last, "key", None) != key:
            bottom = min(self.rows, row + self._tile_rows)
            right = min(self.columns, column + _TILE)
            values = self._scaled(row, bottom, column, right)
            with np.errstate(over="ignore", invalid="ignore"):
                _last.values = values.astype(np.float32).reshape(-1)
            _last.key, _last.source = key, self  # while it is held, no other source has its id
        tile: np.ndarray = _last.values
        return tile

    def _scaled(self, top: int, bottom: int, left: int, right: int) -> Array:
        """Return a box of the result, as float64."""
        import numpy as np

        values = self._sum(top, bottom, left, right)
        if self.magnitude is None:
            return values
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.transposed:
                factors = _flat(self.magnitude, left, right) / self._norms_of_columns()[left:right]
                return np.asarray(values * factors)
            norms = np.sqrt(self._squares_of_rows(values, top, bottom))
            return np.asarray(values * (_flat(self.magnitude, top, bottom) / norms)[:, None])

    def _sum(self, top: int, bottom: int, left: int, right: int) -> Array:
        """Return a box of the weight with the product added."""
        import numpy as np

        values = _box(self.weight, self.columns, top, bottom, left, right)
        inputs = self.rows if self.transposed else self.columns
        if self.transposed:
            factor = _columns(self.a, inputs, top, bottom).T
        else:
            factor = _rows(self.b, self.rank, top, bottom)
        factor = factor * self.scale
        step = max(1, _STRETCH // self.rank)
        for begin in range(left, right, step):
            end = min(right, begin + step)
            other = (
                _rows(self.b, self.rank, begin, end).T
                if self.transposed
                else _columns(self.a, inputs, begin, end)
            )
            with np.errstate(over="ignore", invalid="ignore"):
                values[:, begin - left : end - left] += factor @ other
        return values

    def _squares_of_rows(self, values: Array, top: int, bottom: int) -> Array:
        """Return the sum of squares of whole rows, of which `values` may be all there is."""
        import numpy as np

        if values.shape[1] == self.columns:
            return np.asarray(np.square(values).sum(axis=1))
        boxes = ((left, min(self.columns, left + _TILE)) for left in range(0, self.columns, _TILE))
        parts = [np.square(self._sum(top, bottom, *box)).sum(axis=1) for box in boxes]
        return np.asarray(np.sum(parts, axis=0))

    def _norms_of_columns(self) -> Array:
        """Return the norm of every column, for which all of the weight is read once."""
        return _kept.get(self, self.columns * 8, self._read_norms_of_columns)

    def _read_norms_of_columns(self) -> Array:
        import numpy as np

        squares = np.zeros(self.columns)
        for top in range(0, self.rows, self._tile_rows):
            for left in range(0, self.columns, _TILE):
                right = min(self.columns, left + _TILE)
                values = self._sum(top, min(self.rows, top + self._tile_rows), left, right)
                squares[left:right] += np.square(values).sum(axis=0)
        return np.sqrt(squares)


@dataclass(frozen=True, slots=True)
class CastSource:
    """A cast tensor as the source of a piece, so that views of it can be made."""

    tensor: CastTensor

    @property
    def count(self) -> int:
        """How many elements there are."""
        return math.prod(self.tensor.shape)

    @property
    def place(self) -> Place | None:
        """Where what is cast begins."""
        return next(self.tensor.places, None)

    @property
    def origin(self) -> str:
        """Where what is cast is, and its dtype."""
        return self.tensor.origin

    def read(self, start: int, stop: int, into: memoryview) -> None:
        """Fill `into` with elements `start` to `stop`, cast."""
        self.tensor.read(start, stop, into)

    def runs(self, start: int, stop: int) -> list[Run] | None:
        """Return None: the bytes on disk are not the bytes that are wanted."""
        return None


class _Kept:
    """What was read last, shared by all threads, within `_KEPT_BYTES`."""

    def __init__(self) -> None:
        self._found: OrderedDict[int, tuple[object, int, Array]] = OrderedDict()
        self._lock = threading.RLock()

    def get(self, key: object, nbytes: int, read: Callable[[], Array]) -> Array:
        """Return what `read` gives for an object, which is asked again only where it was let go."""
        with self._lock:
            found = self._found.get(id(key))
            if found is None:
                found = (key, nbytes, read())
                self._found[id(key)] = found
            self._found.move_to_end(id(key))
            while len(self._found) > 1 and sum(size for _, size, _ in self._found.values()) > _KEPT_BYTES:
                self._found.popitem(last=False)
            return found[2]


_kept = _Kept()


def _is_kept(tensor: Tensor) -> bool:
    return math.prod(tensor.shape) * tensor.dtype.itemsize <= _KEPT_BYTES


def _raw(tensor: Tensor, start: int, stop: int) -> np.ndarray:
    """Return elements of a tensor as they are."""
    import numpy as np

    raw = bytearray((stop - start) * tensor.dtype.itemsize)
    tensor.read(start, stop, memoryview(raw))
    return np.frombuffer(raw, tensor.dtype.numpy)


def _whole(tensor: Tensor) -> np.ndarray:
    """Return all elements of a small tensor: as float64 where these take little room, too."""
    count = math.prod(tensor.shape)
    if count * 8 <= _KEPT_BYTES // 4:
        return _kept.get(tensor, count * 8, lambda: _flat(tensor, 0, count))
    return _kept.get(tensor, count * tensor.dtype.itemsize, lambda: _raw(tensor, 0, count))


def _wide(values: np.ndarray) -> Array:
    """Return values as float64; through float32, which is faster for the formats that are not numpy's."""
    import numpy as np

    if values.dtype.itemsize < 4:
        values = values.astype(np.float32)
    return values.astype(np.float64, copy=False)


def _flat(tensor: Tensor, start: int, stop: int) -> Array:
    """Return elements of a tensor in row-major order."""
    return _wide(_raw(tensor, start, stop))


def _rows(tensor: Tensor, width: int, top: int, bottom: int) -> Array:
    """Return rows of a tensor that has `width` columns."""
    if _is_kept(tensor):
        return _wide(_whole(tensor)[top * width : bottom * width]).reshape(-1, width)
    return _flat(tensor, top * width, bottom * width).reshape(-1, width)


def _columns(tensor: Tensor, width: int, left: int, right: int) -> Array:
    """Return columns of a tensor that has `width` of them and few rows."""
    import numpy as np

    if _is_kept(tensor):
        return _wide(_whole(tensor).reshape(-1, width)[:, left:right])
    starts = range(0, tensor.shape[0] * width, width)
    return np.stack([_flat(tensor, start + left, start + right) for start in starts])


def _box(tensor: Tensor, width: int, top: int, bottom: int, left: int, right: int) -> Array:
    """Return a box of a tensor that has `width` columns."""
    import numpy as np

    if right - left == width:
        return _flat(tensor, top * width, bottom * width).reshape(-1, width)
    rows: Iterator[Array] = (
        _flat(tensor, row * width + left, row * width + right) for row in range(top, bottom)
    )
    return np.stack(list(rows))
