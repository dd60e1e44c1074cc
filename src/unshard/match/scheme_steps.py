"""The steps between a naming scheme and Hugging Face's files, taken with tensors: views, nothing is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unshard.base.head_counts import HeadCounts
from unshard.recipes.schemes.rows import (
    Apart,
    Fold,
    Heads,
    Join,
    Order,
    Part,
    Rotary,
    Stack,
    Step,
    Swap,
    Together,
    Unfold,
    Unstack,
)
from unshard.tensors import DescribedTensor
from unshard.tensors.views import concatenate, permute, reshape, split, stack, unstack

_MOST_EXPERTS = 1 << 12


class MisfitError(Exception):
    """A tensor has a shape that a step cannot have given it; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Walked:
    """Tensors after the steps of a row.

    Attributes:
        columns: For every name on the other side, its tensor; or one for every expert, in their order.
        sizes: The elements of a head that was looked at, as its rows tell.
    """

    columns: list[list[DescribedTensor]]
    sizes: frozenset[int]


def needs_heads(step: Step) -> bool:
    """Return whether a step asks how many heads there are."""
    return isinstance(step, Rotary | Apart | Together)


def walk(columns: Sequence[list[DescribedTensor]], steps: Sequence[Step], heads: HeadCounts | None) -> Walked:
    """Return what steps make of tensors.

    Args:
        columns: For every name of a row, its tensor; or one for every expert.
        steps: The steps, the first one first.
        heads: How many heads there are; None only where no step asks for them.

    Raises:
        MisfitError: A shape does not fit.
    """
    current, sizes = [list(column) for column in columns], set[int]()
    for step in steps:
        try:
            current = _taken(current, step, heads, sizes)
        except ValueError as error:  # of a view: shapes or dtypes that do not go together
            raise MisfitError(str(error)) from error
    return Walked(current, frozenset(sizes))


Columns = list[list[DescribedTensor]]


def _taken(columns: Columns, step: Step, heads: HeadCounts | None, sizes: set[int]) -> Columns:
    match step:
        case Rotary():
            assert heads is not None
            return [
                column if kind is None else [_rotary(t, kind, step, heads, sizes) for t in column]
                for column, kind in zip(columns, step.heads, strict=True)
            ]
        case Apart():
            assert heads is not None
            return _apart(columns[0], step.order, heads, sizes)
        case Together():
            assert heads is not None
            return [[_together(list(row), step.order, heads, sizes) for row in zip(*columns, strict=True)]]
        case Join():
            return [[concatenate(list(row), _dim(row[0], step.dim)) for row in zip(*columns, strict=True)]]
        case Part():
            parts = [_equal_parts(tensor, step) for tensor in columns[0]]
            return [list(column) for column in zip(*parts, strict=True)]
        case Unstack():
            return [_unstacked(tensor) for (tensor,) in columns]
        case Stack():
            return [[stack(column, 0)] for column in columns]
        case Unfold():
            return [[_unfolded(tensor, heads) for tensor in column] for column in columns]
        case Fold():
            return [[_folded(tensor) for tensor in column] for column in columns]
        case Swap():
            return [[_swapped(tensor, step) for tensor in column] for column in columns]


def _dim(tensor: DescribedTensor, dim: int) -> int:
    if dim >= len(tensor.shape):
        raise MisfitError(f"{list(tensor.shape)} has no dimension {dim}")
    return dim


def _head_size(tensor: DescribedTensor, count: int, sizes: set[int], *, paired: bool) -> int:
    """Return the rows of one of `count` heads that make up a tensor.

    Raises:
        MisfitError: They do not; or cannot rotate in pairs.
    """
    rows = tensor.shape[_dim(tensor, 0)]
    size = rows // count
    if size * count != rows or not size or (paired and size % 2):
        what = "heads of an even number of rows" if paired else "heads"
        raise MisfitError(f"{rows} rows are not {count} {what}")
    sizes.add(size)
    return size


