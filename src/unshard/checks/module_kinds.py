"""Which tensors do the same work in different layers, told from names alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor is in its model.

    Attributes:
        kind: Its name with `*` for every number that is a segment of it.
        numbers: These numbers, in their order: the layer, and the expert where there is one.
    """

    kind: str
    numbers: tuple[int, ...]

    @property
    def stem(self) -> str:
        """The kind up to its last number: equal for all tensors of one layer, or of one expert."""
        return self.kind.rpartition("*")[0]


def place_of(name: str) -> Place:
    """Return where the tensor of this name is; without a number where no layer is named."""
    numbers = tuple(int(found[:9]) for found in _NUMBER.findall(name))
    return Place(_NUMBER.sub("*", name), numbers)


def by_kind(names: Iterable[str]) -> dict[str, list[str]]:
    """Return names by what they are called without their numbers."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(place_of(name).kind, []).append(name)
    return kinds
