"""Casts between floating dtypes, and the tensor that is computed by one.

Every value is rounded to nearest, ties to even, once. For finite float32, bfloat16 and float16 that
is bit for bit what torch gives. float64 is rounded once here; torch goes through float32 and so
rounds twice. NaN stays NaN with its sign; its payload is what the conversion leaves, never infinity.

Memory:
    Values pass through one buffer of 1 MiB per thread, small enough to stay in a core's cache: page
    faults and cache misses, not arithmetic, are what a cast costs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from unshard.dtypes import DType
from unshard.tensors.sources import Place, Run

if TYPE_CHECKING:
    import numpy as np

    from unshard.tensors.described import Tensor

_BUFFER_BYTES = 1 << 20
_buffers = threading.local()


class CastTally:
    """Counts, from any number of threads, what casts could not represent."""

    def __init__(self) -> None:
        self.overflowed = 0
        self.underflowed = 0
        self._lock = threading.Lock()

    def add(self, overflowed: int, underflowed: int) -> None:
        """Add the losses of one block."""
        with self._lock:
            self.overflowed += overflowed
            self.underflowed += underflowed


@dataclass(frozen=True, slots=True)
class CastTensor:
    """Another tensor in another floating dtype, computed range by range.

    Attributes:
        source: The tensor that is cast.
        dtype: What it is cast to.
        tally: Where finite values that became infinite, and values that became zero, are counted.
    """

    source: Tensor
    dtype: DType
    tally: CastTally = field(default_factory=CastTally, compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along every dimension."""
        return self.source.shape

    @property
    def origin(self) -> str:
        """Where the source is, and its dtype."""
        return f"{self.source.origin}, cast from {self.source.dtype}"

    @property
    def places(self) -> Iterator[Place]:
        """Where the source's pieces begin."""
        return self.source.places

    def runs(self, start: int, stop: int) -> list[Run] | None:
        """Return None: the bytes on disk are not the bytes that are wanted."""
        return None

    def read(self, start: int, stop: int, into: memoryview) -> None:
        """Fill `into` with elements `start` to `stop`, cast.

        Raises:
            DamagedFileError: A file of the source is shorter than it should be, or has changed.
        """
        import numpy as np

        size = self.source.dtype.itemsize
        out = np.frombuffer(into, self.dtype.numpy)
        block = _BUFFER_BYTES // size
        buffer = _buffer()
        overflowed = underflowed = 0
        for begin in range(start, stop, block):
            end = min(stop, begin + block)
            raw = buffer[: (end - begin) * size]
            self.source.read(begin, end, raw)
            values = np.frombuffer(raw, self.source.dtype.numpy)
            lost = cast_block(values, out[begin - start : end - start])
            overflowed, underflowed = overflowed + lost[0], underflowed + lost[1]
        self.tally.add(overflowed, underflowed)


def _buffer() -> memoryview:
    """Return this thread's buffer."""
    if not hasattr(_buffers, "view"):
        _buffers.view = memoryview(bytearray(_BUFFER_BYTES))
    view: memoryview = _buffers.view
    return view


def cast_block(values: np.ndarray, into: np.ndarray) -> tuple[int, int]:
    """Write `values` into `into`, rounded to its dtype once.

    Returns:
        How many finite values became infinite (or NaN, in formats without infinity), and how many
        values other than zero became zero.
    """
    import numpy as np

    with np.errstate(all="ignore"):
        if values.dtype == np.float64 and into.dtype != np.float32 and into.dtype != np.float16:
            # These formats are reached through float32. Rounding to odd on the way there keeps
            # what the second rounding needs to know, so the result is rounded once.
            values = _round_to_odd(values)
        np.copyto(into, values, casting="unsafe")
        return _losses(values, into)


def _round_to_odd(values: np.ndarray) -> np.ndarray:
    """Return float64 as float32: truncated, with the last bit set where anything was cut off.

    Source:
        Boldo and Melquiond, "When double rounding is odd", IMACS 2005, theorem 2.
    """
    import numpy as np

    nearest = values.astype(np.float32)
    back = nearest.astype(np.float64)
    inexact = (back != values) & ~np.isnan(values)
    bits = nearest.view(np.uint32)
    # Where rounding went away from zero, one step back is the truncated value.
    bits -= ((np.abs(back) > np.abs(values)) & inexact).astype(np.uint32)
    bits |= inexact.astype(np.uint32)
    return nearest


def _losses(values: np.ndarray, out: np.ndarray) -> tuple[int, int]:
    """Return how many values overflowed and underflowed; nearly free where none did."""
    import numpy as np

    if out.dtype.itemsize > values.dtype.itemsize:
        return 0, 0  # every wider format of the table holds every value of the narrower one
    bits = np.dtype(f"u{out.dtype.itemsize}")
    magnitude = out.view(bits) << bits.type(1)  # without the sign
    infinity = np.array(np.inf, out.dtype).view(bits) << bits.type(1)
    zeros = magnitude.size - np.count_nonzero(magnitude)
    overflowed = (
        np.count_nonzero(np.isinf(out) & np.isfinite(values)) if magnitude.max(initial=0) >= infinity else 0
    )
    return int(overflowed), int(zeros and zeros - (values.size - np.count_nonzero(values)))
