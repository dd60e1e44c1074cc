"""The conversion tables of transformers, read as data: what they say of names becomes a recipe.

An entry says how published tensors become those of memory: a renaming is a regular expression and
what takes its place; a conversion is a list of steps, of which a fusion can say three, in this order:
stack the experts, concatenate the parts, exchange two dimensions.

Source:
    transformers 5.23, core_model_loading.py: `WeightTransform`, `WeightRenaming`, `WeightConverter`,
    `MergeModulelist`, `Concatenate`, `Transpose`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from unshard.recipes.experts import Fusion, Recipe, Rename, literally

_STEPS = ("MergeModulelist", "Concatenate", "Transpose")
# What makes a pattern more than the text it is.
_SPECIAL = frozenset("^$*+?()[]{}|\\")


class Transform(Protocol):
    """What is looked at of an entry."""

    source_patterns: Sequence[str]
    target_patterns: Sequence[str]
    scope_prefix: str | None
    base_model_prefix: str | None

    def reverse_transform(self) -> Transform:
        """Return the entry in the other direction."""


def read_recipe(transforms: Iterable[Transform]) -> Recipe:
    """Return the recipe that entries of a conversion table say, as far as a recipe can say it."""
    fusions, renames = list[Fusion](), list[Rename]()
    for transform in transforms:
        kind = type(transform).__name__
        if kind == "WeightRenaming" and len(transform.source_patterns) == 1:
            renames.append(_rename(transform))
        elif kind == "WeightConverter" and (fusion := _fusion(transform)) is not None:
            fusions.append(fusion)
    return Recipe(tuple(fusions), tuple(renames))


def _rename(transform: Transform) -> Rename:
    """Return one renaming, of names below a part of the model where it is one of a part."""
    within: tuple[str, ...] = ("",)
    if transform.scope_prefix is not None:
        part = f"{transform.scope_prefix}." if transform.scope_prefix else ""
        model = f"{transform.base_model_prefix}." if transform.base_model_prefix else ""
        within = (model + part, part)
    return Rename(_substitution(transform.reverse_transform()), _substitution(transform), within)


def _substitution(transform: Transform) -> tuple[str, str]:
    """Return the regular expression that a renaming looks for, and what it puts there."""
    pattern = transform.source_patterns[0]
    text = _unescaped(pattern)
    if not _SPECIAL & set(text):
        return literally(text), transform.target_patterns[0]
    ending = r"(?!\w)" if re.search("[a-zA-Z0-9]$", pattern) else ""
    return pattern.replace("*.", r".*\.") + ending, transform.target_patterns[0]


def _unescaped(pattern: str) -> str:
    return pattern.replace(r"\.", ".")


def _fusion(transform: Transform) -> Fusion | None:
    """Return one conversion of tensors, or None where no fusion says what it does."""
    operations: Sequence[Any] = getattr(transform, "operations", ())
    steps = {type(step).__name__: step for step in operations}
    merge, join, swap = map(steps.get, _STEPS)
    published = tuple(map(_unescaped, transform.source_patterns))
    understood = (
        [type(step).__name__ for step in operations] == [name for name in _STEPS if name in steps]
        and len(transform.target_patterns) == 1
        and (len(published) == 1) == (join is None)
        and {pattern.count("*") for pattern in published} == {0 if merge is None else 1}
        and not any(_SPECIAL - {"*"} & set(pattern) for pattern in published)
        and (merge is None or merge.dim == 0)
        and (join is None or join.num_shards_attribute is None)
    )
    if not understood:
        return None
    return Fusion(
        transform.target_patterns[0],
        published,
        joined=None if join is None else join.dim,
        swapped=None if swap is None else (swap.dim0, swap.dim1),
    )
