"""Which tensors of a checkpoint are one quantised weight, and what is missing of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from unshard.errors import Mismatch
from unshard.recipes.quantised import (
    BNB4,
    BNB8,
    FP8,
    NEEDED,
    PACKED,
    is_of_activations,
    part_of,
)
from unshard.tensors import DescribedTensor

Tensors = Mapping[str, DescribedTensor]


@dataclass(frozen=True, slots=True)
class Group:
    """The tensors of one quantised weight.

    Attributes:
        kind: How it is quantised.
        weight: Its name without quantisation.
        values: The name of the tensor that holds the quantised numbers, or None where there is none.
        parts: The names of all others, by what they are.
    """

    kind: str
    weight: str
    values: str | None
    parts: Mapping[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor that the weight is made of, the values first; scales of activations left out."""
        own = [name for role, name in self.parts.items() if not is_of_activations(role)]
        return (*([] if self.values is None else [self.values]), *own)


def find_groups(tensors: Tensors) -> dict[str, Group]:
    """Return every quantised weight by its name without quantisation, whole or not."""
    kinds: dict[str, str] = {}
    parts: dict[str, dict[str, str]] = {}
    for name in tensors:
        part = part_of(name)
        if part is not None:
            parts.setdefault(part.weight, {})[part.role] = name
            if part.kind == PACKED or part.weight not in kinds:
                kinds[part.weight] = part.kind  # formats of compressed-tensors share names with FP8
    groups = {}
    for weight, found in parts.items():
        values = found.pop("values", weight if weight in tensors else None)
        groups[weight] = Group(kinds[weight], weight, values, found)
    return groups | _lone(tensors, groups)


def _lone(tensors: Tensors, groups: Mapping[str, Group]) -> dict[str, Group]:
    """Return weights of dtypes that only quantised ones have, and without any part beside them."""
    kinds = {group.kind for group in groups.values()}
    taken = {group.values for group in groups.values()}
    found = {}
    for name, tensor in tensors.items():
        kind = lone_kind(name, tensor)
        if kind is not None and name not in taken and (kind in kinds or is_packed(tensor)):
            found[name] = Group(kind, name, name, {})
    return found


def lone_kind(name: str, tensor: DescribedTensor) -> str | None:
    """Return how a weight is quantised by its dtype alone, or None."""
    if not name.endswith("weight") or len(tensor.shape) < 2:
        return None
    if is_packed(tensor):
        return BNB4
    if tensor.dtype.name == "int8":
        return BNB8
    return FP8 if tensor.dtype.name.startswith("float8_e4m3") else None


def is_packed(tensor: DescribedTensor) -> bool:
    """Return whether a tensor lies as 4-bit weights of bitsandbytes do: one column of bytes."""
    return tensor.dtype.name == "uint8" and len(tensor.shape) == 2 and tensor.shape[1] == 1 < tensor.shape[0]


def halves(groups: Mapping[str, Group], tensors: Tensors) -> Iterator[Mismatch]:
    """Yield what is missing of weights, and scales beside weights that are not quantised."""
    for weight, group in groups.items():
        scales = [name for role, name in group.parts.items() if not is_of_activations(role)]
        if group.values is None:
            if scales:
                yield Mismatch("missing", weight, f"`{scales[0]}` without it", f"a weight in {group.kind}")
            continue
        values = tensors[group.values]
        is_plain = values.dtype.kind == "float" and values.dtype.itemsize > 1
        if is_plain and group.values == weight and group.kind != BNB4:  # its bytes may be called bfloat16
            if scales:
                yield Mismatch("dtype", group.values, str(values.dtype), f"numbers that `{scales[0]}` scales")
            continue
        for roles in _needed(group, tensors):
            if not any(role in group.parts for role in roles):
                saw = f"{_described(group, values)} without it"
                yield Mismatch("missing", f"{weight}: its {roles[0]}", saw, f"the {roles[0]} of {group.kind}")


def _needed(group: Group, tensors: Tensors) -> tuple[tuple[str, ...], ...]:
    absmax = group.parts.get("absmax")
    if group.kind == BNB4 and absmax is not None and tensors[absmax].dtype.kind == "int":
        return (*NEEDED[BNB4], ("nested_absmax",), ("nested_quant_map",))
    return NEEDED[group.kind]


def _described(group: Group, values: DescribedTensor) -> str:
    """Return what the values are, with what a packed shape means."""
    text = f"`{group.values}`, {list(values.shape)} {values.dtype}"
    return f"{text} ({packed_meaning(values)})" if is_packed(values) else text


def in_words(tensors: Tensors) -> list[str]:
    """Return how weights are quantised, each way in words: "bitsandbytes 4-bit (nf4), 14 of 21 matrices"."""
    ways: dict[str, int] = {}
    groups = [group for group in find_groups(tensors).values() if group.values is not None]
    for group in groups:
        way = _way(group, tensors)
        ways[way] = ways.get(way, 0) + 1
    taken = {name for group in groups for name in (group.values, *group.parts.values())}
    plain = sum(len(tensor.shape) > 1 for name, tensor in tensors.items() if name not in taken)
    return [f"{way}, {count:,} of {len(groups) + plain:,} matrices" for way, count in ways.items()]


def _way(group: Group, tensors: Tensors) -> str:
    """Return how a weight is quantised, as far as names and dtypes tell."""
    said = [name.rpartition("__")[2] for role, name in group.parts.items() if role == "quant_state"]
    if "nested_absmax" in group.parts:
        said.append("double quantised")
    if group.kind not in (BNB4, BNB8) and group.values is not None:
        said.append(f"as {tensors[group.values].dtype}")
    return f"{group.kind} ({', '.join(said)})" if said else group.kind


def packed_meaning(values: DescribedTensor) -> str:
    """Return what a column of bytes stands for, in words."""
    count = 2 * values.shape[0]
    side = round(count**0.5)
    return f"{count:,} numbers of 4 bits" + (f": {side} x {side}" if side * side == count else "")
