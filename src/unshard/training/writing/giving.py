"""What one rank gives of a tensor of the result: elements in the dtype of the result, looked at as they pass.

Memory:
    1 MiB for every thread, where elements are cast.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from unshard.dtypes import DType
from unshard.findings import Finding, finding
from unshard.tensors import Place, Run, Source, cast_block
from unshard.training.live.number_check import told_of_numbers

_BLOCK_BYTES = 512 << 10
_buffers = threading.local()


@dataclass(frozen=True, slots=True)
class Losses:
    """What one rank saw of one tensor while it gave its part.

    Attributes:
        nans: Elements that are no numbers.
        infinities: Elements that are infinite, before any cast.
        overflowed: Finite elements that a cast made infinite.
        underflowed: Elements that a cast made zero.
    """

    nans: int = 0
    infinities: int = 0
    overflowed: int = 0
    underflowed: int = 0


class Seen:
    """What this rank sees of the elements that it gives."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}

    def add(self, name: str, **counts: int) -> None:
        """Add what was seen in elements of a tensor."""
        if any(counts.values()):
            self._counts.setdefault(name, Counter()).update(counts)

    def losses(self) -> dict[str, Losses]:
        """Return what was seen, by tensor; only where there is something."""
        return {name: Losses(**counts) for name, counts in self._counts.items()}


@dataclass(frozen=True, slots=True)
class GivenSource:
    """Elements of one piece, which one rank gives, in the dtype of the result.

    Attributes:
        rank: The rank.
        source: What gives them in their own dtype; read on that rank alone.
        before: That dtype.
        dtype: The dtype of the result.
        name: The tensor.
        seen: Where what is seen is counted.
    """

    rank: int
    source: Source
    before: DType
    dtype: DType
    name: str
    seen: Seen

    @property
    def count(self) -> int:
        """How many elements there are."""
        return self.source.count

    @property
    def place(self) -> Place | None:
        """None: they lie in no file."""
        return None

    @property
    def origin(self) -> str:
        """Where they are, in words."""
        return self.source.origin

    def runs(self, start: int, stop: int) -> list[Run] | None:
        """Return None: they must be read."""
        return None

    def read(self, start: int, stop: int, into: memoryview) -> None:
        """Fill `into` with elements `start` to `stop`, cast where that is wanted."""
        if self.before == self.dtype:
            self.source.read(start, stop, into)
            self._look(into)
            return
        import numpy as np

        step, size = _BLOCK_BYTES // self.before.itemsize, self.dtype.itemsize
        for first in range(start, stop, step):
            last = min(first + step, stop)
            raw = _buffer()[: (last - first) * self.before.itemsize]
            self.source.read(first, last, raw)
            self._look(raw)
            values = np.frombuffer(raw, self.before.numpy)
            out = np.frombuffer(into[(first - start) * size : (last - start) * size], self.dtype.numpy)
            overflowed, underflowed = cast_block(values, out)
            self.seen.add(self.name, overflowed=overflowed, underflowed=underflowed)

    def _look(self, raw: memoryview) -> None:
        """Count what is not finite; a sum tells at once that nothing is."""
        if self.before.kind != "float" or self.before.itemsize < 2 or not raw:
            return
        values = torch.frombuffer(raw, dtype=getattr(torch, self.before.name))
        if not bool(torch.isfinite(values.sum(dtype=torch.float32))):
            nans = int(torch.isnan(values).sum())
            self.seen.add(self.name, nans=nans, infinities=int(torch.isinf(values).sum()))


def _buffer() -> memoryview:
    """Return this thread's buffer."""
    if not hasattr(_buffers, "view"):
        _buffers.view = memoryview(bytearray(_BLOCK_BYTES))
    view: memoryview = _buffers.view
    return view


def check_seen(by_rank: Iterable[Mapping[str, Losses]], buffers: frozenset[str]) -> Iterator[Finding]:
    """Yield what a person should know of the numbers that all ranks gave.

    Args:
        by_rank: What every rank saw.
        buffers: Tensors that may hold infinities by design.
    """
    total: dict[str, Counter[str]] = {}
    for losses in by_rank:
        for name, seen in losses.items():
            counts = total.setdefault(name, Counter())
            counts.update(
                nans=seen.nans,
                infinities=0 if name in buffers else seen.infinities,
                overflowed=seen.overflowed,
                underflowed=seen.underflowed,
            )
    unfinite = {n: (c["nans"], c["infinities"]) for n, c in total.items() if c["nans"] or c["infinities"]}
    if unfinite:
        yield told_of_numbers(unfinite)
    for code, kind, what in (("U402", "overflowed", "infinite"), ("U403", "underflowed", "zero")):
        hit = {name: counts[kind] for name, counts in total.items() if counts[kind]}
        if hit:
            many = f"{sum(hit.values()):,} values in {len(hit)} tensors"
            yield finding(
                code,
                subject=max(hit, key=lambda name: hit[name]),
                saw=f"{many} became {what}, most of them in this one",
                remedy='Keep more range with dtype="keep" or dtype="bfloat16".',
            )
