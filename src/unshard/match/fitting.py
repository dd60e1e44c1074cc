"""Names, and groups of experts, that fit the base: tried in turn, and taken by proof."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from unshard.base.configuration import Config
from unshard.match.experts import (
    Regrouped,
    Tensors,
    possible_experts,
    recipes_of_type,
    recipes_to_try,
    regroup,
)
from unshard.match.names import Naming, find_naming, naming_without_base
from unshard.match.needs import Account, Needs, Shape
from unshard.recipes.experts import Side

_SIDES: tuple[Side, ...] = ("published", "memory")


@dataclass(frozen=True, slots=True)
class Fit:
    """The tensors of a checkpoint under the names of the model.

    Attributes:
        tensors: The tensors, with experts taken apart or put together where that fits.
        naming: The names of these tensors in the model.
        account: How far they give what is needed, where that is known.
        regrouped: How experts were taken apart or put together, or None where they were not.
    """

    tensors: Tensors
    naming: Naming
    account: Account | None
    regrouped: Regrouped | None = None


def fit_to(tensors: Tensors, needs: Needs | None, config: Config | None) -> Fit:
    """Return the tensors as they fit what the model needs, exactly or as nearly as can be.

    Args:
        tensors: The tensors by their names in the checkpoint.
        needs: What the model needs; without it, experts are named as published files name them.
        config: The base's configuration, or None where there is no base.
    """
    if config is None:
        return Fit(tensors, naming_without_base(_shapes(tensors)), None)
    plain = _named(tensors, needs)
    is_exact = plain.account is not None and plain.account.is_exact
    if is_exact and not _unlike(plain, needs):
        return plain
    stem = naming_without_base(_shapes(tensors))
    bare = {stem.names[name]: tensor for name, tensor in tensors.items()}
    if needs is None:
        return _published(plain, bare, stem, config)
    best, experts = plain, possible_experts(config, needs.expected)
    for recipe in recipes_to_try(config, ask_class=not is_exact):
        for side in _SIDES:
            found = regroup(bare, recipe, side, experts)
            if found is not None:
                fit = _from_checkpoint(_named(found.tensors, needs), found, stem)
                best = max(best, fit, key=lambda fit: _worth(fit, needs))
    return best


def _published(plain: Fit, bare: Tensors, stem: Naming, config: Config) -> Fit:
    """Return tensors under published names where nothing but the model type tells them.

    Dimensions are not exchanged where the name stays: nothing tells which way they lie.
    """
    for recipe in recipes_of_type(config):
        fusions = tuple(each for each in recipe.fusions if each.published != (each.memory,))
        found = regroup(bare, replace(recipe, fusions=fusions), "published", possible_experts(config, None))
        if found is not None:
            return _from_checkpoint(_named(found.tensors, None), found, stem)
    return plain


def _shapes(tensors: Tensors) -> dict[str, Shape]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _named(tensors: Tensors, needs: Needs | None) -> Fit:
    """Return tensors under other names, and nothing else of them changed."""
    shapes = _shapes(tensors)
    if needs is None:
        return Fit(tensors, naming_without_base(shapes), None)
    naming, account = find_naming(shapes, needs)
    return Fit(tensors, naming, account)


def _from_checkpoint(fit: Fit, regrouped: Regrouped, stem: Naming) -> Fit:
    """Return a fit of regrouped tensors that tells, too, what was done to their names before."""
    sources = {new: old for old, new in stem.names.items()}
    origins: Mapping[str, tuple[str, ...]] = {
        name: tuple(sources[origin] for origin in made) for name, made in regrouped.origins.items()
    }
    naming = replace(
        fit.naming,
        removed={**stem.removed, **fit.naming.removed},
        prefix=stem.prefix + fit.naming.prefix,
    )
    return Fit(fit.tensors, naming, fit.account, replace(regrouped, origins=origins))


def _worth(fit: Fit, needs: Needs) -> tuple[bool, int, int]:
    """Return what makes one fit better than another: names that are all right, then shapes."""
    assert fit.account is not None
    return fit.account.is_exact, fit.account.matched - _unlike(fit, needs), fit.account.matched


def _unlike(fit: Fit, needs: Needs | None) -> int:
    """Return how many tensors have another shape than the model needs."""
    expected = {} if needs is None else needs.expected
    count = 0
    for source, target in fit.naming.names.items():
        wanted = expected[target].shape if target in expected else None
        count += wanted is not None and wanted != fit.tensors[source].shape
    return count
