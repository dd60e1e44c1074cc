"""Tensors against those that do the same work in other layers: copies, and scales that do not fit."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator, Mapping

from unshard.checks.evidence import Check, Evidence
from unshard.checks.module_kinds import by_kind
from unshard.checks.values_numbers import AGAIN, constant_norms, is_weight
from unshard.errors import listed
from unshard.findings import Finding, finding
from unshard.measures import Measurement
from unshard.recipes.ties import shared_pairs

# Computed alike wherever they are needed: positions, frequencies, masks, filters, the decay of a Mamba.
_COMPUTED = re.compile(
    r"pos|rotary|freq|mask|A_log|dt_|rel|window|filter|sin|cos|mel|(?:attn|attention)\.bias$"
)
# 1024 numbers of two trained tensors are not equal bit for bit by accident.
_FEWEST = 1024
# Deviations of one kind of matrix differ between layers by what depth and training make of them, a few
# times; never 64 times. No matrix that training has touched has a deviation outside of 2**-26 to 2**12.
_FAR, _LEAST_SIBLINGS = 6.0, 4
_SMALLEST, _LARGEST = 2.0**-26, 2.0**12


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


def find_scales(evidence: Evidence) -> Iterator[Finding]:
    """Yield matrices whose numbers are larger or smaller than those of their kind by orders of magnitude."""
    weights = [
        name
        for name, tensor in evidence.tensors.items()
        if name in evidence.measured
        and is_weight(tensor)
        and "lora_" not in name
        and tensor.dtype.itemsize > 1
    ]
    deviations = {
        name: evidence.measured[name].statistics.deviation
        for name in weights
        if evidence.measured[name].statistics.count >= _FEWEST and not _is_like_base(evidence, name)
    }
    found = {**_impossible(deviations), **_unlike_siblings(deviations)}
    if found:
        name = max(found, key=lambda each: abs(math.log2(deviations[each] / found[each])))
        yield finding(
            "U807",
            subject=name if len(found) == 1 else f"{len(found):,} tensors",
            saw=f"{name} has a standard deviation of {deviations[name]:.3g}"
            + (f"; also {listed([each for each in found if each != name])}" if len(found) > 1 else ""),
            expected=f"about {found[name]:.3g}, as its kind has in other layers",
            remedy="A scale was applied twice or left out (quantised weights, a merge), or the numbers were"
            " read in another dtype than they were written in. " + AGAIN,
        )


def _is_like_base(evidence: Evidence, name: str) -> bool:
    """Return whether the base says that a scale is right."""
    delta = evidence.measured[name].delta
    return delta is not None and delta.relative < 0.5


def _impossible(deviations: Mapping[str, float]) -> dict[str, float]:
    """Return tensors with a scale that training does not make, and one that is usual."""
    return {
        name: 0.02
        for name, deviation in deviations.items()
        if not (_SMALLEST <= deviation <= _LARGEST) and deviation
    }


def _unlike_siblings(deviations: Mapping[str, float]) -> dict[str, float]:
    """Return tensors with another scale than their siblings, and the siblings' median."""
    found: dict[str, float] = {}
    for names in by_kind(name for name, deviation in deviations.items() if deviation > 0.0).values():
        if len(names) < _LEAST_SIBLINGS:
            continue
        median = statistics.median(deviations[name] for name in names)
        far = {name: median for name in names if abs(math.log2(deviations[name] / median)) > _FAR}
        if 4 * len(far) <= len(names):
            found |= far
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
