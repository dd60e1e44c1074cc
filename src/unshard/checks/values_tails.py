"""Tensors that end in zeros: a file was cut, and filled up to its length."""

from __future__ import annotations

from collections.abc import Iterator

from unshard.checks.evidence import Check, Evidence
from unshard.checks.values_numbers import is_weight
from unshard.errors import InputError, listed
from unshard.findings import Finding, finding
from unshard.recipes.ties import has_row_per_token
from unshard.tensors import Tensor, element_count
from unshard.tensors.sampling import read_numbers

# So many zeros in a row are no accident, and less than any block of a disk leaves.
_FEWEST = 1024
_LONGEST_BLOCK = 1 << 16
# Rows of tokens that do not exist are often zero: vocabularies are rounded up.
_MOST_PADDING = 0.1
_MULTIPLES = (8, 64, 128)


def zero_tails(evidence: Evidence) -> dict[str, int]:
    """Return weights of which the last part is zero though the base's is not, and where it begins."""
    found: dict[str, int] = {}
    for name, measured in evidence.measured.items():
        numbers, tensor = measured.statistics, evidence.tensors.get(name)
        if not evidence.is_deep or tensor is None or not is_weight(tensor) or "mask" in name:
            continue
        if not _FEWEST <= numbers.zeros < numbers.count:
            continue
        try:
            start = _zero_tail(tensor, numbers.zeros)
            if numbers.count - start >= _least(name, tensor) and not (
                _is_padding(evidence, name, start) or _is_zero_in_base(evidence, name, start)
            ):
                found[name] = start
        except InputError:
            continue  # a file that cannot be read is told of where it is opened
    return found


def find_zero_tails(evidence: Evidence) -> Iterator[Finding]:
    """Yield weights of which the last part is zero though the base's is not."""
    found = zero_tails(evidence)
    if found:
        name, start = next(iter(found.items()))
        count = evidence.measured[name].statistics.count
        yield finding(
            "U803",
            subject=name if len(found) == 1 else f"{len(found):,} tensors",
            saw=f"{name} is zero from element {start:,} of {count:,} to its end"
            + (f"; also {listed(list(found)[1:])}" if len(found) > 1 else ""),
            expected="numbers up to the end",
            remedy="The file was cut, by a full disk or a broken download, and filled up with zeros: copy it"
            " again from where it is whole.",
        )


def _least(name: str, tensor: Tensor) -> int:
    """Return how many zeros at the end are too many."""
    padding = int(_MOST_PADDING * element_count(tensor)) if has_row_per_token(name) else 0
    return max(_FEWEST, padding)


def _is_padding(evidence: Evidence, name: str, start: int) -> bool:
    """Return whether zeros are whole rows of tokens that the base does not have, or round the rest up."""
    tensor, base = evidence.tensors[name], evidence.base_tensors.get(name)
    rows = tensor.shape[0]
    used = -(-start * rows // element_count(tensor))
    if not has_row_per_token(name) or len(tensor.shape) != 2:
        return False
    if base is not None and len(base.shape) == 2:
        return base.shape[0] < rows and used >= base.shape[0]
    return any(rows == -(-used // multiple) * multiple for multiple in _MULTIPLES)


def _is_zero_in_base(evidence: Evidence, name: str, start: int) -> bool:
    """Return whether the base has zeros there as well."""
    base = evidence.base_tensors.get(name)
    if base is None or base.shape != evidence.tensors[name].shape:
        return False
    return not read_numbers(base, start, min(start + _FEWEST, element_count(base))).any()


def _zero_tail(tensor: Tensor, zeros: int) -> int:
    """Return where the zeros begin that last to the end of a tensor; read backwards, block by block."""
    stop = element_count(tensor)
    first = stop - zeros  # there are no more than these
    block = _FEWEST
    while stop > first:
        start = max(first, stop - block)
        places = read_numbers(tensor, start, stop).nonzero()[0]
        if len(places):
            return start + int(places[-1]) + 1
        stop, block = start, _LONGEST_BLOCK
    return stop


CHECKS = (Check("values.zero_tails", ("U803",), find_zero_tails),)
