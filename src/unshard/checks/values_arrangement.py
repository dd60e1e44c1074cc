"""Tensors that are far from the base's of their name: exchanged, out of order, or unrelated to it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from unshard.checks.evidence import Check, Evidence
from unshard.checks.module_kinds import place_of
from unshard.checks.values_change import deltas_of, factors_of, shifted_norms
from unshard.checks.values_distance import began_at_zero, find_far
from unshard.checks.values_numbers import impossible_numbers, is_weight
from unshard.checks.values_orders import order_of
from unshard.checks.values_places import PlacesOfBase
from unshard.checks.values_siblings import far_scales
from unshard.checks.values_tails import zero_tails
from unshard.errors import InputError, listed
from unshard.findings import Finding, finding
from unshard.measures import Delta, Statistics
from unshard.sizes import counted

# Most fine-tunes stay above. What is below is looked at; nothing is said because of that alone.
_LOOKED_AT = 0.95
_FEWEST_IN_MATRIX = 256
# The weights of norms have a cosine near one with any others, so their distance is what counts.
_LOOKED_AT_DISTANCE, _TIMES_USUAL = 0.05, 4.0
# Cosines of n numbers with an unrelated tensor have a deviation of 1 / sqrt(n): 0.03 for 1024 of them.
_UNRELATED, _FEWEST_TO_TELL = 0.1, 1024
_RELATED = 0.5
_MOST_LOOKED_AT = 1024
_FIRST_LOOK = 16
_AGAIN = (
    "Convert the training checkpoint again (unshard convert RUN OUT --base BASE), or repair the program that"
    " wrote this one."
)


@dataclass(frozen=True, slots=True)
class Held:
    """Whose numbers a tensor holds, and how far it is from that one and from its own."""

    other: str
    crossed: float
    straight: float


@dataclass(frozen=True, slots=True)
class Arrangement:
    """What explains tensors that are far from the base's.

    Attributes:
        held: Tensors that hold another one's numbers.
        orders: Tensors whose elements lie in another order: the code of the finding, and words.
        unexplained: Matrices of which neither is true.
    """

    held: dict[str, Held] = field(default_factory=dict)
    orders: dict[str, tuple[str, str]] = field(default_factory=dict)
    unexplained: list[str] = field(default_factory=list)


def find_arrangement(evidence: Evidence) -> Iterator[Finding]:
    """Yield which tensors hold the numbers of others, in another order, or none of the base's."""
    deltas = deltas_of(evidence)
    matrices = {
        name: delta
        for name, delta in deltas.items()
        if is_weight(evidence.tensors[name]) and delta.count >= _FEWEST_IN_MATRIX
    }
    found = Arrangement()
    places = PlacesOfBase({n: t for n, t in evidence.base_tensors.items() if t.dtype.kind == "float"})
    if evidence.is_deep:
        strange = [name for name, delta in matrices.items() if delta.cosine < _LOOKED_AT]
        _explain(evidence, places, strange, found)
    explained = found.held.keys() | found.orders.keys()
    rest = {name: delta for name, delta in matrices.items() if name not in explained}
    if _is_unrelated(evidence, rest):
        yield _unrelated(rest)
        return
    if evidence.is_deep:
        _explain(evidence, places, _far_vectors(evidence, deltas), found)
    yield from _exchanged(found.held)
    yield from _out_of_order(found.held)
    yield from _reordered(found.orders, deltas)
    random = {name: delta for name, delta in rest.items() if _is_random(delta)}
    random = {name: delta for name, delta in random.items() if not _is_broken(evidence, name)}
    yield from _random(random)
    named = {*found.held, *found.orders, *random, *factors_of(evidence), *shifted_norms(evidence)}
    named |= far_scales(evidence).keys() | zero_tails(evidence).keys()
    unnamed = {name: delta for name, delta in deltas.items() if name not in named}
    yield from find_far(evidence, places, {n: d for n, d in unnamed.items() if not _is_broken(evidence, n)})


