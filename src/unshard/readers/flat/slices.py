"""Flat parameters with names: every rank's range of every parameter, under the parameter's name.

Ranges of one parameter follow one another as the ranks do. Each is a view of the rank's range of a flat
parameter, so that where it begins there is known, too, and shows whether it really follows the one
before. Their lengths together are the parameter's; the base tells its shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unshard.checkpoint import KnownShapes, Shaped
from unshard.errors import BaseModelError
from unshard.readers.flat.vectors import Vector
from unshard.readers.rendering import cut, listed
from unshard.tensors import DescribedTensor

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FlatSlices:
    """Parameters of which all elements are there, in row-major order, and not the shapes.

    Attributes:
        subject: The folder they are in.
        vectors: The elements of every parameter, by its name.
    """

    subject: Path
    vectors: Mapping[str, Vector]

    def shaped(self, known: KnownShapes) -> Shaped:
        """Return the parameters in the shapes of the base.

        Raises:
            BaseModelError: The base does not know some of them, or as larger or smaller.
        """
        counts = {name: vector.count for name, vector in self.vectors.items()}
        shapes = self._with_twins(known.named({name: (count,) for name, count in counts.items()}))
        wrong = [f"`{cut(name)}` is not in it" for name in counts if name not in shapes]
        wrong += [
            f"`{cut(name)}` has {counts[name]:,} elements, not {math.prod(shape):,} as {list(shape)}"
            for name, shape in shapes.items()
            if math.prod(shape) != counts[name]
        ]
        if wrong:
            raise BaseModelError(
                known.said_by,
                f"does not fit the parameters in {self.subject.name}, whose shapes only a base tells",
                saw=listed(wrong),
                hint="Name the model that training started from with --base.",
            )
        return Shaped({name: vector.part(0, shapes[name]) for name, vector in self.vectors.items()})

    def _with_twins(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Return shapes, and those of further names of the same elements, which FSDP kept once."""
        twins = {self.vectors[name].stretches: shape for name, shape in shapes.items()}
        found = {name: shapes.get(name, twins.get(v.stretches)) for name, v in self.vectors.items()}
        return {name: shape for name, shape in found.items() if shape is not None}

    def inferred(self) -> Shaped:
        """Refuse: a range of elements does not show the shape of the whole.

        Raises:
            BaseModelError: Always.
        """
        raise BaseModelError(
            self.subject,
            "holds ranges of flattened parameters, which do not show their shapes",
            saw=listed([f"`{cut(n)}` of {v.count:,} elements" for n, v in self.vectors.items()]),
            expected="a base that tells the shapes",
            hint="Name the model that training started from with --base.",
        )

    def as_found(self) -> Mapping[str, DescribedTensor]:
        """Return the parameters as vectors."""
        return {name: vector.part(0, (vector.count,)) for name, vector in self.vectors.items()}
