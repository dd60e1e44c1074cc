"""From the names in a checkpoint to the names the model needs: by proof, never by guess.

A way of renaming is tried only to an exact match: no two names become one, nothing the model needs is
missing, and what is left over is explained (a tied duplicate, a tensor the model computes, state of
training). The ways, in the order they are tried: as they are; without wrapper segments; without
`module`; those with a prefix removed or added, or with the names one family has in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from unshard.match.needs import Account, Needs, Shape, account
from unshard.recipes.renamings import renamings
from unshard.recipes.wrappers import AMBIGUOUS_WRAPPERS, WRAPPERS, without_segments

_DEEPEST_PREFIX = 4
_SAMPLE = 16


@dataclass(frozen=True, slots=True)
class Naming:
    """New names for the tensors of a checkpoint.

    Attributes:
        names: The new name of every tensor.
        removed: Wrapper segments that were removed, and from how many names.
        prefix: What was removed from the front of names, with its dot.
        added: What was added at the front of names.
        renaming: The title of the renaming that was applied.
        changed: How many names it, or the prefixes, changed.
    """

    names: Mapping[str, str]
    removed: Mapping[str, int]
    prefix: str = ""
    added: str = ""
    renaming: str = ""
    changed: int = 0

    @property
    def has_collisions(self) -> bool:
        """Whether two tensors would have one name."""
        return len(set(self.names.values())) < len(self.names)


def find_naming(shapes: Mapping[str, Shape], needs: Needs) -> tuple[Naming, Account]:
    """Return the naming that gives exactly what the model needs, or else the one that comes nearest."""
    stems = [_tried(stem, shapes, needs) for stem in _stems(shapes) if not stem.has_collisions]
    best = max(stems, key=lambda found: (found[1].is_exact, found[1].matched))
    if best[1].is_exact:
        return best
    # Where most names are already the model's, no prefix stands before them: to remove one from the
    # others would be to guess what a single tensor is called.
    bare = [stem for stem, found in stems if 2 * found.matched <= len(needs.required)]
    others = chain(
        *(_with_other_prefixes(stem, needs) for stem in bare),
        *(_renamed_as_known(stem, needs) for stem, _ in stems),
    )
    for naming in others:
        if not naming.has_collisions:
            found = _tried(naming, shapes, needs)
            if found[1].is_exact:
                return found
            best = max(best, found, key=lambda found: found[1].matched)
    return best


def _tried(naming: Naming, shapes: Mapping[str, Shape], needs: Needs) -> tuple[Naming, Account]:
    return naming, account(needs, {naming.names[name]: shape for name, shape in shapes.items()})


def naming_without_base(shapes: Mapping[str, Shape]) -> Naming:
    """Return the naming that is safe where nothing tells which names the model needs.

    Segments that no model has are removed, unless two tensors would then have one name; `module` is
    removed only where every name begins with it.
    """
    plain = _without(shapes, WRAPPERS)
    naming = _identity(shapes) if plain.has_collisions else plain
    if naming.names and all(name.startswith("module.") for name in naming.names.values()):
        return _renamed(naming, lambda name: name.removeprefix("module."), prefix="module.")
    return naming


def model_prefixes(shapes: Mapping[str, Shape], needs: Needs) -> list[str]:
    """Return the prefixes below which a whole model lies with something else beside it; "" is the top."""
    stem = _without(shapes, WRAPPERS)
    stem = _identity(shapes) if stem.has_collisions else stem
    plain = {name: shapes[source] for source, name in stem.names.items()}
    found = [] if account(needs, plain).missing else [""]
    for prefix in _prefixes(plain, of_most=False):
        part = {name[len(prefix) :]: shape for name, shape in plain.items() if name.startswith(prefix)}
        if len(part) < len(plain) and account(needs, part).is_exact:
            found.append(prefix)
    return found


def _stems(shapes: Mapping[str, Shape]) -> list[Naming]:
    """Return the names as they are, and without wrapper segments where there are some."""
    stems = [_identity(shapes)]
    for segments in (WRAPPERS, [*WRAPPERS, *AMBIGUOUS_WRAPPERS]):
        stem = _without(shapes, segments)
        if stem.removed and stem.removed != stems[-1].removed:
            stems.append(stem)
    return stems


def _renamed_as_known(stem: Naming, needs: Needs) -> Iterator[Naming]:
    """Yield the stem under every known renaming that gives names the model has."""
    for renaming in renamings():
        olds = tuple(old for old, _ in renaming.prefixes)
        first = next((name for name in stem.names.values() if name.startswith(olds)), None)
        if first is not None and _is_plausible(stem, renaming.apply, needs):
            yield _renamed(stem, renaming.apply, renaming=renaming.title)


def _with_other_prefixes(stem: Naming, needs: Needs) -> Iterator[Naming]:
    """Yield the stem with a prefix of most names removed, and one that most of the model's have added."""
    ours = _prefixes(stem.names.values(), of_most=True)
    theirs = _prefixes(needs.required, of_most=True)
    for prefix, added in [*((p, "") for p in ours), *((p, a) for p in ["", *ours] for a in theirs)]:
        rename = _Prefixes(prefix, added, needs.expected)
        if _is_plausible(stem, rename, needs):
            yield _renamed(stem, rename, prefix=prefix, added=added)


@dataclass(frozen=True, slots=True)
class _Prefixes:
    """A function that removes one prefix and adds another, but not to a name that the model has."""

    removed: str
    added: str
    expected: Collection[str]

    def __call__(self, name: str) -> str:
        bare = name.removeprefix(self.removed)
        full = self.added + bare
        return bare if bare in self.expected and full not in self.expected else full


def _is_plausible(stem: Naming, rename: Callable[[str], str], needs: Needs) -> bool:
    """Return whether the model knows most of a few names; it saves trying the others."""
    names = list(stem.names.values())
    sample = names[:: max(1, len(names) // _SAMPLE)]
    return 2 * sum(rename(name) in needs.expected for name in sample) > len(sample)


def _prefixes(names: Collection[str], *, of_most: bool) -> list[str]:
    """Return the leading parts of names, with their dots, short before long; maybe only those of most."""
    counts: dict[str, int] = {}
    for name in names:
        start, stop = 0, name.find(".")
        for _ in range(_DEEPEST_PREFIX):
            if stop < 0 or name[start:stop].isdigit():
                break
            start = stop + 1
            counts[name[:start]] = counts.get(name[:start], 0) + 1
            stop = name.find(".", start)
    kept = [prefix for prefix, count in counts.items() if not of_most or 2 * count > len(names)]
    return sorted(kept, key=lambda prefix: prefix.count("."))


def _identity(shapes: Iterable[str]) -> Naming:
    return Naming({name: name for name in shapes}, {})


def _without(shapes: Iterable[str], segments: Iterable[str]) -> Naming:
    """Return the naming without wrapper segments."""
    chosen = frozenset(segments)
    names: dict[str, str] = {}
    removed: dict[str, int] = {}
    for name in shapes:
        names[name] = without_segments(name, chosen)
        if names[name] != name:
            for segment in chosen.intersection(name.split(".")):
                removed[segment] = removed.get(segment, 0) + 1
    return Naming(names, dict(sorted(removed.items())))


def _renamed(
    stem: Naming, rename: Callable[[str], str], *, prefix: str = "", added: str = "", renaming: str = ""
) -> Naming:
    names = {source: rename(name) for source, name in stem.names.items()}
    changed = sum(names[source] != name for source, name in stem.names.items())
    return Naming(names, stem.removed, prefix, added, renaming, changed)
