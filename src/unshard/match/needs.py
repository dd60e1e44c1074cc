"""What the model needs, and how far a set of names gives it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from unshard.base import Base, ExpectedTensor
from unshard.base.configuration import lookup_int
from unshard.recipes.families import layer_number
from unshard.recipes.leftovers import is_training_only, quantisation_kind
from unshard.recipes.recomputable import recomputable_kind
from unshard.recipes.ties import shared_pairs

Shape = tuple[int, ...]

# Heads that predict further tokens: published with some models, loaded by none of their classes.
_NOT_LOADED = re.compile(r"(^|\.)mtp(_\w+)?\.")


@dataclass(frozen=True, slots=True)
class Needs:
    """What the model needs under which names.

    Attributes:
        expected: Everything that may be in the result, by name.
        required: The names that must be.
        not_loaded: Names that the base holds and its model class does not load.
        ties: Names that repeat another tensor, and that tensor, as the model class tells.
    """

    expected: Mapping[str, ExpectedTensor]
    required: frozenset[str]
    not_loaded: frozenset[str]
    ties: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Account:
    """How far a set of names gives what the model needs.

    Attributes:
        missing: Names that must be there and are not.
        unexpected: Names that nothing explains.
        matched: How many names the model knows.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    matched: int

    @property
    def is_exact(self) -> bool:
        """Whether nothing is missing and nothing is unexplained."""
        return not self.missing and not self.unexpected


def needs_of(base: Base, names: Collection[str]) -> Needs | None:
    """Return what a model of this base needs, or None where the base does not tell.

    A base whose weights are quantised needs their scales only if the checkpoint, too, is quantised.

    Args:
        base: The base.
        names: The names in the checkpoint.
    """
    if base.expected is None:
        return None
    expected = base.expected
    scales = {name for name in expected if quantisation_kind(name)}
    if scales and not any(quantisation_kind(name) for name in names):
        expected = {name: _plain(tensor) for name, tensor in expected.items() if name not in scales}
    layers = lookup_int(base.config, "num_hidden_layers")
    not_loaded = frozenset(name for name in expected if _is_not_loaded(name, layers))
    optional = {name for name, tensor in expected.items() if recomputable_kind(name, tensor.shape or ())}
    required = frozenset(expected) - not_loaded - optional
    return Needs(expected, required, not_loaded, base.ties)


def _plain(tensor: ExpectedTensor) -> ExpectedTensor:
    """Return what an unquantised model needs in the place of a quantised tensor."""
    if tensor.dtype is None or (tensor.dtype.kind == "float" and tensor.dtype.itemsize > 1):
        return tensor
    packed = not tensor.dtype.name.startswith("float8")
    return ExpectedTensor(None if packed else tensor.shape, None, tensor.is_buffer)


def _is_not_loaded(name: str, layers: int | None) -> bool:
    """Return whether the base's class has no place for a tensor of its own weights."""
    if _NOT_LOADED.search(name):
        return True
    if layers is None or not (name.startswith("model.layers.") or "language_model." in name):
        return False
    number = layer_number(name)
    return number is not None and number >= layers


def account(needs: Needs, shapes: Mapping[str, Shape]) -> Account:
    """Return how far tensors of these names and shapes give what the model needs."""
    unknown = [name for name in shapes if name not in needs.expected]
    missing = [name for name in needs.required if name not in shapes]
    if unknown or missing:
        partners = tie_partners(needs, shapes)
        missing = [name for name in missing if not partners.get(name, frozenset()) & shapes.keys()]
        unknown = [
            name
            for name in unknown
            if not (is_training_only(name) or recomputable_kind(name, shapes[name]) or partners.get(name))
        ]
    return Account(tuple(sorted(missing)), tuple(unknown), len(shapes.keys() & needs.expected.keys()))


def tie_partners(needs: Needs, names: Collection[str]) -> dict[str, frozenset[str]]:
    """Return, for every name that some model shares, the names it may be shared with."""
    universe = dict.fromkeys([*needs.expected, *names])
    partners: dict[str, set[str]] = {}
    for kept, repeated in [*shared_pairs(universe), *((k, r) for r, k in needs.ties.items())]:
        partners.setdefault(kept, set()).add(repeated)
        partners.setdefault(repeated, set()).add(kept)
    return {name: frozenset(others) for name, others in partners.items()}
