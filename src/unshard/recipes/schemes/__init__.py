"""Naming schemes: what projects call the tensors that Hugging Face's files call otherwise.

A scheme is recognised by all names together, never by one. `rows` says what schemes are made of; there
is one module for every project. Each scheme is read in both directions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from unshard.recipes.leftovers import is_training_only
from unshard.recipes.recomputable import recomputable_kind
from unshard.recipes.schemes.litgpt import LITGPT
from unshard.recipes.schemes.meta import META
from unshard.recipes.schemes.olmo_core import OLMO_CORE
from unshard.recipes.schemes.rows import Family, Scheme, split_name
from unshard.recipes.schemes.torchtitan import TORCHTITAN
from unshard.recipes.schemes.torchtune import TORCHTUNE
from unshard.recipes.wrappers import AMBIGUOUS_WRAPPERS, WRAPPERS, without_segments

# Of two schemes that explain names equally well, the first is meant.
SCHEMES: tuple[Scheme, ...] = (META, TORCHTITAN, TORCHTUNE, LITGPT, OLMO_CORE)

_ENDINGS = tuple({ending for scheme in SCHEMES for family in scheme.families for ending in family.endings})
_DEEPEST_PREFIX = 4
_SEGMENTS = frozenset((*WRAPPERS, *AMBIGUOUS_WRAPPERS))


@dataclass(frozen=True, slots=True)
class Reading:
    """Names, read as those of a scheme.

    Attributes:
        scheme: The scheme.
        family: Whose names it may give.
        names: For every name, what it is without wrappers and without what stands before all of them.
        unknown: Names that the family has no row for.
    """

    scheme: Scheme
    family: Family
    names: dict[str, str]
    unknown: tuple[str, ...]


def detect_scheme(names: Iterable[str]) -> Scheme | None:
    """Return the scheme whose names these are, or None; those of Hugging Face's files are of no scheme."""
    found = readings_of(tuple(names))
    return found[0].scheme if found else None


def readings_of(names: Collection[str]) -> list[Reading]:
    """Return every family of a scheme that explains as many of the names as any does; there may be none."""
    bare = _bare(names)
    if not any(short.endswith(_ENDINGS) for short in bare.values()):  # as it is of most models
        return []
    patterns = {name: split_name(short)[0] for name, short in bare.items()}
    found: list[Reading] = []
    for prefix in _prefixes(bare.values()):
        inner = {name: short.removeprefix(prefix) for name, short in bare.items()}
        plain = {name: pattern.removeprefix(prefix) for name, pattern in patterns.items()}
        there = frozenset(plain.values())
        found = [
            Reading(scheme, family, inner, tuple(n for n in names if _is_unknown(inner[n], plain[n], family)))
            for scheme in SCHEMES
            for family in scheme.families
            if family.has_marks(there)
        ]
        if found:
            break
    fewest = min((len(reading.unknown) for reading in found), default=0)
    return [reading for reading in found if len(reading.unknown) == fewest and 2 * fewest < len(names)]


def _is_unknown(name: str, pattern: str, family: Family) -> bool:
    return not (
        pattern in family.places or recomputable_kind(name, None) is not None or is_training_only(name)
    )


def _bare(names: Collection[str]) -> dict[str, str]:
    """Return names without the segments of wrappers, where they stay different ones without them."""
    bare = {name: without_segments(name, _SEGMENTS) for name in names}
    return bare if len(set(bare.values())) == len(bare) else {name: name for name in names}


def _prefixes(names: Collection[str]) -> Iterable[str]:
    """Yield what may stand before all names: nothing, or leading parts that they have in common."""
    yield ""
    if not names:
        return
    first, *parts = min(names).split(".")[: _DEEPEST_PREFIX + 1]
    prefix = f"{first}."
    for part in parts:
        if first.isdigit() or not all(name.startswith(prefix) for name in names):
            return
        yield prefix
        first, prefix = part, f"{prefix}{part}."
