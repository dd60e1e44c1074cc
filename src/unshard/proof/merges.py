"""Proof of merged adapters: merged - base == scale * B @ A, on every element of every merged tensor.

What was written is read through its own headers, weight and factors through theirs, and the sum is
computed again: in other blocks, by other code than that which wrote it. What may differ is what rounding
does: once to float32, once to the dtype of the output, and the last bits of float64.

Memory:
    4 MiB for every worker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from unshard.engines.workers import Job, run_jobs
from unshard.findings import Finding, finding
from unshard.progress import Progress
from unshard.tensors import CastTensor, DescribedTensor, Tensor, byte_count
from unshard.tensors.merging import CastSource, MergedSource
from unshard.tensors.sources import RangeSource, Source

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]

# A block: wide enough that rows are read in long stretches.
_ROWS, _COLUMNS = 32, 2048
# Half a unit in the last place, relative to the value, and the smallest number, by dtype.
_HALF_UNIT = {"float64": 2**-24, "float32": 2**-24, "bfloat16": 2**-8, "float16": 2**-11}
_SMALLEST = {"float64": 2**-149, "float32": 2**-149, "bfloat16": 2**-133, "float16": 2**-24}
_LARGEST = {"bfloat16": 3.3895e38, "float16": 65504.0}


@dataclass(frozen=True, slots=True)
class MergeProof:
    """What computing merges again showed.

    Attributes:
        tensors: How many of the tensors have an adapter merged into them.
        findings: One for every tensor that is not what it should be.
    """

    tensors: int
    findings: tuple[Finding, ...] = ()

    @property
    def evidence(self) -> tuple[str, ...]:
        """What was proven, in numbers; nothing where nothing was merged."""
        if not self.tensors:
            return ()
        sound = self.tensors - len(self.findings)
        return (
            f"merged - base == scale * B @ A on {sound:,} of {self.tensors:,} tensors, element by element",
        )


def verify_merges(
    expected: Mapping[str, Tensor], actual: Mapping[str, DescribedTensor], *, workers: int, progress: Progress
) -> MergeProof:
    """Return what computing every merged tensor of `expected` again shows of that of `actual`.

    Args:
        expected: What the output should hold; only what is merged in it is looked at.
        actual: What the output holds; tensors of another shape or dtype are left to others.
        workers: Threads.
        progress: Told the bytes of the output that are compared.

    Raises:
        DamagedFileError: A file is shorter than it should be, or has changed.
    """
    passes = [
        _MergePass(name, source, rows, actual[name])
        for name, tensor in expected.items()
        if _is_alike(tensor, actual.get(name)) and (found := _merged(tensor)) is not None
        for source, rows in [found]
    ]
    if not passes:
        return MergeProof(0)
    progress.start("Proving", sum(byte_count(each.actual) for each in passes))
    jobs = (job for each in passes for job in each.jobs())
    run_jobs(jobs, lambda: None, workers=workers, progress=progress)
    return MergeProof(len(passes), tuple(wrong for each in passes if (wrong := each.finding()) is not None))


def _is_alike(tensor: Tensor, actual: Tensor | None) -> bool:
    return actual is not None and (tensor.shape, tensor.dtype) == (actual.shape, actual.dtype)


def _merged(tensor: Tensor) -> tuple[MergedSource, range] | None:
    """Return what computes a tensor, and which rows of it the tensor is; None where nothing is merged."""
    described = tensor.source if isinstance(tensor, CastTensor) else tensor
    if not isinstance(described, DescribedTensor) or len(described.pieces) != 1:
        return None
    source: Source = described.pieces[0].source
    start, stop = 0, source.count
    while not isinstance(source, MergedSource):
        if isinstance(source, RangeSource):
            start, stop, source = source.start + start, source.start + stop, source.whole
        elif isinstance(source, CastSource) and isinstance(source.tensor.source, DescribedTensor):
            if len(source.tensor.source.pieces) != 1:
                return None
            source = source.tensor.source.pieces[0].source
        else:
            return None
    if start % source.columns or stop % source.columns:
        return None
    return source, range(start // source.columns, stop // source.columns)


@dataclass(slots=True)
class _MergePass:
    """A pass over one tensor, in columns; `rows` are those of the whole merged weight that it holds."""

    name: str
    source: MergedSource
    rows: range
    actual: DescribedTensor
    _norms: Array | None = None
    _wrong: list[tuple[int, tuple[int, int], float, float]] = field(default_factory=list)

    def jobs(self) -> Iterator[Job[None]]:
        """Yield the jobs, each some columns."""
        if self.source.magnitude is None:
            for left in range(0, self.source.columns, _COLUMNS):
                yield partial(self._read, left, min(self.source.columns, left + _COLUMNS))
        else:
            yield self._read_scaled

    def _read_scaled(self, scratch: None) -> Iterator[int]:
        """Read all of a tensor whose norms must be known first."""
        self._norms = self._read_norms()
        for left in range(0, self.source.columns, _COLUMNS):
            yield from self._read(left, min(self.source.columns, left + _COLUMNS), scratch)

    def _read(self, left: int, right: int, scratch: None) -> Iterator[int]:
        """Compare some columns, yielding how many bytes of the output are done."""
        for top in range(self.rows.start, self.rows.stop, _ROWS):
            bottom = min(self.rows.stop, top + _ROWS)
            values, bound = self._sum(top, bottom, left, right)
            if self.source.magnitude is not None:
                factor = self._factor(top, bottom, left, right)
                values, bound = values * factor, bound * abs(factor)
            self._compare(values, bound, top - self.rows.start, left)
            yield values.size * self.actual.dtype.itemsize

    def _sum(self, top: int, bottom: int, left: int, right: int) -> tuple[Array, Array]:
        """Return a box of the sum, and a bound of what float64 rounds off in it."""
        import numpy as np

        source = self.source
        weight = _box(source.weight, source.columns, top, bottom, left, right)
        if source.transposed:
            first = _box(source.a, source.rows, 0, source.rank, top, bottom).T
            second = _box(source.b, source.rank, left, right, 0, source.rank).T
        else:
            first = _box(source.b, source.rank, top, bottom, 0, source.rank)
            second = _box(source.a, source.columns, 0, source.rank, left, right)
        sizes = abs(weight) + abs(source.scale) * np.multiply.outer(
            np.linalg.norm(first, axis=1), np.linalg.norm(second, axis=0)
        )
        return weight + source.scale * (first @ second), sizes * ((2 * source.rank + 8) * 2.0**-53)

    def _factor(self, top: int, bottom: int, left: int, right: int) -> Array:
        """Return what DoRA multiplies a box by."""
        import numpy as np

        assert self._norms is not None
        assert self.source.magnitude is not None
        start, stop = (left, right) if self.source.transposed else (top, bottom)
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = _flat(self.source.magnitude, start, stop) / self._norms[start:stop]
        return factor.reshape(1, -1) if self.source.transposed else factor.reshape(-1, 1)

    def _read_norms(self) -> Array:
        """Return the norm of what every output sums up."""
        import numpy as np

        source = self.source
        squares = np.zeros(source.columns if source.transposed else source.rows)
        for top in range(0, source.rows, _ROWS):
            for left in range(0, source.columns, _COLUMNS):
                bottom, right = min(source.rows, top + _ROWS), min(source.columns, left + _COLUMNS)
                own = slice(left, right) if source.transposed else slice(top, bottom)
                values = self._sum(top, bottom, left, right)[0]
                squares[own] += np.square(values).sum(axis=0 if source.transposed else 1)
        return np.sqrt(squares)

    def _compare(self, values: Array, bound: Array, top: int, left: int) -> None:
        """Note where the output is further from the values than rounding takes it."""
        import numpy as np

        height, width = values.shape
        found = _box(self.actual, self.source.columns, top, top + height, left, left + width)
        kind = self.actual.dtype.name
        allowed = bound * 4 + abs(values) * ((_HALF_UNIT[kind] + 2**-24) * (1 + 2**-7)) + _SMALLEST[kind]
        with np.errstate(invalid="ignore"):
            wrong = ~(abs(found - values) <= allowed)
        wrong &= ~(np.isnan(found) & np.isnan(values)) & ~(found == values)
        wrong &= ~(np.isinf(found) & (abs(values) >= _LARGEST.get(kind, 3.4028e38)))
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            at = (int(row) + top, int(column) + left)
            self._wrong.append((int(wrong.sum()), at, float(found[row, column]), float(values[row, column])))

    def finding(self) -> Finding | None:
        """Return what was found to differ."""
        if not self._wrong:
            return None
        _, at, saw, expected = min(self._wrong, key=itemgetter(1))
        count = sum(wrong for wrong, *_ in self._wrong)
        return finding(
            "U260",
            subject=self.name,
            saw=f"{saw:.9g} at {list(at)}; {count:,} elements differ",
            expected=f"{expected:.9g}, which is the base with scale {self.source.scale:.6g} * B @ A added",
            remedy="Convert again. If that does not help, look for a faulty disk or memory.",
        )


def _box(tensor: Tensor, width: int, top: int, bottom: int, left: int, right: int) -> Array:
    """Return a box of a tensor seen as rows of `width`."""
    import numpy as np

    if right - left == width:
        return _flat(tensor, top * width, bottom * width).reshape(-1, width)
    return np.stack([_flat(tensor, row * width + left, row * width + right) for row in range(top, bottom)])


def _flat(tensor: Tensor, start: int, stop: int) -> Array:
    import numpy as np

    raw = bytearray((stop - start) * tensor.dtype.itemsize)
    tensor.read(start, stop, memoryview(raw))
    return np.frombuffer(raw, tensor.dtype.numpy).astype(np.float64)
