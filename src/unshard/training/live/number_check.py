"""Numbers of a model in training that are not finite: looked for by every rank in what it gives."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from unshard.errors import listed
from unshard.findings import Finding, finding
from unshard.tensors.boxes import split_range
from unshard.training.live.model import LiveModel
from unshard.training.live.source import LiveSource
from unshard.training.ranks.protocol import Ranks

_BLOCK_ELEMENTS = 1 << 20


def check_numbers(live: LiveModel, ranks: Ranks) -> list[Finding]:
    """Return a finding if any number of the model is NaN or infinite, the same on every rank, which all call.

    Memory:
        A few MiB on the device where a tensor lies.
    """
    found = ranks.together(
        "looking for numbers that are not finite", lambda: count_unfinite(live, ranks.rank)
    )
    total: dict[str, tuple[int, int]] = {}
    for name in live.checkpoint:
        counts = [each[name] for each in found if name in each]
        if counts:
            total[name] = (sum(nan for nan, _ in counts), sum(infinite for _, infinite in counts))
    return [told_of_numbers(total)] if total else []


def told_of_numbers(counts: Mapping[str, tuple[int, int]]) -> Finding:
    """Return the finding that names the tensors with numbers that are not finite.

    Args:
        counts: How many are NaN, and how many infinite, by the names of the tensors.
    """
    nans, infinities = (sum(each) for each in zip(*counts.values(), strict=True))
    return finding(
        "U130",
        subject=listed(list(counts)),
        saw=f"{nans:,} NaN and {infinities:,} infinite in {len(counts):,} tensors",
        expected="finite numbers",
        remedy="Go back to a step before training diverged: unshard check STEP reads the numbers of any",
    )


def count_unfinite(live: LiveModel, rank: int) -> dict[str, tuple[int, int]]:
    """Return how many numbers that one rank gives are NaN and infinite, by tensor; only those with some.

    Buffers may hold infinities by design (masks); only NaN counts in them.
    """
    counts: dict[str, tuple[int, int]] = {}
    for name, tensor in live.checkpoint.tensors.items():
        if tensor.dtype.kind not in ("float", "complex"):
            continue
        nans = infinities = 0
        for piece in tensor.pieces:
            assert isinstance(piece.source, LiveSource)
            if piece.source.rank == rank:
                nan, infinite = _count(live.holdings.held[piece.source.slot])
                nans, infinities = nans + nan, infinities + infinite
        infinities = 0 if name in live.buffers else infinities
        if nans or infinities:
            counts[name] = (nans, infinities)
    return counts


def _count(elements: torch.Tensor) -> tuple[int, int]:
    """Return how many elements are NaN, and how many infinite, block by block."""
    elements, nans, infinities = elements.detach(), 0, 0
    for start in range(0, elements.numel(), _BLOCK_ELEMENTS):
        stop = min(start + _BLOCK_ELEMENTS, elements.numel())
        for box in split_range(elements.shape, start, stop):
            block = elements[tuple(map(slice, box.start, box.stop))]
            block = block.float() if block.element_size() == 1 else block  # FP8 knows no isnan everywhere
            if not bool(torch.isfinite(block).all()):
                nan = int(torch.isnan(block).sum())
                nans, infinities = nans + nan, infinities + int((~torch.isfinite(block)).sum()) - nan
    return nans, infinities
