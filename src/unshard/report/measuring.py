"""Numbers for a report of a command that does not measure by itself: one more pass over all bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from unshard.base import Base
from unshard.base.weights import describe_base_weights
from unshard.engines.workers import default_workers
from unshard.errors import UnshardError
from unshard.measures import Measurement
from unshard.measures.passes import measure
from unshard.progress import Progress
from unshard.report.words import known_as
from unshard.tensors import DescribedTensor, Tensor


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured.

    Attributes:
        by_name: Of every tensor.
        against: The base they were compared with, or None where there is none with weights.
    """

    by_name: Mapping[str, Measurement] = field(default_factory=dict)
    against: str | None = None


def measured_for_report(
    tensors: Mapping[str, Tensor],
    base: Base | None,
    *,
    model: Path,
    workers: int | None,
    progress: Progress,
) -> Measured:
    """Return the numbers of tensors, and how far they are from those of a base that is not the model itself.

    Memory:
        A few MiB for every worker.
    """
    weights = _weights(base, model)
    try:
        found = measure(tensors, against=weights, workers=workers or default_workers(), progress=progress)
    except UnshardError:
        return Measured()  # the command itself has told what cannot be read
    return Measured(found, known_as(base.reference) if base is not None and weights else None)


def _weights(base: Base | None, model: Path) -> Mapping[str, DescribedTensor]:
    """Return the weights of a base; none where it cannot be read, as the report is of something else."""
    if base is None or base.path.resolve() == model.resolve():
        return {}
    try:
        return describe_base_weights(base)
    except UnshardError:
        return {}
