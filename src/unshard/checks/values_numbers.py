"""Tensors whose numbers are wrong by themselves: not finite, all zero, all the same, or far too large."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

from unshard.checks.evidence import Check, Evidence
from unshard.checks.module_kinds import by_kind, place_of
from unshard.errors import listed
from unshard.findings import Finding, finding
from unshard.measures import Measurement, Statistics
from unshard.sizes import counted
from unshard.tensors import CastTensor, Tensor

AGAIN = "Take an earlier step of the run (--step), or save the model again."

# What is zero, or the same everywhere, until training moves it, and is larger than a vector: positions,
# learned tokens, masks, scales of quantised weights, the second matrix of an adapter.
_MAY_BE_CONSTANT = re.compile(
    r"(?:^|[._])(?:pos|position|positional|rel|relative|lora|adapter|mask|masked|token_type|cls_token|class|"
    r"query_tokens|latents|scale|scales|zeros|zero|qzeros|gamma|gate|absmax|g_idx|A_log|bias)(?=[._]|$|s[._])",
)
# Below this, a matrix is too small to say what is likely.
_FEWEST = 64
_FEWEST_NORMS = 3
# Of vectors that the base has: their deviation is a thousandth of their size, which no rounding makes.
_FEWEST_IN_VECTOR, _LEAST_SPREAD = 8, 1e-6
# No weight is as large as 2**24 while most numbers of its tensor are below 2**5.
_TOO_LARGE, _USUAL = 24, 5
# Of n numbers of one distribution, magnitudes thin out towards the top bin by bin. Where 8 powers of two in
# a row are empty, what lies above them comes from somewhere else, such as a flipped bit of an exponent.
_GAP, _FEWEST_FOR_GAP, _MOST_ABOVE_GAP = 8, 1024, 16
# A normal distribution whose deviation is s has 0.8 * 2**-126 / s subnormals among its float32 or bfloat16
# numbers: none, ever. Memory that nobody initialised holds small integers and pointers, which are.
_MOST_SUBNORMALS = 0.01
_WIDE = ("float32", "float64", "bfloat16")


def is_weight(tensor: Tensor) -> bool:
    """Return whether a tensor is a matrix of floating numbers, or has more dimensions."""
    return tensor.dtype.kind == "float" and sum(size > 1 for size in tensor.shape) >= 2


def constant_norms(evidence: Evidence) -> list[Statistics]:
    """Return the weights of all norms, where each of them is one number everywhere; nothing otherwise.

    They are ones, or zeros, when a model is made, and the first step of training moves them.
    """
    norms = [
        measured.statistics
        for name, measured in evidence.measured.items()
        if name.endswith("weight") and "norm" in name.lower() and measured.statistics.count > 1
        if name in evidence.tensors and len(evidence.tensors[name].shape) == 1
    ]
    return norms if len(norms) >= _FEWEST_NORMS and all(each.is_constant for each in norms) else []


def find_not_finite(evidence: Evidence) -> Iterator[Finding]:
    """Yield that numbers are not finite, and where."""
    broken = {name: m.statistics for name, m in evidence.measured.items() if _is_not_finite(m.statistics)}
    yield from together(
        "U801",
        {name: _told_not_finite(numbers) for name, numbers in broken.items()},
        f"Training diverged, or memory was damaged: nothing can be computed with these. {AGAIN}",
    )


def _told_not_finite(numbers: Statistics) -> str:
    kinds = ((numbers.nans, "NaN"), (numbers.infinities, "infinite"))
    return f"{' and '.join(f'{n:,} {kind}' for n, kind in kinds if n)} of {counted(numbers.count, 'number')}"


def _is_not_finite(numbers: Statistics) -> bool:
    """Return whether numbers are NaN or infinite, and the tensor is not a mask of infinities and zeros."""
    is_mask = numbers.nans == 0 < numbers.zeros and numbers.zeros + numbers.infinities == numbers.count
    return numbers.nans + numbers.infinities > 0 and not is_mask


def find_all_zero(evidence: Evidence) -> Iterator[Finding]:
    """Yield weights that are zero where no trained model, or not this base, has zeros."""
    zero = [name for name, m in evidence.measured.items() if 0 < m.statistics.count == m.statistics.zeros]
    layers = by_kind(evidence.measured)
    found = [name for name in zero if _must_not_be_zero(evidence, name, layers)]
    yield from together(
        "U802",
        {name: f"all of {counted(evidence.measured[name].statistics.count, 'number')}" for name in found},
        "A tensor was not gathered, or its bytes were never written. " + AGAIN,
    )


def _must_not_be_zero(evidence: Evidence, name: str, layers: Mapping[str, list[str]]) -> bool:
    """Return whether a tensor that is all zero must not be."""
    measurement = evidence.measured[name]
    if measurement.delta is not None:
        return measurement.delta.other_norm > 0.0
    tensor = evidence.tensors.get(name)
    if tensor is None or tensor.dtype.kind != "float":
        return False
    siblings = layers[place_of(name).kind]
    zeros = sum(_is_zero(evidence.measured[each]) for each in siblings)
    if is_weight(tensor):
        is_large = measurement.statistics.count >= _FEWEST and not _MAY_BE_CONSTANT.search(name)
        return is_large and (zeros < len(siblings) or not constant_norms(evidence))
    # Gemma's norms begin at zero, in every layer: one that stands alone was something else before.
    return "norm" in name and name.endswith("weight") and 2 * zeros < len(siblings)


def _is_zero(measurement: Measurement) -> bool:
    return measurement.statistics.zeros == measurement.statistics.count


def find_constant(evidence: Evidence) -> Iterator[Finding]:
    """Yield weights that are one number, not zero, everywhere."""
    found = [
        name
        for name, tensor in evidence.tensors.items()
        if (measured := evidence.measured.get(name)) is not None
        and measured.statistics.is_constant
        and measured.statistics.zeros == 0
        and (_is_constant_unlike_base(measured) or _is_constant_weight(name, tensor, measured))
    ]
    yield from together(
        "U804",
        {name: f"{evidence.measured[name].statistics.maximum:g} everywhere" for name in found},
        "A buffer was written before it was filled. " + AGAIN,
    )


def _is_constant_weight(name: str, tensor: Tensor, measured: Measurement) -> bool:
    is_large = is_weight(tensor) and measured.statistics.count >= _FEWEST
    is_new = measured.delta is None or measured.delta.changed > 0
    return is_large and is_new and not _MAY_BE_CONSTANT.search(name)


def _is_constant_unlike_base(measured: Measurement) -> bool:
    """Return whether the base's numbers, of which the mean follows from the product, are not all the same."""
    delta, value = measured.delta, measured.statistics.maximum
    if delta is None or delta.count < _FEWEST_IN_VECTOR or not delta.changed or not delta.other_norm:
        return False
    root_mean_square = delta.other_norm / math.sqrt(delta.count)
    mean = delta.dot / (value * delta.count)
    return 1 - (mean / root_mean_square) ** 2 > _LEAST_SPREAD


