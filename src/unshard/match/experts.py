"""Experts as the base has them: taken apart where it has them one by one, else put together.

Only views are made, and only where everything fits: a tensor of other dimensions than a fusion says,
or a layer of which an expert is missing, is left as it is, and matching names what the base lacks. A
recipe that would give two tensors one name is not used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from unshard.base.configuration import Config, lookup_int, text_levels
from unshard.recipes.experts import RECIPES, Fusion, Recipe, Side, every_recipe
from unshard.tensors import DescribedTensor
from unshard.tensors.views import concatenate, permute, split, stack, unstack

Tensors = Mapping[str, DescribedTensor]

# Where neither the base nor its configuration says how many experts a layer has. No model has more.
_MOST_EXPERTS = 1 << 12


@dataclass(frozen=True, slots=True)
class Regrouped:
    """Tensors on one side of a recipe.

    Attributes:
        side: The side.
        tensors: All of them, by their names there.
        origins: For each, the names of what it is made of.
        before: How many tensors were taken apart or put together.
        after: How many these are now.
        exchanged: Of how many two dimensions were exchanged, and nothing else.
        renamed: How many got other names, and nothing else.
    """

    side: Side
    tensors: Tensors
    origins: Mapping[str, tuple[str, ...]]
    before: int
    after: int
    exchanged: int
    renamed: int


@dataclass(frozen=True, slots=True)
class _Made:
    """A tensor on the other side, and what it is made of."""

    name: str
    tensor: DescribedTensor
    sources: tuple[str, ...]


def recipes_of_type(config: Config) -> list[Recipe]:
    """Return the built-in recipes of the model types that a configuration names."""
    return [RECIPES[name] for name in _model_types(config) if name in RECIPES]


def recipes_to_try(config: Config, *, ask_class: bool) -> Iterator[Recipe]:
    """Yield the recipes that may fit a model whose names are known, which decide.

    That of its type, or else that of its class in transformers. A configuration without a model type,
    as beside a single file, excludes none.

    Args:
        config: The configuration of the base.
        ask_class: Whether transformers may be asked; importing it takes seconds.
    """
    known = recipes_of_type(config)
    if known or not _model_types(config):
        yield from known or every_recipe()
    elif ask_class:
        from unshard.base.model_class import recipe_from_class

        recipe = recipe_from_class(config)
        if recipe is not None:
            yield recipe


def _model_types(config: Config) -> list[str]:
    return [str(level["model_type"]) for _, level in text_levels(config) if level.get("model_type")]


def possible_experts(config: Config, names: Collection[str] | None) -> range:
    """Return how many experts a layer can have.

    Args:
        config: The configuration of the base.
        names: The names that the model needs, which decide by themselves where they are known.
    """
    said = lookup_int(config, "num_experts")
    if names is not None:
        return range(1, len(names) + 1)
    return range(1, _MOST_EXPERTS + 1) if said is None else range(said, said + 1)


def regroup_to(tensors: Tensors, wanted: Mapping[str, object], config: Config) -> Tensors:
    """Return tensors on the side that gives most of the names that are wanted, by the built-in recipes."""
    experts = possible_experts(config, wanted)
    sides = [
        found.tensors
        for recipe in recipes_to_try(config, ask_class=False)
        for side in ("published", "memory")
        if (found := regroup(tensors, recipe, side, experts)) is not None
    ]
    return max([tensors, *sides], key=lambda side: len(wanted.keys() & side.keys()))


def regroup(tensors: Tensors, recipe: Recipe, side: Side, experts: range) -> Regrouped | None:
    """Return tensors on that side of a recipe; None where nothing changes, or two would have one name.

    Args:
        tensors: The tensors, by names without wrappers.
        recipe: The recipe.
        side: The side.
        experts: How many experts a layer can have; a tensor of more or fewer is not taken apart.
    """
    made = list(_apart(tensors, recipe, experts) if side == "published" else _together(tensors, recipe))
    by_name = {each.name: each.tensor for each in made}
    uses = Counter(source for each in made for source in each.sources)
    alone = [each for each in made if len(each.sources) == 1 and uses[each.sources[0]] == 1]
    exchanged = sum(each.tensor is not tensors[each.sources[0]] for each in alone)
    renamed = sum(each.name != each.sources[0] for each in alone)
    after, before = len(made) - len(alone), len(tensors) - len(alone)
    if len(by_name) < len(made) or not (after or exchanged or renamed):
        return None
    origins = {each.name: each.sources for each in made}
    return Regrouped(side, by_name, origins, before, after, exchanged, renamed)


def _apart(tensors: Tensors, recipe: Recipe, experts: range) -> Iterator[_Made]:
    """Yield every tensor under its published name, experts one by one."""
    for name, tensor in tensors.items():
        fusion = next((each for each in recipe.fusions if each.head_of(name) is not None), None)
        if fusion is None:
            yield _Made(recipe.rename(name, "published"), tensor, (name,))
        elif not _fits(fusion, tensor.shape, experts):
            yield _Made(name, tensor, (name,))
        else:
            for published, part in _parts(fusion, name.removesuffix(fusion.memory), tensor):
                yield _Made(recipe.rename(published, "published"), part, (name,))


def _fits(fusion: Fusion, shape: tuple[int, ...], experts: range) -> bool:
    """Return whether a fusion can have given a tensor of this shape."""
    if fusion.last_dimension >= len(shape) or 0 in shape:
        return False
    if fusion.joined is not None and shape[fusion.joined] % len(fusion.published):
        return False
    return not fusion.is_stacked or shape[0] in experts


def _parts(fusion: Fusion, head: str, tensor: DescribedTensor) -> Iterator[tuple[str, DescribedTensor]]:
    """Yield what a tensor in memory is in files: expert by expert, and of each one part after the other."""
    tensor = _swapped(fusion, tensor)
    parts, count = [tensor], len(fusion.published)
    if fusion.joined is not None:
        parts = split(tensor, fusion.joined, [tensor.shape[fusion.joined] // count] * count)
    if fusion.is_stacked:
        columns = [unstack(part, 0) for part in parts]
        names = [fusion.names_of(head, part, tensor.shape[0]) for part in range(count)]
    else:
        columns, names = [[part] for part in parts], [[head + ending] for ending in fusion.published]
    for row in zip(*(zip(*pair, strict=True) for pair in zip(names, columns, strict=True)), strict=True):
        yield from row


def _together(tensors: Tensors, recipe: Recipe) -> Iterator[_Made]:
    """Yield every tensor under its name in memory, the experts of a layer in one."""
    names = {name: recipe.rename(name, "memory") for name in tensors}
    made: dict[str, _Made] = {}
    for group in _groups(names, recipe):
        members = tuple(group.names.values())
        whole = _whole(group, tensors)
        if whole is not None:
            made |= dict.fromkeys(members, _Made(group.head + group.fusion.memory, whole, members))
        else:
            names |= {name: name for name in members}
    for name, tensor in tensors.items():
        each = made.get(name) or _Made(names[name], tensor, (name,))
        if each.sources[0] == name:
            yield each


@dataclass(slots=True)
class _Group:
    """The published parts of what may be one tensor in memory: their names, in the checkpoint's order."""

    fusion: Fusion
    head: str
    names: dict[tuple[int, int], str] = field(default_factory=dict)


