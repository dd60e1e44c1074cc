"""What the model needs, and how far a set of names gives it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from unshard.base import Base, ExpectedTensor
from unshard.base.configuration import lookup_int, tie_flag
from unshard.recipes.families import layer_number
from unshard.recipes.leftovers import is_training_only
from unshard.recipes.quantised import quantisation_kind, unquantised_name
from unshard.recipes.recomputable import recomputable_kind
from unshard.recipes.ties import is_output_head, shared_pairs

Shape = tuple[int, ...]
Pair = tuple[str, str]

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
        flag: Whether the configuration ties embedding and output head; None where it does not tell.
    """

    expected: Mapping[str, ExpectedTensor]
    required: frozenset[str]
    not_loaded: frozenset[str]
    ties: Mapping[str, str]
    flag: bool | None


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
    if any(map(quantisation_kind, expected)) and not any(map(quantisation_kind, names)):
        expected = _unquantised(expected)
    layers = lookup_int(base.config, "num_hidden_layers")
    not_loaded = frozenset(name for name in expected if _is_not_loaded(name, layers))
    optional = {name for name, tensor in expected.items() if recomputable_kind(name, tensor.shape)}
    required = frozenset(expected) - not_loaded - optional
    return Needs(expected, required, not_loaded, base.ties, tie_flag(base.config))


def _unquantised(expected: Mapping[str, ExpectedTensor]) -> dict[str, ExpectedTensor]:
    """Return what a model needs that is quantised in its base and not in the checkpoint."""
    return {
        plain: _plain(tensor) if plain == name else ExpectedTensor(None, None)
        for name, tensor in expected.items()
        if (plain := unquantised_name(name)) is not None
    }


def _plain(tensor: ExpectedTensor) -> ExpectedTensor:
    """Return what an unquantised model needs in the place of a tensor that may be quantised."""
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
        pairs = known_pairs(needs, shapes)
        tied = [pair for pair in pairs if is_tied(pair, needs)]
        given = {name for pair in tied if not shapes.keys().isdisjoint(pair) for name in pair}
        missing = [name for name in missing if name not in given]
        explained = {name for pair in tied if not needs.expected.keys().isdisjoint(pair) for name in pair}
        explained |= extra_heads(needs, pairs)
        unknown = [
            name
            for name in unknown
            if not (is_training_only(name) or recomputable_kind(name, shapes[name]) or name in explained)
        ]
    return Account(tuple(sorted(missing)), tuple(unknown), len(shapes.keys() & needs.expected.keys()))


def known_pairs(needs: Needs, names: Collection[str]) -> list[Pair]:
    """Return (kept, repeated) for every pair, of names here or in published files, that some model shares."""
    universe = dict.fromkeys([*needs.expected, *names])
    own = [(kept, repeated) for repeated, kept in needs.ties.items() if {kept, repeated} & universe.keys()]
    return list(dict.fromkeys([*own, *shared_pairs(universe)]))


def is_tied(pair: Pair, needs: Needs) -> bool:
    """Return whether the model shares a pair.

    Of output heads the configuration tells, and published files where it does not: they hold one of
    two names. Of everything else (embeddings of encoder and decoder, biases) published files tell.
    """
    one_of_two = sum(name in needs.expected for name in pair) == 1
    if needs.flag is None or not is_output_head(pair[1]):
        return one_of_two
    return needs.flag


def extra_heads(needs: Needs, pairs: Collection[Pair]) -> set[str]:
    """Return the output heads that a model without ties has beyond a base that has none at all."""
    headed = {kept for kept, repeated in pairs if repeated in needs.expected}
    return {
        repeated
        for kept, repeated in pairs
        if is_output_head(repeated)
        and not is_tied((kept, repeated), needs)
        and kept in needs.expected
        and kept not in headed
    }
