"""Tensors of one kind, taken together: what a model repeats in every layer is told once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from unshard.measures import Delta
from unshard.report.contents import ReportedTensor

# A model has some tens of kinds. Names that were made to be all different are put together beyond.
_MOST_KINDS = 200
_OTHERS = "others"


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a model a tensor is.

    Attributes:
        stack: What is repeated, `model.layers`; "" where nothing is.
        layer: The number of the layer, or None outside of them.
        module: The rest of the name, with `*` for further numbers, as of experts.
    """

    stack: str
    layer: int | None
    module: str


def place_of(name: str) -> Place:
    """Return where in a model a tensor of this name is."""
    words = name.split(".")
    at = next((i for i, word in enumerate(words) if _is_number(word)), None)
    if at is None:
        return Place("", None, name)
    rest = ("*" if _is_number(word) else word for word in words[at + 1 :])
    return Place(".".join(words[:at]), int(words[at]), ".".join(rest))


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) < 7


@dataclass(frozen=True, slots=True)
class Kind:
    """All tensors of one kind.

    Attributes:
        name: Their name, with `*` for every number.
        tensors: Themselves, in order.
    """

    name: str
    tensors: tuple[ReportedTensor, ...]

    @property
    def nbytes(self) -> int:
        """The bytes that they take together."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def elements(self) -> int:
        """How many elements they have together."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Their dtypes, the one of most tensors first."""
        return tuple(dtype for dtype, _ in Counter(tensor.dtype for tensor in self.tensors).most_common())

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Their shapes, that of most tensors first."""
        return tuple(shape for shape, _ in Counter(tensor.shape for tensor in self.tensors).most_common())

    @property
    def sources(self) -> tuple[str, ...]:
        """The kinds of names they came from, where these are other ones; the commonest first."""
        counts = Counter(kind_of(source) for tensor in self.tensors for source in tensor.sources)
        return tuple(kind for kind, _ in counts.most_common() if kind != self.name)

    @property
    def delta(self) -> Delta | None:
        """How far they are, as one long tensor, from what they are compared with."""
        return joined(tensor.delta for tensor in self.tensors if tensor.delta is not None)


def kind_of(name: str) -> str:
    """Return a name with `*` for every number: what tensors of all layers have in common."""
    place = place_of(name)
    if place.layer is None:
        return place.module
    return ".".join(part for part in (place.stack, "*", place.module) if part)


def kinds_of(tensors: Iterable[ReportedTensor]) -> tuple[Kind, ...]:
    """Return the kinds of tensors in the order in which they first come, those beyond many as one."""
    groups: dict[str, list[ReportedTensor]] = {}
    for tensor in tensors:
        name = kind_of(tensor.name)
        groups.setdefault(name if name in groups or len(groups) < _MOST_KINDS else _OTHERS, []).append(tensor)
    return tuple(Kind(name, tuple(group)) for name, group in groups.items())


def joined(deltas: Iterable[Delta]) -> Delta | None:
    """Return several deltas as that of one long tensor; None of none."""
    found = list(deltas)
    if not found:
        return None
    return Delta(
        count=sum(delta.count for delta in found),
        changed=sum(delta.changed for delta in found),
        survived=sum(delta.survived for delta in found),
        dot=math.fsum(delta.dot for delta in found),
        norm=_norm(delta.norm for delta in found),
        other_norm=_norm(delta.other_norm for delta in found),
        distance=_norm(delta.distance for delta in found),
        largest=max(delta.largest for delta in found),
    )


def _norm(norms: Iterator[float]) -> float:
    return math.hypot(*norms)


def by_stack(tensors: Sequence[ReportedTensor]) -> dict[str, dict[str, dict[int, list[ReportedTensor]]]]:
    """Return tensors of layers by stack, module and layer, in the order in which they first come."""
    stacks: dict[str, dict[str, dict[int, list[ReportedTensor]]]] = {}
    for tensor in tensors:
        place = place_of(tensor.name)
        if place.layer is not None:
            modules = stacks.setdefault(place.stack, {})
            modules.setdefault(place.module, {}).setdefault(place.layer, []).append(tensor)
    return stacks


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Return names without `.weight`, where that leaves them apart from all others."""
    known = dict.fromkeys(names)
    return {
        name: name if (short := name.removesuffix(".weight")) in known else short or name for name in known
    }
