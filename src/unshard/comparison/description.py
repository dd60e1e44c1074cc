"""What a comparison tells, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unshard.measures import Delta, Statistics


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two things.

    Attributes:
        path: Where its tensors lie.
        layout: How it lies there, in words.
        tensors: How many it has, by the names that were compared.
        naming: How its names were found, or empty where they are as they lie there.
    """

    path: Path
    layout: str
    tensors: int
    naming: str = ""


@dataclass(frozen=True, slots=True)
class TensorChange:
    """A tensor that both sides have in one shape.

    Attributes:
        shape: Of both.
        old_dtype: Of A.
        new_dtype: Of B.
        statistics: The numbers of B.
        delta: How far B is from A.
    """

    shape: tuple[int, ...]
    old_dtype: str
    new_dtype: str
    statistics: Statistics
    delta: Delta


@dataclass(frozen=True, slots=True)
class Reshaped:
    """A tensor that the two sides have in other shapes; its numbers are not compared."""

    old_shape: tuple[int, ...]
    new_shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GroupChange:
    """What became of several tensors together.

    Attributes:
        name: What they have in common: a layer, or a kind of module.
        tensors: How many there are.
        changed_tensors: How many of them differ anywhere.
        elements: Their numbers.
        changed: How many of these differ in value.
        relative: The distance of all of them from A, in units of A's norm; None where that is zero and the
            distance is not.
        cosine: Of the angle between both sides.
    """

    name: str
    tensors: int
    changed_tensors: int
    elements: int
    changed: int
    relative: float | None
    cosine: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `unshard diff` tells, field by field.

    Attributes:
        old: A.
        new: B.
        tensors: Every tensor that both have in one shape, by name.
        added: Names that only B has.
        removed: Names that only A has.
        reshaped: Tensors that both have, in other shapes.
        total: All of `tensors` together.
        layers: The same by layer, in the order of the model; what is in no layer stands last.
        kinds: The same by kind of module, largest change first.
        notes: What a person should know about how names were compared.
    """

    old: Side
    new: Side
    tensors: Mapping[str, TensorChange]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    reshaped: Mapping[str, Reshaped]
    total: GroupChange
    layers: tuple[GroupChange, ...]
    kinds: tuple[GroupChange, ...]
    notes: tuple[str, ...] = ()

    @property
    def is_equal(self) -> bool:
        """Whether both have the same tensors with the same values, whatever their dtypes."""
        return not (self.added or self.removed or self.reshaped or self.total.changed_tensors)
