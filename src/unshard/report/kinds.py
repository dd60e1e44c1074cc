"""Tensors of one kind, taken together: what a model repeats in every layer is told once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from unshard.measures import Delta
from unshard.recipes.modules import module_place
from unshard.report.contents import ReportedTensor

# A model has some tens of kinds. Names that were made to be all different are put together beyond.
_MOST_KINDS = 200
_OTHERS = "others"


@dataclass(frozen=True, slots=True)
class Kind:
    """All tensors of one kind.

    Attributes:
        name: Their name, with `*` for the numbers of layers and experts.
        tensors: Themselves, in their order.
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
    """Return a name with `*` for the numbers of layers and experts: what tensors of all layers share."""
    place = module_place(name)
    return place.kind if place.layer is None else f"{place.stack}.*.{place.kind}"


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
        place = module_place(tensor.name)
        if place.layer is not None:
            modules = stacks.setdefault(place.stack, {})
            modules.setdefault(place.kind, {}).setdefault(place.layer, []).append(tensor)
    return stacks


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Return names without `.weight`, where that leaves them apart from all others."""
    known = dict.fromkeys(names)
    return {
        name: name if (short := name.removesuffix(".weight")) in known else short or name for name in known
    }
