"""The weights that an adapter was trained beside: in the checkpoint, or in the base."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from unshard.base import Base
from unshard.base.weights import describe_base_weights
from unshard.checkpoint import Checkpoint
from unshard.errors import BaseModelError, Mismatch
from unshard.match.adapter_parts import AdapterParts, misfit
from unshard.match.experts import possible_experts, recipes_to_try, regroup
from unshard.match.restored import Restored
from unshard.recipes.adapters import CONFIG
from unshard.recipes.quantised import quantisation_kind
from unshard.recipes.renamings import renamings
from unshard.tensors import DescribedTensor

# What stands before every name where an adapter was put on more, or on less, than the base's own class.
_PREFIXES = ("model.", "module.", "language_model.")


@dataclass(frozen=True, slots=True)
class Ground:
    """The weights that an adapter belongs to.

    Attributes:
        tensors: The weights, by name.
        origins: For each, the names in the checkpoint of what it is made of; none where it is the base's.
        names: The names of the adapter's own targets among them, by what the adapter calls them, where
            these differ.
    """

    tensors: Mapping[str, DescribedTensor]
    origins: Mapping[str, tuple[str, ...]]
    names: Mapping[str, str]


def ground_in_checkpoint(parts: AdapterParts, restored: Restored) -> Ground:
    """Return the weights that lie in the checkpoint beside the adapter."""
    tensors = {plain: restored.tensors[name] for plain, name in parts.plain.items()}
    return Ground(tensors, {plain: (name,) for plain, name in parts.plain.items()}, {})


def with_saved(ground: Ground, parts: AdapterParts, restored: Restored) -> Ground:
    """Return the weights with those in their places that were trained, or saved, whole."""
    names = {ground.names.get(plain, plain): source for plain, source in parts.saved.items()}
    return replace(
        ground,
        tensors={**ground.tensors, **{name: restored.tensors[source] for name, source in names.items()}},
        origins={**ground.origins, **{name: (source,) for name, source in names.items()}},
    )


def ground_in_base(parts: AdapterParts, checkpoint: Checkpoint, base: Base | None) -> Ground:
    """Return the weights of the base, for an adapter that lies alone.

    Raises:
        BaseModelError: There are none, or they are quantised.
        MatchError: The base has none of the adapter's modules.
    """
    if base is None:
        raise BaseModelError(
            checkpoint.path,
            "holds an adapter alone, and the model it was trained on was not found",
            expected=f"the base named by {CONFIG}, or by --base",
            hint="Name it with --base: a folder with weights, or a name on the hub. "
            "To have the adapter as it is: --adapter keep",
        )
    weights = _weights(checkpoint, base)
    best: tuple[int, list[str]] | None = None
    for tensors in _forms(weights, base):
        modules = {name.rpartition(".")[0] for name in tensors}
        for rename in _renamings():
            targets = {plain: rename(plain) for plain in _targets(parts)}
            absent = [p for p, t in targets.items() if t not in tensors and not _is_module(p, t, modules)]
            if not absent:
                names = {plain: target for plain, target in targets.items() if plain != target}
                names |= {p: t for p in parts.saved if (t := rename(p)) != p and t in tensors}
                return Ground(tensors, dict.fromkeys(tensors, ()), names)
            if best is None or len(absent) < best[0]:
                best = len(absent), absent
    assert best is not None
    raise _absent(best[1], parts, base)


def _is_module(plain: str, target: str, modules: set[str]) -> bool:
    """Return whether a target is a module whose parameters have other names than `weight`."""
    return plain.endswith(".weight") and target.removesuffix(".weight") in modules


def _targets(parts: AdapterParts) -> list[str]:
    return [*(f"{each.module}.weight" for each in parts.factors), *parts.tokens]


def _weights(checkpoint: Checkpoint, base: Base) -> Mapping[str, DescribedTensor]:
    """Return the base's own weights, plain.

    Raises:
        BaseModelError: There are none, or they are quantised in a way that is not undone.
    """
    from unshard.match.restoring import restore_base  # stages are listed above all of them

    weights = describe_base_weights(base)
    if not weights:
        raise BaseModelError(
            base.reference,
            "has no weights here, and an adapter alone is nothing without them",
            saw="a configuration, and no file of weights",
            hint="Download the base with its weights, or give a folder that has them with --base. "
            "To have the adapter as it is: --adapter keep",
        )
    plain = restore_base(weights, checkpoint, base)
    packed = [name for name in plain if quantisation_kind(name)]
    if packed:
        raise BaseModelError(
            base.reference,
            "has quantised weights, into which no adapter can be merged",
            saw=f"{quantisation_kind(packed[0])}: `{packed[0]}`",
            hint="Give the base in 16 bits with --base, or keep the adapter as it is: --adapter keep",
        )
    return plain


def _forms(weights: Mapping[str, DescribedTensor], base: Base) -> Iterator[Mapping[str, DescribedTensor]]:
    """Yield the base's weights as published, then as its class holds them in memory."""
    yield weights
    for recipe in recipes_to_try(base.config, ask_class=False):
        held = regroup(weights, recipe, "memory", possible_experts(base.config, weights))
        if held is not None:
            yield held.tensors


def _renamings() -> Iterator[Callable[[str], str]]:
    """Yield the ways in which names of an adapter may lead to those of the base."""
    yield lambda name: name
    for renaming in renamings():
        yield renaming.apply
    for prefix in _PREFIXES:
        yield lambda name, prefix=prefix: name.removeprefix(prefix)  # type: ignore[misc]
        yield lambda name, prefix=prefix: prefix + name  # type: ignore[misc]


def _absent(absent: list[str], parts: AdapterParts, base: Base) -> Exception:
    found = [Mismatch("missing", name, saw="an adapter", expected="absent from the base") for name in absent]
    return misfit(
        base.reference,
        found,
        f"lacks {len(absent)} of the {len(_targets(parts))} modules that the adapter was trained on",
        hint="Name the model that training started from with --base.",
    )
