"""What a cast loses: numbers too large or too small, and what training changed by less than a step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from unshard.checks.evidence import Check, Evidence
from unshard.dtypes import DType
from unshard.errors import listed
from unshard.findings import Finding, finding
from unshard.measures import Statistics
from unshard.recipes.ties import has_row_per_token
from unshard.sizes import counted
from unshard.tensors import CastTensor

# Of the elements that training changed; a dtype that loses less loses what nobody misses.
_MOST, _WORTH_TELLING = 0.5, 0.001
# Normal weights of deviation 0.02 have one number in a million below the least of float16.
_MANY_VANISH = 0.01


@dataclass(frozen=True, slots=True)
class Limits:
    """What a dtype can hold.

    Attributes:
        overflow: The least magnitude that becomes infinite, or has no number at all.
        vanish: The largest magnitude that becomes zero.
    """

    overflow: float
    vanish: float


@cache
def _limits(dtype: DType) -> Limits:
    """Return what `dtype` holds when numbers are rounded to the nearest, and to even between two."""
    import ml_dtypes

    info = ml_dtypes.finfo(dtype.numpy)  # type: ignore[no-untyped-call]
    largest, mantissa = float(info.max), int(info.nmant)
    _, exponent = math.frexp(largest)
    half_a_step = math.ldexp(0.5, exponent - 1 - mantissa)
    return Limits(largest + half_a_step, float(info.smallest_subnormal) / 2)


def find_lost_training(evidence: Evidence) -> Iterator[Finding]:
    """Yield which share of what training changed is gone after the cast."""
    casts = _casts(evidence)
    changed = survived = 0
    parts: dict[str, list[int]] = {}
    for name in casts:
        delta = evidence.measured[name].delta
        if delta is None:
            continue
        changed, survived = changed + delta.changed, survived + delta.survived
        part = parts.setdefault(_part(name), [0, 0])
        part[0], part[1] = part[0] + delta.changed, part[1] + delta.survived
    lost = (changed - survived) / changed if changed else 0.0
    if lost < _WORTH_TELLING:
        return
    dtypes = " and ".join(sorted({tensor.dtype.name for tensor in casts.values()}))
    by_part = ", ".join(f"{part} {1 - kept / all_:.1%}" for part, (all_, kept) in parts.items() if all_)
    code = "U405" if lost > _MOST else "U406"
    yield finding(
        code,
        subject=f"cast to {dtypes}",
        saw=f"{lost:.1%} of the {changed:,} elements that training changed equal the base again ({by_part})",
        expected="what training changed is larger than a step of the dtype",
        remedy="Keep it with --dtype keep, or serve the change as an adapter beside the base.",
    )


def _part(name: str) -> str:
    """Return the part of a model that a tensor belongs to, for a table of a few rows."""
    if has_row_per_token(name):
        return "embeddings"
    return "norms" if "norm" in name or ".ln_" in name else "biases" if name.endswith("bias") else "matrices"


def find_overflow(evidence: Evidence) -> Iterator[Finding]:
    """Yield tensors with numbers that the dtype of the result cannot hold."""
    counts = {
        name: _beyond(evidence.measured[name].statistics, _limits(tensor.dtype).overflow)
        for name, tensor in _casts(evidence).items()
    }
    found = {name: count for name, count in counts.items() if count}
    if found:
        name = max(found, key=found.__getitem__)
        numbers, dtype = evidence.measured[name].statistics, evidence.tensors[name].dtype
        peak = max(abs(numbers.minimum), abs(numbers.maximum))
        yield finding(
            "U407",
            subject=f"cast to {dtype}",
            saw=f"at least {counted(sum(found.values()), 'number')} of {listed(list(found))}"
            " would become infinite;"
            f" the largest of {name} is {peak:.6g}",
            expected=f"less than {_limits(dtype).overflow:g}",
            remedy="Cast to a dtype with a larger range: --dtype bfloat16, or --dtype keep.",
        )


def find_underflow(evidence: Evidence) -> Iterator[Finding]:
    """Yield how many numbers become zero, where they are more than a few."""
    casts = _casts(evidence)
    counts = {name: _below(evidence.measured[name].statistics, _limits(t.dtype)) for name, t in casts.items()}
    total = sum(evidence.measured[name].statistics.count for name in casts)
    vanished = sum(counts.values())
    if vanished > _MANY_VANISH * total:
        worst = sorted((name for name in counts if counts[name]), key=counts.__getitem__, reverse=True)
        yield finding(
            "U408",
            subject=f"cast to {' and '.join(sorted({tensor.dtype.name for tensor in casts.values()}))}",
            saw=f"{vanished:,} of {total:,} numbers become zero, most of them in {listed(worst)}",
            remedy="Cast to a dtype with a larger range: --dtype bfloat16, or --dtype keep.",
        )


def _casts(evidence: Evidence) -> Mapping[str, CastTensor]:
    """Return the tensors that are cast and were measured."""
    return {
        name: tensor
        for name, tensor in evidence.tensors.items()
        if isinstance(tensor, CastTensor) and name in evidence.measured
    }


def _beyond(numbers: Statistics, limit: float) -> int:
    """Return how many numbers reach a limit, at the least: whole powers of two, and the largest one."""
    exponent = math.frexp(limit)[1] - 1
    certain = sum(count for power, count in numbers.magnitudes if power > exponent)
    reached = max(abs(numbers.minimum), abs(numbers.maximum)) >= limit
    return max(certain, int(reached))


def _below(numbers: Statistics, limits: Limits) -> int:
    """Return how many numbers become zero; one that is exactly the limit is not counted."""
    exponent = math.frexp(limits.vanish)[1] - 1
    return sum(count for power, count in numbers.magnitudes if power < exponent)


CHECKS = (
    Check("values.lost_in_cast", ("U405", "U406"), find_lost_training),
    Check("values.overflow", ("U407",), find_overflow),
    Check("values.underflow", ("U408",), find_underflow),
)