def _groups(names: Mapping[str, str], recipe: Recipe) -> Iterable[_Group]:
    """Return what may be put together, of published names under their renamed ones."""
    groups: dict[tuple[Fusion, str], _Group] = {}
    for name, renamed in names.items():
        for fusion in recipe.fusions:
            place = fusion.place_of(renamed)
            if place is not None:
                head, part, expert = place
                groups.setdefault((fusion, head), _Group(fusion, head)).names[part, expert] = name
                break
    return groups.values()


def _whole(group: _Group, tensors: Tensors) -> DescribedTensor | None:
    """Return the tensor that the parts are in memory, or None where one is missing or does not fit."""
    fusion, parts = group.fusion, len(group.fusion.published)
    experts = len(group.names) // parts
    places = [(part, expert) for part in range(parts) for expert in range(experts)]
    if len(group.names) != len(places) or not all(place in group.names for place in places):
        return None
    found = {place: tensors[group.names[place]] for place in places}
    rank = {len(tensor.shape) + fusion.is_stacked for tensor in found.values()}
    if fusion.last_dimension >= min(rank):
        return None
    rows = [[found[part, expert] for expert in range(experts)] for part in range(parts)]
    try:
        whole = [stack(row, 0) if fusion.is_stacked else row[0] for row in rows]
        tensor = whole[0] if fusion.joined is None else concatenate(whole, fusion.joined)
    except ValueError:  # their shapes or dtypes differ
        return None
    return _swapped(fusion, tensor)


def _swapped(fusion: Fusion, tensor: DescribedTensor) -> DescribedTensor:
    """Return a tensor with the two dimensions exchanged that differ between the sides."""
    if fusion.swapped is None:
        return tensor
    order = list(range(len(tensor.shape)))
    a, b = fusion.swapped
    order[a], order[b] = order[b], order[a]
    return permute(tensor, order)
