"""What training changed: nothing, only some layers, what it should have left alone, or by a factor."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from unshard.checks.evidence import Check, Evidence
from unshard.checks.module_kinds import by_kind, place_of
from unshard.checks.values_numbers import is_weight
from unshard.errors import InputError, listed
from unshard.findings import Finding, finding
from unshard.measures import Delta
from unshard.sizes import counted
from unshard.tensors import CastTensor, Tensor
from unshard.tensors.sampling import read_sample

if TYPE_CHECKING:
    import numpy as np

# A number that is rounded to p binary digits moves by at most 2**-p of itself: 8 digits in bfloat16.
_MOST_ROUNDING = 2.0**-8
_SAMPLE = (32, 128)
# Two vectors of n elements that have nothing in common have a cosine of about 1 / sqrt(n).
_FEWEST = 256
# Weight decay shrinks weights by a few percent; what is the base but for a factor of 1.5 was scaled.
_SAME_DIRECTION, _FACTOR = 0.98, 1.5
# A norm that an engine stores as 1 + w differs by one, in every element, from one that is stored as w.
_NEAR_ONE = 0.05
_FEWEST_IN_NORM = 8


def deltas_of(evidence: Evidence) -> dict[str, Delta]:
    """Return how far every tensor of floating numbers is from the base's."""
    return {
        name: measured.delta
        for name, measured in evidence.measured.items()
        if measured.delta is not None
        and measured.delta.count
        and name in evidence.tensors
        and evidence.tensors[name].dtype.kind == "float"
    }


def find_change(evidence: Evidence) -> Iterator[Finding]:
    """Yield that nothing differs from the base, or how much does and which parts do not."""
    deltas = deltas_of(evidence)
    if not deltas:
        return
    changed = {name: delta for name, delta in deltas.items() if delta.changed}
    rounded = {name for name, delta in changed.items() if _is_only_rounded(evidence, name, delta)}
    moved = {name: delta for name, delta in changed.items() if name not in rounded}
    if not moved:
        only = f", {len(rounded):,} of them rounded to the dtype of the checkpoint" if rounded else ""
        yield finding(
            "U811",
            subject="the model",
            saw=f"0 of {counted(len(deltas), 'tensor')} differ from the base:"
            f" {_what(evidence, deltas)}{only}",
            expected="at least one tensor that training changed",
            remedy="Take the checkpoint that training wrote, not the one it began with; an adapter has to be"
            " merged, or kept beside the base.",
        )
        return
    elements = sum(delta.changed for delta in moved.values())
    total = sum(delta.count for delta in deltas.values())
    relative = statistics.median(delta.relative for delta in moved.values())
    same = [name for name in deltas if name not in moved]
    yield finding(
        "U812",
        subject="change against the base",
        saw=f"{len(moved):,} of {counted(len(deltas), 'tensor')} and {elements / total:.1%} of the elements"
        f" differ; where they do, by {relative:.2%} of the base's norm (median)"
        + (f"; unchanged: {_groups(same, deltas)}" if same else ""),
    )


def _what(evidence: Evidence, deltas: Mapping[str, Delta]) -> str:
    """Return what it means that nothing differs of what could be compared."""
    left = len(evidence.base_tensors.keys() - deltas.keys())
    if not left:
        return "this is the base"
    return f"what could be compared is the base's, and {left:,} of its tensors could not"


def _is_only_rounded(evidence: Evidence, name: str, delta: Delta) -> bool:
    """Return whether a tensor is the base's in a narrower dtype; a sample decides where it may be."""
    tensor, base = _before_cast(evidence.tensors[name]), evidence.base_tensors.get(name)
    if base is None or base.dtype.itemsize <= tensor.dtype.itemsize or not evidence.is_deep:
        return False
    if delta.relative > _MOST_ROUNDING or base.shape != tensor.shape or base.dtype.kind != "float":
        return False
    try:
        return bool((read_sample(tensor, *_SAMPLE) == _rounded(base, tensor)).all())
    except InputError:
        return False


def _rounded(base: Tensor, like: Tensor) -> np.ndarray:
    return read_sample(CastTensor(base, like.dtype), *_SAMPLE)


def _before_cast(tensor: Tensor) -> Tensor:
    return tensor.source if isinstance(tensor, CastTensor) else tensor


def _groups(names: Iterable[str], among: Iterable[str]) -> str:
    """Return names by kind, with how many of their kind they are."""
    kinds = by_kind(among)
    parts = [
        kind if len(kinds[kind]) == 1 else f"{kind} ({len(group)} of {len(kinds[kind])})"
        for kind, group in by_kind(names).items()
    ]
    return listed(parts, at_most=6)


