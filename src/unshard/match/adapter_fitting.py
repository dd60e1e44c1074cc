"""Whether an adapter's tensors fit the weights they belong to, and what these become."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from unshard.dtypes import FLOAT32, DType
from unshard.errors import InputError, Mismatch
from unshard.match.adapter_ground import Ground
from unshard.match.adapter_parts import Factors, misfit
from unshard.match.adapter_settings import AdapterSettings, Scale
from unshard.recipes.adapters import CONV1D
from unshard.tensors import Box, DescribedTensor
from unshard.tensors.casting import CastTensor
from unshard.tensors.computed import Computing
from unshard.tensors.merging import CastSource, MergedSource
from unshard.tensors.views import concatenate, narrow, reshape, split, stack, unstack

Tensors = Mapping[str, DescribedTensor]


@dataclass(frozen=True, slots=True)
class Merge:
    """What is merged into one parameter.

    Attributes:
        target: The parameter's name among the weights.
        factors: The names of what is merged into it.
        scale: What the product is multiplied by.
        transposed: Whether the parameter is inputs x outputs; of experts, that of each.
        experts: How many of them it holds, each with factors of its own; 0 where it holds none.
    """

    target: str
    factors: Factors
    scale: Scale
    transposed: bool
    experts: int = 0


def merge_of(
    factors: Sequence[Factors], settings: AdapterSettings, tensors: Tensors, ground: Ground, subject: object
) -> list[Merge]:
    """Return what is merged into which parameters.

    Raises:
        MatchError: Something does not fit; all of it is named.
    """
    require_whole(factors, tensors, subject)
    wrong: list[Mismatch] = []
    stands = _orientations(factors, tensors, ground)
    merges: list[Merge] = []
    for each in factors:
        found = _fitting(each, settings, tensors, ground, stands)
        if isinstance(found, Merge):
            wrong += _rank_unlike(each, found, settings, tensors)
            merges.append(found)
        else:
            wrong.append(found)
    if wrong:
        hint = "Give the model that training started from, and the adapter's own configuration."
        raise misfit(subject, wrong, "holds an adapter that does not fit", hint)
    return merges


def require_whole(factors: Sequence[Factors], tensors: Tensors, subject: object) -> None:
    """Raise unless factors are matrices that can be multiplied.

    Raises:
        MatchError: They are not; all of them are named.
    """
    wrong = [mismatch for each in factors for mismatch in _malformed(each, tensors)]
    if wrong:
        raise misfit(subject, wrong, "holds tensors of an adapter that are not whole")


def _malformed(each: Factors, tensors: Tensors) -> Iterator[Mismatch]:
    """Yield what is wrong with factors by themselves."""
    a, b = tensors[each.a].shape, tensors[each.b].shape
    for name, shape in ((each.a, a), (each.b, b)):
        if len(shape) < 2 or 0 in shape:
            yield Mismatch("shape", name, f"shape {list(shape)}", "a whole matrix, as it is once gathered")
            return
    if a[0] != b[1]:
        yield Mismatch("shape", each.b, f"shape {list(b)}", f"{a[0]} columns, as `{each.a}` has rows")
    if each.magnitude is not None and math.prod(tensors[each.magnitude].shape) != b[0]:
        yield Mismatch(
            "shape", each.magnitude, f"shape {list(tensors[each.magnitude].shape)}", f"{b[0]} elements"
        )
    for name in each.names:
        if tensors[name].dtype.kind != "float":
            yield Mismatch("dtype", name, str(tensors[name].dtype), "floating numbers")


def _orientations(factors: Sequence[Factors], tensors: Tensors, ground: Ground) -> set[bool]:
    """Return which ways weights stand that are not square, and so tell it."""
    found = set()
    for each in factors:
        weight = _weight_of(each, ground)
        if weight is not None and CONV1D.search(each.module):
            plain, turned = _ways(weight.shape, tensors[each.a].shape, tensors[each.b].shape)
            if plain != turned:
                found.add(turned)
    return found


def _weight_of(each: Factors, ground: Ground) -> DescribedTensor | None:
    plain = f"{each.module}.weight"
    return ground.tensors.get(ground.names.get(plain, plain))


def _ways(weight: Sequence[int], a: Sequence[int], b: Sequence[int]) -> tuple[bool, bool]:
    """Return whether a product fits a weight as it is, and whether it does transposed."""
    inputs, outputs = math.prod(a[1:]), b[0]
    shape = (weight[0], math.prod(weight[1:]))
    return shape == (outputs, inputs), len(weight) == 2 and shape == (inputs, outputs)


def _fitting(
    each: Factors, settings: AdapterSettings, tensors: Tensors, ground: Ground, stands: set[bool]
) -> Merge | Mismatch:
    """Return what the factors of one module become, or what does not fit."""
    plain = f"{each.module}.weight"
    target = ground.names.get(plain, plain)
    weight = ground.tensors.get(target)
    if weight is None:
        return _fitting_experts(each, settings, tensors, ground)
    a, b = tensors[each.a].shape, tensors[each.b].shape
    fits, turned = _ways(weight.shape, a, b) if len(weight.shape) > 1 else (False, False)
    if weight.dtype.kind != "float" or weight.dtype.itemsize < 2:
        return Mismatch("dtype", target, str(weight.dtype), "a weight that is not quantised")
    if not (fits or turned):
        product = f"{[b[0], *a[1:]]}, which is what its adapter adds"
        return Mismatch("shape", target, f"shape {list(weight.shape)}", product)
    if fits and turned:
        turned = _stands_transposed(each, settings, stands)
    scale = settings.scale_of(each.module, a[0])
    assert scale is not None
    return Merge(target, each, scale, turned)


def _stands_transposed(each: Factors, settings: AdapterSettings, stands: set[bool]) -> bool:
    """Return which way a square weight stands: as the configuration says, or its like."""
    if not CONV1D.search(each.module):
        return "lora_embedding" in each.a
    return settings.transposed is True if settings.transposed is not None else stands == {True}


def _fitting_experts(
    each: Factors, settings: AdapterSettings, tensors: Tensors, ground: Ground
) -> Merge | Mismatch:
    """Return what factors of all experts together become, which belong to a parameter without a module.

    Which of the module's parameters it is, shapes tell: nothing of the names does.
    """
    a, b = tensors[each.a].shape, tensors[each.b].shape
    plain = f"{each.module}.weight"
    module = ground.names.get(plain, plain).removesuffix(".weight")
    found = []
    for name, weight in ground.tensors.items():
        is_own = name.rpartition(".")[0] == module and len(weight.shape) == 3
        if is_own and weight.shape[0] and a[0] % weight.shape[0] == 0:
            for turned, shape in ((False, (b[0], a[1])), (True, (a[1], b[0]))):
                if weight.shape[1:] == shape:
                    found.append((name, turned, weight.shape[0]))
    if len(found) != 1:
        fitting = ", ".join(f"`{name}`" for name, *_ in found) or "no parameter"
        expected = f"those of one parameter of `{module}`: {fitting} fits"
        return Mismatch("shape", each.a, f"factors {list(a)} and {list(b)}", expected)
    name, turned, experts = found[0]
    scale = settings.scale_of(each.module, a[0] // experts)
    assert scale is not None
    return Merge(name, each, scale, turned, experts)


def _rank_unlike(
    each: Factors, merge: Merge, settings: AdapterSettings, tensors: Tensors
) -> Iterable[Mismatch]:
    """Yield where the rank of factors is not the one that files tell: then neither is the scale."""
    rank = tensors[each.a].shape[0] // (merge.experts or 1)
    told = settings.rank_of(each.module)
    if told is not None and told != rank:
        yield Mismatch("shape", each.a, f"rank {rank}", f"rank {told}, as {settings.origin} says")


def merged_tensor(
    merge: Merge, weight: DescribedTensor, tensors: Tensors, *, as_float32: bool, computing: Computing
) -> DescribedTensor:
    """Return what a parameter becomes: as float32, which is cast later, or in the parameter's own dtype."""
    a, b = tensors[merge.factors.a], tensors[merge.factors.b]
    if merge.experts:
        merged = _merged_experts(merge, weight, a, b, computing)
    else:
        magnitude = None if merge.factors.magnitude is None else tensors[merge.factors.magnitude]
        source = MergedSource(weight, a, b, merge.scale.value, merge.transposed, magnitude)
        merged = computing(source, weight.shape, FLOAT32)
    return merged if as_float32 else cast_to(merged, weight.dtype, computing)


