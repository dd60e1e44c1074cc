"""Which of the base's tensors a tensor holds, where it is not the one of its own name.

A fine-tuned tensor stays close to the one it began as: its cosine is 0.9 and more, and that of two
tensors with nothing in common is about 1 / sqrt(n) for n elements. So a tensor that is far from its own
is held against others of its shape: those of the same layer, and those of its kind in other layers.

Memory:
    256 numbers for every tensor of the base that is looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

from unshard.checks.module_kinds import Place, place_of
from unshard.checks.values_orders import ALIKE
from unshard.tensors import Tensor, element_count
from unshard.tensors.sampling import cosine_of, read_numbers, read_sample

if TYPE_CHECKING:
    import numpy as np

# 256 numbers choose the best of all others, 4096 decide.
_CHOOSING, _DECIDING = (32, 8), (64, 64)
# Vectors, such as the weights of norms, are alike in all layers, so their cosines tell nothing. One that
# holds another's numbers is many times closer to them than to its own.
_CLOSER = 4.0
_LONGEST_VECTOR = 1 << 16
_SHORTEST_VECTOR = 16
_MOST_STRANGERS = 1024


class PlacesOfBase:
    """The base's tensors, by what a tensor could have been exchanged with.

    Attributes:
        base: The tensors, by name.
    """

    def __init__(self, base: Mapping[str, Tensor]) -> None:
        self.base = base
        self._samples: dict[str, np.ndarray] = {}

    @cached_property
    def _at(self) -> dict[str, Place]:
        return {name: place_of(name) for name in self.base}

    @cached_property
    def _neighbours(self) -> dict[tuple[object, ...], list[str]]:
        """Names by what neighbours share: their place but for the kind, or their kind but for a number."""
        found: dict[tuple[object, ...], list[str]] = {}
        for name, at in self._at.items():
            for key in _keys(at):
                found.setdefault(key, []).append(name)
        return found

    @cached_property
    def _of_shape(self) -> dict[tuple[int, ...], list[str]]:
        found: dict[tuple[int, ...], list[str]] = {}
        for name, tensor in self.base.items():
            found.setdefault(tensor.shape, []).append(name)
        return found

    def candidates(self, name: str, shape: tuple[int, ...]) -> list[str]:
        """Return the other tensors of this shape in the same layer, and of the same kind elsewhere."""
        found = (other for key in _keys(place_of(name)) for other in self._neighbours.get(key, ()))
        return [each for each in dict.fromkeys(found) if each != name and self.base[each].shape == shape]

    def strangers(self, name: str, shape: tuple[int, ...]) -> list[str]:
        """Return the tensors of this shape that are of another kind and in another layer; not too many."""
        near = {name, *self.candidates(name, shape)}
        found = (each for each in self._of_shape.get(shape, ()) if each not in near)
        return list(islice(found, _MOST_STRANGERS))

    def held_by(self, name: str, ours: Tensor) -> tuple[str, float, float] | None:
        """Return whose numbers a tensor holds, its cosine with that one, and with its own; None if nobody's.

        Those that are near are looked at first, then all others of its shape.

        Raises:
            DamagedFileError: A file is shorter than it should be, or has changed.
        """
        found = self._held_by(name, ours, self.candidates(name, ours.shape))
        return found or self._held_by(name, ours, self.strangers(name, ours.shape))

    def _held_by(self, name: str, ours: Tensor, candidates: list[str]) -> tuple[str, float, float] | None:
        if not candidates:
            return None
        if len(ours.shape) == 1:
            return self._vector_held_by(name, ours, candidates)
        sample = read_sample(ours, *_CHOOSING)
        best = max(candidates, key=lambda each: cosine_of(sample, self._sample(each)))
        large = read_sample(ours, *_DECIDING)
        straight = cosine_of(large, read_sample(self.base[name], *_DECIDING))
        crossed = cosine_of(large, read_sample(self.base[best], *_DECIDING))
        return (best, crossed, straight) if crossed > max(ALIKE, straight + ALIKE / 2) else None

    def _vector_held_by(
        self, name: str, ours: Tensor, candidates: list[str]
    ) -> tuple[str, float, float] | None:
        import numpy as np

        count = element_count(ours)
        if not _SHORTEST_VECTOR <= count <= _LONGEST_VECTOR:
            return None
        numbers, own = read_numbers(ours, 0, count), read_numbers(self.base[name], 0, count)
        distance = {
            each: float(np.linalg.norm(numbers - read_numbers(self.base[each], 0, count)))
            for each in candidates
        }
        best = min(distance, key=distance.__getitem__)
        if not distance[best] * _CLOSER < float(np.linalg.norm(numbers - own)):
            return None
        other = read_numbers(self.base[best], 0, count)
        return best, cosine_of(numbers, other), cosine_of(numbers, own)

    def _sample(self, name: str) -> np.ndarray:
        import numpy as np

        if name not in self._samples:
            self._samples[name] = read_sample(self.base[name], *_CHOOSING).astype(np.float32)
        return self._samples[name]


def _keys(at: Place) -> Iterable[tuple[object, ...]]:
    yield at.stem, at.numbers
    for index in range(len(at.numbers)):
        yield at.kind, *at.numbers[:index], None, *at.numbers[index + 1 :]