def find_frozen(evidence: Evidence) -> Iterator[Finding]:
    """Yield layers that changed although the training parameters say that they were frozen.

    Source:
        llama-cookbook src/llama_cookbook/finetuning.py: `freeze_layers` freezes the first
        `num_freeze_layers` layers, embeddings aside.
    """
    training = None if evidence.checkpoint is None else evidence.checkpoint.training
    if training is None or training.get("freeze_layers") != "True":
        return
    number = training.get("num_freeze_layers") or ""
    frozen = int(number) if number.isascii() and number.isdigit() and len(number) < 6 else 0
    moved = [
        name
        for name, delta in deltas_of(evidence).items()
        if (at := place_of(name)).numbers and "layers.*." in at.kind and at.numbers[0] < frozen
        if delta.changed and not _is_only_rounded(evidence, name, delta)
    ]
    if moved:
        yield finding(
            "U823",
            subject=f"layers 0 to {frozen - 1}",
            saw=f"{counted(len(moved), 'tensor')} of frozen layers differ from the base: {listed(moved)}",
            expected=f"the base's numbers: {training.path.name} says num_freeze_layers {frozen}",
            remedy="Give the base that training really started from with --base, or look into why"
            " freezing had no effect.",
        )


def factors_of(evidence: Evidence) -> dict[str, float]:
    """Return weights that are the base's times a factor, and the factor."""
    return {
        name: delta.norm / delta.other_norm
        for name, delta in deltas_of(evidence).items()
        if is_weight(evidence.tensors[name]) and delta.count >= _FEWEST and delta.cosine > _SAME_DIRECTION
        if delta.norm and abs(math.log(delta.norm / delta.other_norm)) > math.log(_FACTOR)
    }


def find_factors(evidence: Evidence) -> Iterator[Finding]:
    """Yield weights that are the base's times a factor."""
    factors = factors_of(evidence)
    if factors:
        low, high = min(factors.values()), max(factors.values())
        name = next(iter(factors))
        yield finding(
            "U821",
            subject=name if len(factors) == 1 else f"{len(factors):,} tensors",
            saw=f"the base's numbers times {low:.4g}"
            + (f" to {high:.4g}" if high > low * 1.001 else "")
            + f": {listed(list(factors))}; cosine {deltas_of(evidence)[name].cosine:.4f}",
            expected="norms within a few percent of the base's",
            remedy="A scale was left out or applied twice, as with quantised weights or a merge: convert the"
            " checkpoint again with its scales.",
        )


def shifted_norms(evidence: Evidence) -> list[str]:
    """Return norm weights that differ from the base's by one, those that are one number everywhere aside."""
    return [
        name
        for name, delta in _norms(evidence).items()
        if _is_shifted(delta) and not evidence.measured[name].statistics.is_constant
    ]


def find_shifted_norms(evidence: Evidence) -> Iterator[Finding]:
    """Yield norm weights that are larger or smaller by one than the base's."""
    shifted = shifted_norms(evidence)
    if shifted:
        name = shifted[0]
        ours = evidence.measured[name].statistics.mean
        yield finding(
            "U822",
            subject=name if len(shifted) == 1 else f"{len(shifted):,} tensors",
            saw=f"every element differs by about one from the base's: {listed(shifted)};"
            f" the mean of {name} is {ours:.3f}",
            expected="small changes",
            remedy="Some formats store the weight of a norm plus one (Gemma in GGUF): take one away, or"
            " convert the checkpoint again by a program that knows.",
        )


def _norms(evidence: Evidence) -> Mapping[str, Delta]:
    return {
        name: delta
        for name, delta in deltas_of(evidence).items()
        if "norm" in name.lower()
        and len(evidence.tensors[name].shape) == 1
        and delta.count >= _FEWEST_IN_NORM
    }


def _is_shifted(delta: Delta) -> bool:
    """Return whether all differences are about one: then their largest and their root mean square are."""
    typical = delta.distance / math.sqrt(delta.count)
    return abs(typical - 1.0) < _NEAR_ONE and abs(delta.largest - 1.0) < 2 * _NEAR_ONE


CHECKS = (
    Check("values.change", ("U811", "U812"), find_change),
    Check("values.frozen", ("U823",), find_frozen),
    Check("values.factors", ("U821",), find_factors),
    Check("values.norms_plus_one", ("U822",), find_shifted_norms),
)
