"""Tensors that are farther from the base than training takes them, and which part of them it is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from unshard.checks.evidence import Evidence
from unshard.checks.values_numbers import is_weight, together
from unshard.checks.values_orders import ALIKE, part_samples
from unshard.checks.values_places import PlacesOfBase
from unshard.errors import InputError
from unshard.findings import Finding, finding
from unshard.measures import Delta
from unshard.recipes.ties import has_row_per_token
from unshard.sizes import counted
from unshard.tensors import Tensor, element_count
from unshard.tensors.sampling import cosine_of, read_numbers

if TYPE_CHECKING:
    import numpy as np

# Fine-tuning moves a tensor by a few percent of its norm, and all tensors alike; half a tensor that is
# overwritten moves it by all of its norm, a quarter by 0.7, an eighth by 0.5.
_FAR, _TIMES_MEDIAN = 0.3, 10.0
# A step of Adam is as large for small weights as for large ones: small ones change by more of themselves.
_TIMES_STEP = 3.0
_FEWEST, _FEWEST_TOGETHER = 8, 64
# Biases and new modules begin at zero, so that every change of them is large.
_BEGAN_AT_ZERO = 1e-3
# A change as large as the weights themselves is no fine-tuning; weights as they were made grow in training.
_MOST_OF_MODEL, _MOST_OF_UNTRAINED = 2.0, 10.0
# What training adds is at a right angle to what was there, so that weights grow: a change of 0.7 makes them
# 1.22 times as long. What was overwritten by its like keeps its length.
_OVERWRITTEN, _KEPT_LENGTH = 0.7, 1.15
_FAR_SMALL = 0.6
_PARTS = (8, 4, 2)
# Samples of 128 numbers with nothing in common have a cosine of 0.09, give or take.
_LEAST_SAMPLE = 128
_UNRELATED, _SAME = 0.4, 0.8
_MOST_LOOKED_AT, _MOST_OTHERS = 256, 64
_LONGEST_NORM, _MOST_NORMS = 1 << 16, 16
_REMEDY = (
    "Ranks or files were put together wrongly, bytes were read in another dtype than they were written in,"
    " or this is not the base that training started from. Convert the training checkpoint again"
    " (unshard convert RUN OUT --base BASE)."
)


def find_far(evidence: Evidence, places: PlacesOfBase, deltas: Mapping[str, Delta]) -> Iterator[Finding]:
    """Yield that tensors, or the whole model, are far from the base.

    Args:
        evidence: What is known.
        places: The base's floating tensors.
        deltas: The changes that nothing more exact explains.
    """
    changed = {name: delta for name, delta in deltas.items() if delta.changed and not began_at_zero(delta)}
    if not changed:
        return
    found = dict(_parts(evidence, places, changed))
    rest = {name: delta for name, delta in changed.items() if name not in found}
    median = statistics.median(delta.relative for delta in changed.values())
    found |= {name: _told(rest[name], median) for name in _outliers(rest)}
    yield from together("U825", found, _REMEDY)
    length = statistics.median(delta.norm / delta.other_norm for delta in changed.values())
    is_overwritten = median >= _OVERWRITTEN and length < _KEPT_LENGTH
    if not found and (is_overwritten or median >= _most(evidence)):
        yield finding(
            "U825",
            subject="the model",
            saw=f"{counted(len(changed), 'tensor')} differ by {median:.0%} of the base's norm and are"
            f" {length:.3g} times as long (medians)",
            expected="a few percent, as fine-tuned weights have",
            remedy=_REMEDY,
        )


def began_at_zero(delta: Delta) -> bool:
    """Return whether the base's numbers are so small that training makes others of them."""
    return delta.other_norm <= _BEGAN_AT_ZERO * math.sqrt(delta.count)


def _outliers(deltas: Mapping[str, Delta]) -> list[str]:
    """Return tensors that changed by far more than the others have."""
    if not deltas:
        return []
    median = statistics.median(delta.relative for delta in deltas.values())
    step = statistics.median(_step(delta) for delta in deltas.values())
    found = [
        name
        for name, delta in deltas.items()
        if delta.count >= _FEWEST
        and delta.relative >= max(_FAR, _TIMES_MEDIAN * median)
        and _step(delta) >= _TIMES_STEP * step
    ]
    small = [name for name in found if deltas[name].count < _FEWEST_TOGETHER]
    if sum(deltas[name].count for name in small) >= _FEWEST_TOGETHER:
        return found
    return [name for name in found if name not in small or deltas[name].relative >= _FAR_SMALL]


def _step(delta: Delta) -> float:
    return delta.distance / math.sqrt(delta.count)


def _told(delta: Delta, median: float) -> str:
    return (
        f"differs by {delta.relative:.0%} of the base's norm, where half of the tensors do by less than"
        f" {median:.2%}; cosine {delta.cosine:.3f}, {delta.norm / delta.other_norm:.3g} times as long"
    )