def find_impossible(evidence: Evidence) -> Iterator[Finding]:
    """Yield weights with numbers that training does not make: flipped bits, memory nobody initialised."""
    found: dict[str, str] = {}
    for name, tensor in evidence.tensors.items():
        measured = evidence.measured.get(name)
        if measured is None or not is_weight(tensor):
            continue
        if measured.delta is not None and measured.delta.changed == 0:
            continue  # the base is so
        problem = impossible_numbers(measured.statistics, tensor)
        if problem:
            found[name] = problem
    yield from together(
        "U805",
        found,
        "A bit was flipped on a disk or on the way, or memory was saved that held something else. " + AGAIN,
    )


def impossible_numbers(numbers: Statistics, tensor: Tensor) -> str:
    """Return what no trained weight looks like, in words; nothing where all is well."""
    bins, count = numbers.magnitudes, sum(number for _, number in numbers.magnitudes)
    if not bins:
        return ""
    peak = max(abs(numbers.minimum), abs(numbers.maximum))
    huge = sum(number for exponent, number in bins if exponent >= _TOO_LARGE)
    if huge and median_exponent(bins) < _USUAL:
        return f"{huge:,} of {numbers.count:,} numbers beyond {2**_TOO_LARGE:,}, up to {peak:.3g}"
    if _stored(tensor).dtype.name in _WIDE and numbers.subnormals > _MOST_SUBNORMALS * numbers.count:
        return f"{numbers.subnormals:,} of {numbers.count:,} numbers too small to be normal"
    above = _above_gap(bins)
    if numbers.count >= _FEWEST_FOR_GAP and 0 < above <= min(_MOST_ABOVE_GAP, count // 64):
        larger = f"{2**_GAP} times larger than all others"
        return f"{above:,} of {numbers.count:,} numbers {larger}, up to {peak:.3g}"
    return ""


def _stored(tensor: Tensor) -> Tensor:
    """Return the tensor whose bytes were measured: the one below a cast."""
    return tensor.source if isinstance(tensor, CastTensor) else tensor


def median_exponent(bins: tuple[tuple[int, int], ...]) -> int:
    """Return the power of two below which half of the magnitudes lie; there must be one."""
    done, count = 0, sum(number for _, number in bins)
    for exponent, number in bins:
        done += number
        if 2 * done >= count:
            return exponent
    return bins[-1][0]


def _above_gap(bins: tuple[tuple[int, int], ...]) -> int:
    """Return how many numbers lie above the highest gap in magnitudes; 0 where there is none."""
    above = 0
    for (lower, _), (upper, number) in zip(bins[-2::-1], bins[:0:-1], strict=False):
        above += number
        if upper - lower > _GAP:
            return above
    return 0


def together(code: str, found: Mapping[str, str], remedy: str) -> Iterator[Finding]:
    """Yield one finding about all tensors that have the same thing wrong.

    Args:
        code: Its code.
        found: What is wrong with each of them, by name.
        remedy: What to do.
    """
    if not found:
        return
    (first, told), names = next(iter(found.items())), list(found)
    subject, saw = first, told
    if names[1:]:
        subject, saw = f"{len(names):,} tensors", f"{first}: {told}; also {listed(names[1:])}"
    yield finding(code, subject=subject, saw=saw, remedy=remedy)


CHECKS = (
    Check("values.not_finite", ("U801",), find_not_finite),
    Check("values.all_zero", ("U802",), find_all_zero),
    Check("values.constant", ("U804",), find_constant),
    Check("values.impossible", ("U805",), find_impossible),
)
