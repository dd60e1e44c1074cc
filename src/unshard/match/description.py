"""What names and shapes alone tell of a model: family, sizes, the nearest well-known one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from unshard.match.names import naming_without_base
from unshard.match.needs import Shape
from unshard.recipes.families import Sizes, family_of, sizes_of
from unshard.recipes.known_models import nearest_model


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """A model by its names and shapes; every field is None where they do not tell.

    Attributes:
        family: The naming scheme, with the models it covers.
        evidence: The parts of names it was recognised by.
        sizes: Layers, widths and vocabulary.
        parameters: Elements of all tensors; what two names share counts twice.
        nearest: The well-known model of these layers and widths.
    """

    family: str | None
    evidence: tuple[str, ...]
    sizes: Sizes
    parameters: int
    nearest: str | None

    @property
    def sentences(self) -> tuple[str, ...]:
        """The description for people, one fact each."""
        sizes, told = self.sizes, [f"{self.family}, by {', '.join(self.evidence)}"]
        facts = (
            (sizes.layers, f"{sizes.layers} layers"),
            (sizes.hidden, f"width {sizes.hidden}"),
            (sizes.intermediate, f"feed-forward width {sizes.intermediate}"),
            (sizes.keys != sizes.hidden and sizes.keys, f"width of all keys {sizes.keys}"),
            (sizes.vocabulary, f"{sizes.vocabulary} tokens"),
            (self.nearest, f"the sizes of {self.nearest}"),
        )
        return (*(told if self.family else ()), *(words for fact, words in facts if fact))


def describe_model(shapes: Mapping[str, Shape]) -> ModelDescription:
    """Return what tensors of these names and shapes tell of their model; a guess, for people.

    Args:
        shapes: The shape of every tensor by its name in the checkpoint, wrappers and all.
    """
    names = naming_without_base(shapes).names
    plain = {names[name]: shape for name, shape in shapes.items()}
    family, sizes = family_of(plain), sizes_of(plain)
    return ModelDescription(
        None if family is None else family.title,
        () if family is None else family.marks,
        sizes,
        sum(math.prod(shape) for shape in shapes.values()),
        nearest_model(sizes),
    )
