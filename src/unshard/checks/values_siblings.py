"""Tensors against those that do the same work in other layers: copies, and scales that do not fit."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping

from unshard.checks.evidence import Check, Evidence
from unshard.checks.module_kinds import by_kind
from unshard.checks.values_numbers import (
    AGAIN,
    constant_norms,
    impossible_numbers,
    is_weight,
    median_exponent,
    together,
)
from unshard.findings import Finding, finding
from unshard.measures import Measurement
from unshard.recipes.ties import shared_pairs
from unshard.tensors import Tensor

# Computed alike wherever they are needed: positions, frequencies, masks, filters, the decay of a Mamba.
_COMPUTED = re.compile(
    r"pos|rotary|freq|mask|A_log|dt_|rel|window|filter|sin|cos|mel|(?:attn|attention)\.bias$"
)
# 1024 numbers of two trained tensors are not equal bit for bit by accident.
_FEWEST = 1024
# The scale of one kind of matrix differs between layers by what depth and training make of it, a few
# times; never by more than 2**6. No matrix that training has touched is outside of 2**-26 to 2**12. Scales
# are powers of two below which half of the numbers lie, so that a few wild numbers do not move them.
_FAR, _LEAST_SIBLINGS = 6, 4
_SMALLEST, _LARGEST = -26, 12
_AS_IN_BASE = 0.5


def find_copies(evidence: Evidence) -> Iterator[Finding]:
    """Yield groups of large tensors that are equal bit for bit though nothing ties them."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in evidence.tensors.items():
        measured = evidence.measured.get(name)
        if measured is not None and is_weight(tensor) and _can_be_copied(name, measured):
            key = (measured.statistics.digest, tensor.shape, tensor.dtype)
            groups.setdefault(key, []).append(name)
    tied = {frozenset(pair) for pair in shared_pairs(evidence.tensors)}
    copies = [names for group in groups.values() if len(names := _untied(group, tied)) > 1]
    if copies:
        count = sum(map(len, copies))
        yield finding(
            "U806",
            subject=f"{count:,} tensors",
            saw="; ".join(" = ".join([*names[:3], *(["..."] if names[3:] else [])]) for names in copies[:4])
            + (f"; and {len(copies) - 4:,} more groups" if copies[4:] else ""),
            expected="different numbers in every tensor, unless layers or experts were copied on purpose",
            remedy="One tensor was written under several names. " + AGAIN,
        )


def _can_be_copied(name: str, measured: Measurement) -> bool:
    """Return whether a tensor is not a table that is equal in many places by design."""
    numbers = measured.statistics
    is_table = numbers.is_constant or len(numbers.magnitudes) < 2  # such as a mask of zeros and ones
    is_as_in_base = measured.delta is not None and measured.delta.changed == 0
    return numbers.count >= _FEWEST and not (is_table or is_as_in_base or _COMPUTED.search(name))


def _untied(names: list[str], tied: set[frozenset[str]]) -> list[str]:
    """Return names of which no two are a pair that a model shares."""
    kept: list[str] = []
    for name in names:
        if not any(frozenset((name, other)) in tied for other in kept):
            kept.append(name)
    return kept


def far_scales(evidence: Evidence) -> dict[str, str]:
    """Return matrices with a scale that does not fit their kind, and what it is."""
    scales = {
        name: median_exponent(evidence.measured[name].statistics.magnitudes)
        for name, tensor in evidence.tensors.items()
        if name in evidence.measured and is_weight(tensor) and _has_scale(tensor, evidence.measured[name])
        if "lora_" not in name
    }
    found = {**_impossible(scales), **_unlike_siblings(scales)}
    return {
        name: f"half of the numbers are below {2.0 ** (scales[name] + 1):.3g}, {why}"
        for name, why in found.items()
    }


def find_scales(evidence: Evidence) -> Iterator[Finding]:
    """Yield matrices whose numbers are larger or smaller than those of their kind by orders of magnitude."""
    yield from together(
        "U807",
        far_scales(evidence),
        "A scale was applied twice or left out (quantised weights, a merge), or the numbers were read in"
        " another dtype than they were written in. " + AGAIN,
    )


def _has_scale(tensor: Tensor, measured: Measurement) -> bool:
    """Return whether a tensor has a scale to speak of, and the base does not say that it is right."""
    numbers, delta = measured.statistics, measured.delta
    if numbers.count < _FEWEST or not numbers.magnitudes or tensor.dtype.itemsize == 1:
        return False
    is_as_in_base = delta is not None and delta.relative < _AS_IN_BASE
    return not is_as_in_base and not impossible_numbers(numbers, tensor)


def _impossible(scales: Mapping[str, int]) -> dict[str, str]:
    """Return tensors with a scale that training does not make, and why."""
    usual = f"outside of what training makes, {2.0**_SMALLEST:.3g} to {2.0**_LARGEST:g}"
    return {name: usual for name, scale in scales.items() if not _SMALLEST <= scale <= _LARGEST}


def _unlike_siblings(scales: Mapping[str, int]) -> dict[str, str]:
    """Return tensors with another scale than their siblings, and what that is."""
    found: dict[str, str] = {}
    for names in by_kind(scales).values():
        if len(names) < _LEAST_SIBLINGS:
            continue
        median = statistics.median(scales[name] for name in names)
        far = [name for name in names if abs(scales[name] - median) > _FAR]
        if 4 * len(far) <= len(names):
            found |= dict.fromkeys(far, f"those of its kind in other layers below {2.0 ** (median + 1):.3g}")
    return found


def find_untrained(evidence: Evidence) -> Iterator[Finding]:
    """Yield that a model is as it was when it was made: no norm has moved."""
    norms = constant_norms(evidence)
    if norms:
        yield finding(
            "U808",
            subject="the model",
            saw=f"all {len(norms)} norm weights are the same number everywhere, {norms[0].maximum:g}",
            expected="numbers that training has moved",
            remedy="If it should be trained, this is a checkpoint of step 0, or the weights were not loaded.",
        )


CHECKS = (
    Check("values.copies", ("U806",), find_copies),
    Check("values.scales", ("U807",), find_scales),
    Check("values.untrained", ("U808",), find_untrained),
)
