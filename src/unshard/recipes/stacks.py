"""Stacks of layers, as names tell: which layers there are, and what each of them holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from unshard.recipes.modules import layer_of

_EXPERT = re.compile(r"(?<=experts\.)(\d{1,6})(?=\.)")


@dataclass(frozen=True, slots=True)
class Stack:
    """Layers with one prefix.

    Attributes:
        prefix: What stands before the number of a layer.
        layers: By its number, what a layer holds: names after its number, the number of an expert as `N`.
        experts: By layer and such a name, the numbers of the experts that have it.
    """

    prefix: str
    layers: Mapping[int, frozenset[str]]
    experts: Mapping[tuple[int, str], frozenset[int]]

    @property
    def is_of_layers(self) -> bool:
        """Whether these are layers of a model; a sequence of modules has gaps where one has no weights."""
        return len(self.layers) > 1 and min(map(len, self.layers.values())) >= 4

    @property
    def gaps(self) -> tuple[int, ...]:
        """Numbers that are missing below the highest."""
        return tuple(number for number in range(max(self.layers)) if number not in self.layers)


def stacks_of(names: Iterable[str]) -> tuple[Stack, ...]:
    """Return every stack of layers in names, in the order in which they first occur."""
    layers: dict[str, dict[int, set[str]]] = {}
    experts: dict[str, dict[tuple[int, str], set[int]]] = {}
    for name in names:
        place = layer_of(name)
        if place is None:
            continue
        prefix, number, rest = place
        form = _EXPERT.sub("N", rest, count=1)
        layers.setdefault(prefix, {}).setdefault(number, set()).add(form)
        if expert := _EXPERT.search(rest):
            experts.setdefault(prefix, {}).setdefault((number, form), set()).add(int(expert[1]))
    return tuple(
        Stack(
            prefix,
            {number: frozenset(held) for number, held in found.items()},
            {key: frozenset(numbers) for key, numbers in experts.get(prefix, {}).items()},
        )
        for prefix, found in layers.items()
    )
