"""Whether every layer is there, and holds what its siblings hold: told by names alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache

from unshard.base.configuration import lookup_int
from unshard.checks.evidence import Check, Evidence
from unshard.checks.words import named, quoted
from unshard.errors import listed
from unshard.findings import Finding, finding
from unshard.recipes.stacks import Stack, stacks_of
from unshard.sizes import counted

_AGAIN = "Convert the training checkpoint again, or copy the missing files; nothing else knows these numbers."
# A layer that lacks more than this share of its siblings' tensors is of another kind, not damaged.
_MOST_LACKING = 0.5
# The stack that `num_hidden_layers` counts; others belong to towers, encoders, drafts.
_MAIN = ("model.layers", "model.language_model.layers", "language_model.model.layers", "transformer.h")


def _check_gaps(evidence: Evidence) -> Iterator[Finding]:
    """Yield layers that are missing between others, or at the end where the configuration counts more."""
    if _is_partly_read(evidence):
        return
    declared = None if evidence.config is None else lookup_int(evidence.config, "num_hidden_layers")
    for stack in _stacks(evidence):
        if not stack.is_of_layers:
            continue
        top = max(stack.layers) + 1
        if stack.gaps:
            yield finding(
                "U236",
                subject=quoted(stack.prefix),
                saw=f"no layer {_numbers(stack.gaps)} of {top}",
                expected=f"layers 0 to {top - 1}",
                remedy=_AGAIN,
            )
        elif stack.prefix in _MAIN and declared is not None and top < declared:
            yield finding(
                "U236",
                subject=quoted(stack.prefix),
                saw=f"{counted(top, 'layer')}",
                expected=f"{declared}, as num_hidden_layers says",
                remedy=f"{_AGAIN} If they were removed on purpose, set num_hidden_layers to {top}.",
            )


def _stacks(evidence: Evidence) -> tuple[Stack, ...]:
    """Return the stacks of layers; the checks of one run ask for the same names one after another."""
    return _stacks_of(tuple(evidence.tensors))


@lru_cache(maxsize=1)
def _stacks_of(names: tuple[str, ...]) -> tuple[Stack, ...]:
    return stacks_of(names)


def _numbers(numbers: Iterable[int]) -> str:
    return listed([str(number) for number in sorted(numbers)])


def _is_partly_read(evidence: Evidence) -> bool:
    """Return whether a file could not be read, so that what is missing may be in it."""
    return evidence.folder is not None and any(
        not found.name.endswith(".json") for found in evidence.folder.unreadable
    )


def _check_siblings(evidence: Evidence) -> Iterator[Finding]:
    """Yield tensors that one layer lacks and its siblings have."""
    if _is_partly_read(evidence):
        return
    for stack in _stacks(evidence):
        if not stack.is_of_layers:
            continue
        for number, lacking in _lacking(stack):
            yield finding(
                "U237",
                subject=quoted(f"{stack.prefix}.{number}"),
                saw=f"no {named(sorted(lacking))}, which its siblings have",
                expected=f"{counted(len(stack.layers[number]) + len(lacking), 'tensor')} as in other layers",
                remedy=_AGAIN,
            )


def _lacking(stack: Stack) -> Iterator[tuple[int, frozenset[str]]]:
    """Yield layers that are alone in lacking little of what several of their siblings hold."""
    kinds = Counter(stack.layers.values())
    for number, held in stack.layers.items():
        if kinds[held] > 1:
            continue
        fuller = [kind for kind, count in kinds.items() if count > 1 and held < kind]
        nearest = min(fuller, key=len, default=None)
        if nearest is not None and len(nearest - held) <= _MOST_LACKING * len(nearest):
            yield number, nearest - held


def _check_experts(evidence: Evidence) -> Iterator[Finding]:
    """Yield experts that one layer lacks and another has, or that the configuration counts."""
    if _is_partly_read(evidence):
        return
    declared = None if evidence.config is None else lookup_int(evidence.config, "num_experts")
    for stack in _stacks(evidence):
        most = max((max(numbers) + 1 for numbers in stack.experts.values()), default=0)
        wanted = frozenset(range(max(most, declared or 0)))
        short = {key: wanted - held for key, held in stack.experts.items() if held != wanted}
        for lost in sorted(set(short.values()), key=sorted):
            places = [
                f"{stack.prefix}.{number}.{form}" for (number, form), gone in short.items() if gone == lost
            ]
            yield finding(
                "U238",
                subject=named(places),
                saw=f"no expert {_numbers(lost)}: {len(wanted) - len(lost)} of {len(wanted)}",
                expected=f"{len(wanted)} experts"
                + (", as config.json says" if declared == len(wanted) else ", as in other layers"),
                remedy=_AGAIN,
            )


CHECKS: tuple[Check, ...] = (
    Check("layers.gaps", ("U236",), _check_gaps),
    Check("layers.siblings", ("U237",), _check_siblings),
    Check("layers.experts", ("U238",), _check_experts),
)