def _most(evidence: Evidence) -> float:
    """Return how much of its norm training may change the whole model."""
    return _MOST_OF_MODEL if _is_trained(evidence) else _MOST_OF_UNTRAINED


def _is_trained(evidence: Evidence) -> bool:
    """Return whether training has moved the base's norms, which are one number everywhere before."""
    norms = [
        tensor
        for name, tensor in evidence.base_tensors.items()
        if "norm" in name.lower() and name.endswith("weight") and len(tensor.shape) == 1
        if tensor.dtype.kind == "float" and 1 < element_count(tensor) <= _LONGEST_NORM
    ]
    try:
        numbers = [read_numbers(tensor, 0, element_count(tensor)) for tensor in norms[:_MOST_NORMS]]
    except InputError:
        return True  # a file that cannot be read is told of where it is opened
    return not numbers or any(each.min() < each.max() for each in numbers)


def _parts(
    evidence: Evidence, places: PlacesOfBase, deltas: Mapping[str, Delta]
) -> Iterator[tuple[str, str]]:
    """Yield tensors of which a part is the base's and another is not, and which, in words."""
    base = places.base
    far = [
        name
        for name, delta in deltas.items()
        if delta.relative >= _FAR and is_weight(evidence.tensors[name])
        if name in base and base[name].shape == evidence.tensors[name].shape
    ]
    for name in far[:_MOST_LOOKED_AT] if evidence.is_deep else ():
        ours = evidence.tensors[name]
        others = {each: base[each] for each in places.candidates(name, ours.shape)[:_MOST_OTHERS]}
        try:
            words = _part_of(name, ours, base[name], others)
        except InputError:
            continue  # a file that cannot be read is told of where it is opened
        if words:
            yield name, words


def _part_of(name: str, ours: Tensor, base: Tensor, others: Mapping[str, Tensor]) -> str:
    """Return which part of a tensor is unrelated to the base's and what it is; nothing where all is alike."""
    for dimension in (0, 1):
        samples = _samples(ours, base, dimension)
        if samples is None:
            continue
        mine, theirs = samples
        cosines = [cosine_of(*pair) for pair in zip(mine, theirs, strict=True)]
        is_known = [bool(each.any()) for each in theirs]
        strange = [i for i, cosine in enumerate(cosines) if cosine < _UNRELATED and is_known[i]]
        if not strange or not any(cosine >= _SAME for cosine in cosines):
            continue
        origin = _origin(mine, theirs, strange, ours.shape[dimension], dimension)
        if not origin and dimension == 0 and has_row_per_token(name):
            return ""  # tokens that were added have new rows
        origin = origin or _origin_elsewhere(mine, strange, dimension, others)
        told = _told_range(strange, len(mine), ours.shape[dimension], dimension)
        return f"{told} are unrelated to the base's, and the others are the base's{origin}"
    return ""


def _samples(ours: Tensor, base: Tensor, dimension: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return samples of the parts of both, as (parts, n) each, in as many parts as samples allow."""
    for parts in _PARTS:
        if ours.shape[dimension] % parts == 0:
            mine = part_samples(ours, dimension, parts)
            if mine.shape[1] >= _LEAST_SAMPLE:
                return mine, part_samples(base, dimension, parts)
    return None


def _origin(mine: np.ndarray, theirs: np.ndarray, strange: list[int], size: int, dimension: int) -> str:
    """Return which parts of the base's tensor of the same name the strange ones are, in words."""
    best = [max(range(len(theirs)), key=lambda j, i=i: cosine_of(mine[i], theirs[j])) for i in strange]  # type: ignore[misc]
    if all(cosine_of(mine[i], theirs[j]) > ALIKE for i, j in zip(strange, best, strict=True)):
        return f"; they are {_told_range(best, len(mine), size, dimension)} again"
    return ""


def _origin_elsewhere(
    mine: np.ndarray, strange: list[int], dimension: int, others: Mapping[str, Tensor]
) -> str:
    """Return whose parts, at the same place of another tensor, the strange ones are, in words."""
    for name, other in others.items():
        theirs = part_samples(other, dimension, len(mine))
        if all(cosine_of(mine[i], theirs[i]) > ALIKE for i in strange):
            return f"; they are those of {name}"
    return ""


def _told_range(parts: Iterable[int], among: int, size: int, dimension: int) -> str:
    """Return parts as ranges: rows 0 to 15 and 32 to 63 of 64."""
    length, ranges = size // among, list[list[int]]()
    for part in sorted(set(parts)):
        if ranges and ranges[-1][1] == part:
            ranges[-1][1] = part + 1
        else:
            ranges.append([part, part + 1])
    told = " and ".join(f"{first * length:,} to {stop * length - 1:,}" for first, stop in ranges)
    return f"{('rows', 'columns')[dimension]} {told} of {size:,}"