def cast_to(tensor: DescribedTensor, dtype: DType, computing: Computing) -> DescribedTensor:
    """Return a tensor in another floating dtype, of which views can be made."""
    if tensor.dtype == dtype:
        return tensor
    return computing(CastSource(CastTensor(tensor, dtype)), tensor.shape, dtype)


def _merged_experts(
    merge: Merge, weight: DescribedTensor, a: DescribedTensor, b: DescribedTensor, computing: Computing
) -> DescribedTensor:
    """Return the experts, each with its own factors merged.

    The rows of the first factor are those of one expert after the other, the columns of the second one
    the first of every expert, then the second of every expert.

    Source:
        peft src/peft/tuners/lora/layer.py (`ParamWrapper.get_delta_weight`).
    """
    experts, rank = merge.experts, a.shape[0] // merge.experts
    firsts = split(a, 0, [rank] * experts)
    seconds = unstack(reshape(b, (b.shape[0], rank, experts)), 2)
    merged = [
        computing(MergedSource(*each, merge.scale.value, merge.transposed), each[0].shape, FLOAT32)
        for each in zip(unstack(weight, 0), firsts, seconds, strict=True)
    ]
    return stack(merged, 0)


def with_rows(
    weight: DescribedTensor,
    rows: DescribedTensor,
    indices: Sequence[int],
    subject: object,
    source: str,
    *,
    computing: Computing,
) -> DescribedTensor:
    """Return a weight with some of its rows replaced, in the wider of the two dtypes.

    Raises:
        InputError: The rows do not fit, or there are not as many as indices.
    """
    fits = len(weight.shape) == 2 and rows.shape == (len(indices), weight.shape[1])
    if not fits or len(set(indices)) < len(indices) or max(indices, default=0) >= weight.shape[0]:
        raise InputError(
            subject,
            f"holds trained rows that do not fit: `{source}`",
            saw=f"shape {list(rows.shape)}, for {len(set(indices))} rows up to {max(indices, default=0)}",
            expected=f"a row for each of them, in an embedding of shape {list(weight.shape)}",
        )
    wide = max(weight.dtype, rows.dtype, key=lambda dtype: dtype.itemsize)
    weight, rows = cast_to(weight, wide, computing), cast_to(rows, wide, computing)
    parts: list[DescribedTensor] = []
    begin, width = 0, weight.shape[1]
    for position, index in sorted(enumerate(indices), key=lambda pair: pair[1]):
        if begin < index:
            parts.append(narrow(weight, Box((begin, 0), (index, width))))
        parts.append(narrow(rows, Box((position, 0), (position + 1, width))))
        begin = index + 1
    if begin < weight.shape[0]:
        parts.append(narrow(weight, Box((begin, 0), (weight.shape[0], width))))
    return concatenate(parts, 0)
