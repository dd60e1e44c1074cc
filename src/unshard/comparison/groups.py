"""What became of many tensors together: of a layer, of a kind of module, of all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

from unshard.comparison.description import GroupChange, TensorChange
from unshard.measures import Delta
from unshard.recipes.modules import module_place


def group_of(name: str, changes: Iterable[TensorChange]) -> GroupChange:
    """Return what became of several tensors together."""
    deltas = [change.delta for change in changes]
    whole = Delta(
        count=sum(d.count for d in deltas),
        changed=sum(d.changed for d in deltas),
        survived=0,
        dot=math.fsum(d.dot for d in deltas),
        norm=math.hypot(*(d.norm for d in deltas)),
        other_norm=math.hypot(*(d.other_norm for d in deltas)),
        distance=math.hypot(*(d.distance for d in deltas)),
        largest=0.0,
    )
    return GroupChange(
        name=name,
        tensors=len(deltas),
        changed_tensors=sum(d.changed > 0 for d in deltas),
        elements=whole.count,
        changed=whole.changed,
        relative=whole.relative if math.isfinite(whole.relative) else None,
        cosine=whole.cosine,
    )


def by_layer(changes: Mapping[str, TensorChange]) -> Iterator[GroupChange]:
    """Yield every layer, in the order of stacks and numbers, and then what is in none."""
    places = {name: module_place(name) for name in changes}
    stacks = {place.stack: i for i, place in enumerate(dict.fromkeys(places.values()))}
    groups = _grouped(changes, lambda name: (places[name].stack, places[name].layer))

    def order(key: tuple[str, int | None]) -> tuple[bool, int, int]:
        stack, layer = key
        return layer is None, stacks[stack], layer or 0

    for stack, layer in sorted(groups, key=order):
        title = "outside of layers" if layer is None else f"{stack}.{layer}"
        yield group_of(title, groups[stack, layer])


def by_kind(changes: Mapping[str, TensorChange]) -> Iterator[GroupChange]:
    """Yield every kind of module, largest change first."""
    groups = _grouped(changes, lambda name: (module_place(name).kind, None))
    told = [group_of(kind, held) for (kind, _), held in groups.items()]
    yield from sorted(told, key=lambda g: -(math.inf if g.relative is None else g.relative))


def _grouped(
    changes: Mapping[str, TensorChange], key: Callable[[str], tuple[str, int | None]]
) -> dict[tuple[str, int | None], list[TensorChange]]:
    groups: dict[tuple[str, int | None], list[TensorChange]] = {}
    for name, change in changes.items():
        groups.setdefault(key(name), []).append(change)
    return groups