def _far_vectors(evidence: Evidence, deltas: dict[str, Delta]) -> list[str]:
    vectors = {name: delta for name, delta in deltas.items() if len(evidence.tensors[name].shape) == 1}
    if not vectors:
        return []
    usual = statistics.median(delta.relative for delta in vectors.values())
    least = min(_LOOKED_AT_DISTANCE, _TIMES_USUAL * usual)
    return [name for name, delta in vectors.items() if delta.relative > least]


def _explain(evidence: Evidence, places: PlacesOfBase, names: list[str], found: Arrangement) -> None:
    """Look for what explains tensors; all of them unless a first look at some explains none."""
    base = places.base
    first = names[:: max(1, len(names) // _FIRST_LOOK)]
    others = [name for name in names if name not in set(first)]
    before = len(found.held) + len(found.orders)
    for name in [*first, *others[:_MOST_LOOKED_AT]]:
        if name not in base or base[name].shape != evidence.tensors[name].shape:
            continue
        if name == next(iter(others), None) and len(found.held) + len(found.orders) == before:
            return
        try:
            if evidence.measured[name].statistics.is_constant:
                continue  # fits anything that is nearly so
            held = places.held_by(name, evidence.tensors[name])
            order = None if held else order_of(evidence.tensors[name], base[name], evidence.config)
        except InputError:
            continue  # a file that cannot be read is told of where it is opened
        if held:
            found.held[name] = Held(*held)
        elif order:
            found.orders[name] = order


def _is_unrelated(evidence: Evidence, deltas: Mapping[str, Delta]) -> bool:
    """Return whether matrices, taken together, have nothing in common with the base's.

    The mean of cosines, weighted by the n numbers of each, is within 4 / sqrt(sum of n) of zero for
    unrelated tensors. Tensors whose mean is not near zero are left out: they are alike in all models.
    """
    known = [deltas[name] for name in deltas if _is_centred(evidence.measured[name].statistics)]
    count = sum(delta.count for delta in known)
    mean = sum(delta.count * delta.cosine for delta in known) / max(1, count)
    return count >= _FEWEST_TO_TELL and mean < _UNRELATED


def _is_centred(numbers: Statistics) -> bool:
    return 2 * abs(numbers.mean) < numbers.deviation


def _unrelated(deltas: dict[str, Delta]) -> Finding:
    near = sum(delta.cosine >= _RELATED for delta in deltas.values())
    mean = sum(delta.cosine for delta in deltas.values()) / len(deltas)
    return finding(
        "U813",
        subject="the model",
        saw=f"{near:,} of {counted(len(deltas), 'matrix').replace('matrixs', 'matrices')} are close to the"
        f" base's; the mean cosine is {mean:.3f}",
        expected="0.9 and more, as fine-tuned weights have",
        remedy="Name the model that training started from with --base. If it started from nothing, there is"
        " no base to compare with. If it did not, the weights were never loaded.",
    )


def _is_broken(evidence: Evidence, name: str) -> bool:
    """Return whether the numbers of a tensor are wrong by themselves, which is told elsewhere."""
    numbers = evidence.measured[name].statistics
    return (
        numbers.is_constant
        or numbers.nans + numbers.infinities > 0
        or bool(impossible_numbers(numbers, evidence.tensors[name]))
    )


def _is_random(delta: Delta) -> bool:
    """Return whether nothing is left of the base's matrix; one that began near zero grows in training."""
    return delta.count >= _FEWEST_TO_TELL and delta.cosine < _UNRELATED and not began_at_zero(delta)


def _random(found: dict[str, Delta]) -> Iterator[Finding]:
    """Yield the matrices that have nothing in common with the base's, while the others have."""
    if found:
        name = min(found, key=lambda each: found[each].cosine)
        yield finding(
            "U814",
            subject=name if len(found) == 1 else f"{len(found):,} tensors",
            saw=f"{listed(list(found))}: cosine {found[name].cosine:.3f} with the base's of that name"
            + (
                ": it is the base's negated"
                if found[name].cosine < -_RELATED
                else ", unrelated or rearranged"
            ),
            expected="0.9 and more, as the other tensors have",
            remedy="Unless training began with new weights there, a name was not found when the model was"
            f" loaded, and the tensor is random, or its rows were moved. {_AGAIN}",
        )


def _exchanged(held: dict[str, Held]) -> Iterator[Finding]:
    """Yield kinds of tensors that hold another kind's numbers."""
    pairs: dict[tuple[str, ...], list[str]] = {}
    for name, found in held.items():
        kinds = place_of(name).kind, place_of(found.other).kind
        if kinds[0] != kinds[1]:
            pairs.setdefault(tuple(sorted(kinds)), []).append(name)
    for (one, other), names in pairs.items():
        both = {place_of(name).kind for name in names}
        layers = len({place_of(name).numbers for name in names})
        where = f" in {counted(layers, 'layer')}" if "*" in one else ""
        told = f"{one} and {other} are exchanged{where}"
        if len(both) == 1:
            holder, owner = (one, other) if one in both else (other, one)
            told = f"{holder} holds the numbers of {owner}{where}"
        first = held[names[0]]
        yield finding(
            "U815",
            subject=f"{one} and {other}",
            saw=f"{told}: the cosine of {names[0]} is {first.crossed:.3f} with the base's {first.other}, and"
            f" {first.straight:.3f} with its own",
            remedy=f"The names were exchanged by a program: exchange them back. {_AGAIN}",
        )


def _out_of_order(held: dict[str, Held]) -> Iterator[Finding]:
    """Yield layers, and experts, that hold the numbers of other ones."""
    moves: dict[str, dict[tuple[str, str], list[str]]] = {}
    for name, found in held.items():
        here, there = place_of(name), place_of(found.other)
        if here.kind != there.kind:
            continue
        at = next(
            i for i, pair in enumerate(zip(here.numbers, there.numbers, strict=True)) if pair[0] != pair[1]
        )
        code = "U817" if "expert" in here.kind.split("*")[at] else "U816"
        way = (_told_place(here.numbers, at, code), _told_place(there.numbers, at, code))
        moves.setdefault(code, {}).setdefault(way, []).append(name)
    for code, ways in moves.items():
        name = next(iter(ways.values()))[0]
        told = [
            f"{here} holds the base's {there} ({counted(len(n), 'tensor')})"
            for (here, there), n in ways.items()
        ]
        yield finding(
            code,
            subject="experts" if code == "U817" else "layers",
            saw="; ".join(told[:6])
            + (f"; and {len(told) - 6:,} more" if told[6:] else "")
            + f"; the cosine of {name} is {held[name].crossed:.3f} there,"
            f" and {held[name].straight:.3f} with its own",
            remedy="Files or ranks were put together in the wrong order, such as 1, 10, 11, 2: put them in"
            f" the order of their numbers. {_AGAIN}",
        )


def _told_place(numbers: tuple[int, ...], at: int, code: str) -> str:
    where = f" of layer {numbers[0]}" if at else ""
    return f"{'expert' if code == 'U817' else 'layer'} {numbers[at]}{where}"


def _reordered(orders: dict[str, tuple[str, str]], deltas: dict[str, Delta]) -> Iterator[Finding]:
    """Yield tensors that are the base's in another order of their elements."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for name, (code, words) in orders.items():
        groups.setdefault((code, place_of(name).kind, words), []).append(name)
    for (code, kind, words), names in groups.items():
        yield finding(
            code,
            subject=names[0] if len(names) == 1 else f"{kind} in {counted(len(names), 'layer')}",
            saw=f"{names[0]} {words};"
            f" as it lies, its cosine with the base's is {deltas[names[0]].cosine:.3f}",
            remedy=_REMEDIES[code],
        )


_REMEDIES = {
    "U817": f"Put the experts in the order of their numbers. {_AGAIN}",
    "U818": "Rows of queries and keys are permuted between Meta's format and the hub's: this was left out, or"
    f" done twice. {_AGAIN}",
    "U819": "Some formats hold matrices as (in, out), as GPT-2 does, others as (out, in): transpose it back."
    f" {_AGAIN}",
    "U820": "Parts of several ranks, or fused matrices such as gate and up, were put together in another"
    f" order. {_AGAIN}",
}

CHECKS = (
    Check(
        "values.arrangement",
        ("U813", "U814", "U815", "U816", "U817", "U818", "U819", "U820", "U825"),
        find_arrangement,
    ),
)
