"""Flat parameters without names: which parameters each of them holds, and in which order.

A unit is a module that FSDP wrapped. Its flat parameter holds the parameters below the module that are
not below another unit inside it, in the order in which the model registers them, one after the other,
those that are shared once. The base tells names and shapes. The order is told by the state dict, which
lists all modules, or, where somebody rebuilt it before saving, by the class of the model.

Nothing in a vector shows where one parameter ends. So all of it must agree: every parameter has its
module and its unit, and every unit is as long as its parameters together.

Source:
    torch/distributed/fsdp/_flat_param.py (`_init_flat_param_and_metadata`), _init_utils.py
    (`_get_orig_params`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unshard.checkpoint import KnownShapes, Shaped
from unshard.errors import BaseModelError
from unshard.findings import Finding, finding
from unshard.readers.flat.module_order import agrees, in_order_of, prefixes
from unshard.readers.flat.ranges import unit_of
from unshard.readers.flat.unit_layout import PACKED, layout_of
from unshard.readers.flat.vectors import Vector
from unshard.readers.rendering import cut, listed
from unshard.tensors import DescribedTensor

Shape = tuple[int, ...]
Parameters = Mapping[str, Shape]

_SAVE = "Where training still runs, save a full state dict instead: StateDictType.FULL_STATE_DICT"


@dataclass(frozen=True, slots=True)
class FlatUnits:
    """Flat parameters of which only the base can tell what they hold.

    Attributes:
        subject: The folder they are in.
        vectors: Them, by name.
        others: Names of tensors that the checkpoint holds whole.
        modules: Names of the model's modules in the order in which it registers them, or nothing.
        slices: Tensors of one dimension that may be a rank's slices of parameters, and then are no use.
        alignments: How many elements parameters may be aligned to.
    """

    subject: Path
    vectors: Mapping[str, Vector]
    others: frozenset[str]
    modules: tuple[str, ...] = ()
    slices: Mapping[str, DescribedTensor] = field(default_factory=dict)
    alignments: tuple[int, ...] = PACKED

    def shaped(self, known: KnownShapes) -> Shaped:
        """Return the parameters in the vectors.

        Raises:
            BaseModelError: The base's parameters are not those of the vectors, or their order is unknown.
        """
        orders = list(self._orders(known))
        if not orders:
            raise self._unordered(known.said_by)
        for order, findings in orders:
            units = self._members(order)
            shapes = {name: [order[member] for member in units[name]] for name in units}
            starts = layout_of(self.vectors, shapes, self.alignments)
            if starts is not None and sum(map(len, units.values())) == len(order):
                tensors = self._tensors(units, order, starts) | self._no_slices(known, order)
                return Shaped(tensors, findings=findings)
        raise self._unlike(orders[0][0], known.said_by)

    def inferred(self) -> Shaped:
        """Refuse: a vector does not show what it holds.

        Raises:
            BaseModelError: Always.
        """
        vectors = [f"`{cut(name)}` of {vector.count:,} elements" for name, vector in self.vectors.items()]
        raise BaseModelError(
            self.subject,
            "holds flat parameters, without the names and shapes of the parameters in them",
            saw=listed(vectors),
            expected="a base that tells both",
            hint=f"Name the model that training started from with --base. {_SAVE}.",
        )

    def as_found(self) -> Mapping[str, DescribedTensor]:
        """Return the flat parameters themselves, and what may be slices of them."""
        vectors = {name: vector.part(0, (vector.count,)) for name, vector in self.vectors.items()}
        return vectors | dict(self.slices)

    def _no_slices(self, known: KnownShapes, ordered: Parameters) -> dict[str, DescribedTensor]:
        """Return those tensors of one dimension that are whole, and neither parameters nor shared ones."""
        others = {name: tensor for name, tensor in self.slices.items() if name not in ordered}
        shapes = known.named({name: tensor.shape for name, tensor in self.slices.items()})
        return {n: tensor for n, tensor in others.items() if shapes.get(n, tensor.shape) == tensor.shape}

    def _orders(self, known: KnownShapes) -> Iterator[tuple[Parameters, tuple[Finding, ...]]]:
        """Yield the parameters that the vectors may hold, in order, and what is to be told of that."""
        published = known.parameters()
        for prefix in prefixes(self.modules, published):
            named = self._without_others(published, prefix)
            if (ordered := in_order_of(self.modules, named)) is not None:
                yield ordered, ()
        registered = known.registered()
        if registered is None:
            return
        if self.modules:
            for prefix in prefixes(self.modules, registered):
                named = self._without_others(registered, prefix)
                if agrees(self.modules, named):
                    yield named, ()
        elif registered.keys() == published.keys():
            # Otherwise there are two ways to hold the model in memory, and no telling them apart.
            told = finding(
                "U120",
                subject=self.subject.name,
                saw=f"no names of modules in the files; the order is that of {known.said_by}",
                remedy="It is right if the class registered its modules in that order when it was trained.",
            )
            yield self._without_others(registered, ""), (told,)

    def _without_others(self, parameters: Parameters, prefix: str) -> dict[str, Shape]:
        """Return parameters under the checkpoint's names, without those that it holds whole."""
        named = {prefix + name: shape for name, shape in parameters.items()}
        return {name: shape for name, shape in named.items() if name not in self.others}

    def _members(self, ordered: Parameters) -> dict[str, list[str]]:
        """Return the parameters in every flat parameter: of all units around one the innermost."""
        flats = {unit_of(name): name for name in self.vectors}
        members: dict[str, list[str]] = {name: [] for name in self.vectors}
        for parameter in ordered:
            unit = parameter
            while unit:
                unit = unit.rpartition(".")[0]
                if unit in flats:
                    members[flats[unit]].append(parameter)
                    break
        return members

    def _tensors(
        self,
        units: Mapping[str, Sequence[str]],
        ordered: Parameters,
        starts: Mapping[str, Sequence[int]],
    ) -> dict[str, DescribedTensor]:
        tensors = {
            member: self.vectors[name].part(start, ordered[member])
            for name, members in units.items()
            for member, start in zip(members, starts[name], strict=True)
        }
        return {name: tensors[name] for name in ordered}

    def _unlike(self, ordered: Parameters, said_by: str) -> BaseModelError:
        units = self._members(ordered)
        wrong = []
        for name, members in units.items():
            wanted, count = sum(math.prod(ordered[m]) for m in members), self.vectors[name].count
            if wanted != count:
                below = f"the {len(members)} parameters below it {wanted:,}"
                wrong.append(f"`{cut(name)}` has {count:,} elements, and {below}")
        housed = {member for members in units.values() for member in members}
        wrong += [f"`{cut(name)}` is below no unit" for name in ordered if name not in housed]
        return BaseModelError(
            said_by,
            f"has other parameters than the {len(self.vectors)} flat parameters in {self.subject.name} hold",
            saw=listed(wrong) or "lengths that fit in several ways",
            expected="equal lengths, for nothing else tells what a flat parameter holds",
            hint=f"Name the model that training started from with --base. {_SAVE}.",
        )

    def _unordered(self, said_by: str) -> BaseModelError:
        saw = f"names and shapes from {said_by}, and no names of modules in the files"
        hint = 'The class of the model may tell it: pip install "unshard[hf]"'
        if self.modules:
            saw = f"{len(self.modules)} modules in the files, not those of {said_by}"
            hint = "The base is of another model: name the one that training started from with --base"
        return BaseModelError(
            self.subject,
            "holds flat parameters, and the order of the parameters in them is not known",
            saw=saw,
            expected="the order in which the model registers them",
            hint=f"{hint}. {_SAVE}.",
        )
