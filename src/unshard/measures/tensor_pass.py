"""The pass over one tensor, and over another one beside it: jobs, blocks, and how they are put together."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from unshard.engines.workers import Job
from unshard.measures.buffers import BLOCK, READ_BYTES, Buffers
from unshard.measures.digests import PartialDigest, whole_digest
from unshard.measures.distances import Sums, count_survivors, distance_of, no_distance
from unshard.measures.measurement import Measurement, Statistics
from unshard.measures.numbers import (
    Counts,
    Moments,
    bounded,
    scalars,
    smallest_normal_exponent,
)
from unshard.measures.tallies import Tally, new_tally
from unshard.tensors import CastTensor, DescribedTensor, FileSource, Tensor, byte_count, element_count
from unshard.tensors.boxes import row_ranges

if TYPE_CHECKING:
    import numpy as np

_JOB_BYTES = 8 << 20  # what a worker takes at a time
_PIECES_COMPARED = 64  # tensors in more places are not looked at for being one another


@dataclass(frozen=True, slots=True)
class _Part:
    """What one job gives that must be put together in order."""

    start: int
    digest: int
    sums: Sums


class TensorPass:
    """A pass over one tensor, and over another one of its shape beside it."""

    def __init__(self, tensor: Tensor, other: Tensor | None) -> None:
        """Prepare the pass; nothing is read."""
        self._cast = tensor.dtype if isinstance(tensor, CastTensor) else None
        self._ours = tensor.source if isinstance(tensor, CastTensor) else tensor
        self._other = other
        self._is_one = other is not None and _pieces(self._ours) is not None
        self._is_one = self._is_one and _pieces(self._ours) == (other and _pieces(other))
        self._left = len(self._cuts())
        self._parts: list[_Part] = []
        self._tally: Tally | None = None
        self._lock = threading.Lock()
        self._result: Measurement | None = None

    @property
    def sides(self) -> tuple[Tensor, ...]:
        """What is read."""
        return (self._ours,) if self._other is None or self._is_one else (self._ours, self._other)

    @property
    def nbytes(self) -> int:
        """How many bytes are read."""
        return sum(map(byte_count, self.sides))

    def identity(self) -> object:
        """Return what is equal for passes that would give the same."""
        pieces = [None if side is None else _pieces(side) for side in (self._ours, self._other)]
        if pieces[0] is None or (self._other is not None and pieces[1] is None):
            return id(self)
        return (*pieces, self._cast)

    def place(self) -> tuple[str, int]:
        """Return where on disk the tensor begins."""
        place = next(self._ours.places, None)
        return (str(place.file.path), place.offset) if place else ("", 0)

    def _cuts(self) -> range:
        """Return where its jobs begin."""
        return range(0, max(element_count(self._ours), 1), _JOB_BYTES // self._ours.dtype.itemsize)

    def jobs(self) -> Iterator[Job[Buffers]]:
        """Yield the jobs."""
        cuts, count = self._cuts(), element_count(self._ours)
        for start in cuts:
            yield partial(self._measure, start, min(count, start + cuts.step))

    def _measure(self, start: int, stop: int, buffers: Buffers) -> Iterator[int]:
        """Measure elements `start` to `stop`, yielding how many bytes are done."""
        import numpy as np

        sizes = [side.dtype.itemsize for side in self.sides]
        tally, digest, sums = new_tally(self._ours.dtype, start), PartialDigest(start * sizes[0]), Sums()
        for first, last in row_ranges(self._ours.shape, start, stop, READ_BYTES // max(sizes)):
            ours = memoryview(buffers.ours)[: (last - first) * sizes[0]]
            self._ours.read(first, last, ours)
            theirs = self._read_other(first, last, buffers)
            digest.add(ours, buffers.words)
            with np.errstate(all="ignore"):
                tally.add(ours, buffers)
                for block in self._blocks(ours, theirs) if self._other is not None else ():
                    sums += self._compare_block(*block, buffers)
            yield (last - first) * sum(sizes)
        self._finish(_Part(start, digest.value(buffers.words), sums), tally)

    def _read_other(self, first: int, last: int, buffers: Buffers) -> memoryview | None:
        """Return the bytes of the other side, or None where there is none or they are the same."""
        if self._other is None or self._is_one:
            return None
        theirs = memoryview(buffers.theirs)[: (last - first) * self._other.dtype.itemsize]
        self._other.read(first, last, theirs)
        # This is memcmp, without a copy.
        same = self._other.dtype == self._ours.dtype and buffers.ours.startswith(theirs)
        return None if same else theirs

    def _blocks(
        self, ours: memoryview, theirs: memoryview | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Yield the numbers of what was read, a block at a time, on both sides."""
        mine = scalars(ours, self._ours.dtype)
        other = None if theirs is None or self._other is None else scalars(theirs, self._other.dtype)
        for i in range(0, mine.size, BLOCK):
            yield mine[i : i + BLOCK], None if other is None else other[i : i + BLOCK]

    def _compare_block(self, ours: np.ndarray, theirs: np.ndarray | None, buffers: Buffers) -> Sums:
        """Return the sums of a block with the other side."""
        if theirs is None:
            return no_distance(ours, buffers)
        sums = distance_of(ours, theirs, buffers)
        if not sums.changed or self._cast is None:
            return sums
        scratch = [buffers.ours64, buffers.theirs64]
        return replace(sums, survived=count_survivors(ours, theirs, self._cast, scratch))

    def _finish(self, part: _Part, tally: Tally) -> None:
        """Put away what a job gave; after the last one, put all together."""
        with self._lock:
            self._parts.append(part)
            if self._tally is None:
                self._tally = tally
            else:
                self._tally.merge(tally)
            self._left -= 1
            if self._left:
                return
            parts, total = sorted(self._parts, key=lambda part: part.start), self._tally
            self._parts, self._tally = [], None
        digest = whole_digest(sum(part.digest for part in parts), byte_count(self._ours))
        statistics = _statistics(*total.told(), digest, smallest_normal_exponent(self._ours.dtype))
        sums = sum((part.sums for part in parts), Sums())
        delta = None if self._other is None else sums.delta(statistics.count)
        self._result = Measurement(statistics, delta)

    def measurement(self) -> Measurement:
        """Return what all jobs together have told."""
        assert self._result is not None, "a job has not run"
        return self._result


def _statistics(counts: Counts, moments: Moments, digest: int, smallest_normal: int) -> Statistics:
    """Return the numbers of a tensor."""
    magnitudes = counts.magnitudes()
    return Statistics(
        count=moments.count + counts.nans + counts.infinities,
        nans=counts.nans,
        infinities=counts.infinities,
        zeros=counts.zeros,
        subnormals=sum(count for exponent, count in magnitudes if exponent < smallest_normal),
        minimum=counts.minimum if moments.count else 0.0,
        maximum=counts.maximum if moments.count else 0.0,
        mean=bounded(moments.mean),
        deviation=math.sqrt(bounded(moments.spread) / moments.count) if moments.count else 0.0,
        magnitudes=magnitudes,
        digest=digest,
    )


def _pieces(tensor: Tensor) -> object | None:
    """Return what is equal for tensors that are the same bytes of files, or None where that is not known."""
    if not isinstance(tensor, DescribedTensor) or len(tensor.pieces) > _PIECES_COMPARED:
        return None
    if not all(isinstance(piece.source, FileSource) for piece in tensor.pieces):
        return None
    return tensor.shape, tuple(tensor.pieces)
