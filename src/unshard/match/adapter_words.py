"""What an adapter is, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from unshard.match.adapter_parts import AdapterParts, Factors
from unshard.match.adapter_settings import AdapterSettings
from unshard.sizes import counted
from unshard.tensors import DescribedTensor


def in_words(
    parts: AdapterParts, settings: AdapterSettings, tensors: Mapping[str, DescribedTensor]
) -> Iterator[str]:
    """Yield what an adapter is: its kind, rank and scale, and what else was trained."""
    if parts.factors:
        yield _factors_in_words(parts.factors, settings, tensors)
        yield _scale_in_words(parts.factors, settings, tensors)
    if parts.saved:
        yield f"{counted(len(parts.saved), 'parameter')} trained whole"
    for plain, source in parts.tokens.items():
        yield f"{counted((*tensors[source].shape, 0)[0], 'row')} of {plain}"


def _factors_in_words(
    factors: tuple[Factors, ...], settings: AdapterSettings, tensors: Mapping[str, DescribedTensor]
) -> str:
    kind = "DoRA" if any(each.magnitude for each in factors) else "LoRA"
    kind = f"rank-stabilised {kind}" if settings.rank_stabilised else kind
    ranks = sorted({_rank_of(each, settings, tensors) for each in factors})
    return f"{kind} of rank {' and '.join(map(str, ranks))} on {counted(len(factors), 'module')}"


def _rank_of(each: Factors, settings: AdapterSettings, tensors: Mapping[str, DescribedTensor]) -> int:
    """Return the rank of factors; those of several experts together have more rows than that."""
    return settings.rank_of(each.module) or (*tensors[each.a].shape, 0)[0]


def _scale_in_words(
    factors: tuple[Factors, ...], settings: AdapterSettings, tensors: Mapping[str, DescribedTensor]
) -> str:
    if settings.alpha is None:
        return "alpha not known"
    scales = {
        scale.value
        for each in factors
        if (rank := _rank_of(each, settings, tensors)) and (scale := settings.scale_of(each.module, rank))
    }
    numbers = " and ".join(f"{scale:.6g}" for scale in sorted(scales))
    return f"alpha {settings.alpha:g} ({settings.origin}), scale {numbers}"