def _rotary(
    tensor: DescribedTensor, kind: Heads, step: Rotary, heads: HeadCounts, sizes: set[int]
) -> DescribedTensor:
    """Return a tensor with the rows of every head in the other order.

    Source:
        transformers 4.57, models/llama/convert_llama_weights_to_hf.py (`permute`).
    """
    count = heads.queries if kind == "query" else heads.keys
    size = _head_size(tensor, count, sizes, paired=True)
    inner = (size // 2, 2) if step.halves else (2, size // 2)
    rest = tensor.shape[1:]
    order = (0, 2, 1, *range(3, 3 + len(rest)))
    return reshape(permute(reshape(tensor, (count, *inner, *rest)), order), tensor.shape)


def _apart(column: list[DescribedTensor], order: Order, heads: HeadCounts, sizes: set[int]) -> Columns:
    """Return the queries, the keys and the values of tensors that hold all three."""
    shared = heads.queries // heads.keys
    total = heads.queries + 2 * heads.keys
    made: Columns = [[], [], []]
    for tensor in column:
        size = _head_size(tensor, total, sizes, paired=False)
        if order == "blocks":
            parts = split(tensor, 0, [size * n for n in (heads.queries, heads.keys, heads.keys)])
        else:
            rest = tensor.shape[1:]
            groups = reshape(tensor, (heads.keys, (shared + 2) * size, *rest))
            parts = [
                reshape(part, (heads.keys * part.shape[1], *rest))
                for part in split(groups, 1, [shared * size, size, size])
            ]
        for place, part in zip(made, parts, strict=True):
            place.append(part)
    return made


def _together(
    parts: list[DescribedTensor], order: Order, heads: HeadCounts, sizes: set[int]
) -> DescribedTensor:
    """Return queries, keys and values as one tensor."""
    counts = (heads.queries, heads.keys, heads.keys)
    found = {_head_size(part, count, sizes, paired=False) for part, count in zip(parts, counts, strict=True)}
    if len(found) > 1:
        raise MisfitError(f"heads of {len(found)} sizes: {sorted(found)}")
    if order == "blocks":
        return concatenate(parts, 0)
    groups = [reshape(part, (heads.keys, part.shape[0] // heads.keys, *part.shape[1:])) for part in parts]
    whole = concatenate(groups, 1)
    return reshape(whole, (whole.shape[0] * whole.shape[1], *whole.shape[2:]))


def _equal_parts(tensor: DescribedTensor, step: Part) -> list[DescribedTensor]:
    length = tensor.shape[_dim(tensor, step.dim)]
    if length % step.count:
        raise MisfitError(f"{length} along dimension {step.dim} are not {step.count} equal parts")
    return split(tensor, step.dim, [length // step.count] * step.count)


def _unstacked(tensor: DescribedTensor) -> list[DescribedTensor]:
    experts = tensor.shape[_dim(tensor, 0)]
    if not 0 < experts <= _MOST_EXPERTS:
        raise MisfitError(f"{experts} experts in one layer")
    return unstack(tensor, 0)


def _unfolded(tensor: DescribedTensor, heads: HeadCounts | None) -> DescribedTensor:
    experts = None if heads is None else heads.experts
    if experts is None:
        raise MisfitError("nothing tells how many experts it holds")
    length = tensor.shape[_dim(tensor, 0)]
    if experts <= 0 or length % experts:
        raise MisfitError(f"{length} rows are not those of {experts} experts")
    return reshape(tensor, (experts, length // experts, *tensor.shape[1:]))


def _folded(tensor: DescribedTensor) -> DescribedTensor:
    _dim(tensor, 1)
    return reshape(tensor, (tensor.shape[0] * tensor.shape[1], *tensor.shape[2:]))


def _swapped(tensor: DescribedTensor, step: Swap) -> DescribedTensor:
    order = list(range(len(tensor.shape)))
    _dim(tensor, max(step.first, step.second))
    order[step.first], order[step.second] = step.second, step.first
    return permute(tensor, order)
