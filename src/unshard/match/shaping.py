"""Tensors whose shapes only the base tells: between finding the base and matching names.

The names in the checkpoint are led to those of the base as everywhere else, by proof; what the base
knows under a name is then known of the tensor. Where nothing tells the shapes, what is there may be less
than what was saved, and only a person can say that it is all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from unshard.base import Base, ExpectedTensor
from unshard.base.configuration import Config
from unshard.checkpoint import Checkpoint, Shaped, told_of_replicas
from unshard.dtypes import DTYPES
from unshard.errors import BaseModelError
from unshard.findings import Finding, finding
from unshard.match.experts import possible_experts, recipes_to_try, regroup
from unshard.match.names import Naming, find_naming
from unshard.match.needs import Account, Needs, Shape, is_tied, known_pairs, needs_of
from unshard.recipes.registration_order import registration_order
from unshard.tensors import DescribedTensor

OPTION = "--accept-inferred-shapes"


def with_shapes(checkpoint: Checkpoint, base: Base | None, *, accept_inferred: bool) -> Checkpoint:
    """Return the checkpoint with every tensor in its shape; most checkpoints have all of them already.

    Args:
        checkpoint: What lies on disk.
        base: The base, or None.
        accept_inferred: Whether shapes may be taken from what is there, where the base tells none.

    Raises:
        BaseModelError: The base tells no shapes, and they may not be inferred or cannot be; or it tells
            others than the tensors can have.
        IncompleteCheckpointError: Parts of tensors are missing.
    """
    unshaped = checkpoint.unshaped
    if unshaped is None:
        return checkpoint
    known = None if base is None else _known(base, unshaped.as_found())
    if known is None:
        inferred = unshaped.inferred()  # where nothing can be, it says what is needed
        if not accept_inferred:
            raise _unknown(checkpoint, base)
        return _completed(checkpoint, inferred, _unproven(checkpoint))
    try:
        return _completed(checkpoint, unshaped.shaped(known))
    except BaseModelError as error:
        if not accept_inferred:
            raise
        with suppress(BaseModelError):
            return _completed(checkpoint, unshaped.inferred(), _unproven(checkpoint))
        raise error


def with_shapes_to_show(checkpoint: Checkpoint, base: Base | None) -> Checkpoint:
    """Return the checkpoint with its tensors in their shapes, or else as they lie there, which is told.

    Raises:
        IncompleteCheckpointError: Parts of tensors are missing.
    """
    try:
        return with_shapes(checkpoint, base, accept_inferred=False)
    except BaseModelError as error:
        assert checkpoint.unshaped is not None
        found = Shaped(checkpoint.unshaped.as_found())
        told = finding("U114", subject=checkpoint.path.name, saw=_sentence(error), remedy=error.hint)
        return _completed(checkpoint, found, told)


def _sentence(error: BaseModelError) -> str:
    return error.problem + (f": {error.saw}" if error.saw else "")


def _completed(checkpoint: Checkpoint, shaped: Shaped, *more: Finding) -> Checkpoint:
    own = {name: (checkpoint.path.name, name) for name in shaped.tensors}
    return replace(
        checkpoint,
        tensors={**shaped.tensors, **checkpoint.tensors},
        storages={**own, **checkpoint.storages},
        replicas=(*checkpoint.replicas, *shaped.replicas),
        unshaped=None,
        findings=(
            *checkpoint.findings,
            *shaped.findings,
            *more,
            *told_of_replicas(checkpoint.path, shaped.replicas),
        ),
    )


def _unknown(checkpoint: Checkpoint, base: Base | None) -> BaseModelError:
    if base is None:
        saw, hint = "no base", "Name the model that training started from with --base"
    else:
        saw = f"only the configuration of `{base.reference}`"
        hint = 'Download its weights, of which only headers are read, or pip install "unshard[hf]"'
    return BaseModelError(
        checkpoint.path,
        "does not tell how large its tensors are, so that nothing proves it complete",
        saw=saw,
        expected="a base that tells the shapes",
        hint=f"{hint}. If you know that no file is missing: {OPTION}",
    )


def _unproven(checkpoint: Checkpoint) -> Finding:
    return finding(
        "U114",
        subject=checkpoint.path.name,
        saw=f"shapes inferred from the parts that are there, as {OPTION} allows",
        expected="the shapes of the base",
        remedy="If the last files are missing, tensors are shorter than they were, and nothing shows it.",
    )


def _known(base: Base, found: Mapping[str, object]) -> BaseShapes | None:
    """Return what a base knows of shapes, or None where it knows not one."""
    needs = needs_of(base, found)
    if needs is None or all(tensor.shape is None for tensor in needs.expected.values()):
        return None
    return BaseShapes(base, needs)


@dataclass(frozen=True, slots=True)
class BaseShapes:
    """The shapes that a base knows, as the readers of checkpoints ask for them."""

    base: Base
    needs: Needs

    @property
    def said_by(self) -> str:
        """The base, and what of it tells shapes."""
        return f"{self.base.reference} ({self.base.expected_from})"

    def named(self, extents: Mapping[str, Shape]) -> Mapping[str, Shape]:
        """Return the shapes of tensors by their names in the checkpoint, without those it does not know."""
        needs, naming, _ = self._fit(extents)
        shapes = _with_ties(needs, naming.names.values())
        return {name: shapes[plain] for name, plain in naming.names.items() if plain in shapes}

    def lacking(self, names: Collection[str]) -> Sequence[str]:
        """Return names of the base for which there is no tensor among those of a checkpoint."""
        return self._fit(dict.fromkeys(names, ()))[2].missing

    def _fit(self, extents: Mapping[str, Shape]) -> tuple[Needs, Naming, Account]:
        """Return what the model needs, by the names that the checkpoint has: published, or of memory."""
        fits = ((needs, *find_naming(extents, needs)) for needs in _forms(self.needs, self.base.config))
        best = next(fits)
        while not best[2].is_exact and (other := next(fits, None)) is not None:
            best = max(best, other, key=lambda fit: (fit[2].is_exact, fit[2].matched))
        return best

    def parameters(self) -> Mapping[str, Shape]:
        """Return every parameter of the model once, by its name in the base."""
        pairs = known_pairs(self.needs, self.needs.expected)
        repeated = {again for kept, again in pairs if is_tied((kept, again), self.needs)}
        return {
            name: tensor.shape
            for name, tensor in self.needs.expected.items()
            if tensor.shape is not None and not tensor.is_buffer and name not in repeated
        }

    def registered(self) -> Mapping[str, Shape] | None:
        """Return the parameters in the order in which the model registers them, or None if unknown."""
        parameters = self.parameters()
        if self.base.expected_in_order:
            return parameters
        order = registration_order(parameters)
        if order is not None:
            return {name: parameters[name] for name in order}
        from unshard.base.model_class import registered_from_class

        return registered_from_class(self.base.config)


def _with_ties(needs: Needs, names: Iterable[str]) -> dict[str, Shape]:
    """Return the shapes that are needed, and those of names that share a tensor with these."""
    shapes = {n: t.shape for n, t in needs.expected.items() if t.shape is not None}
    for kept, repeated in known_pairs(needs, [*needs.expected, *names]):
        for name, other in ((kept, repeated), (repeated, kept)):
            if other in shapes:
                shapes.setdefault(name, shapes[other])
    return shapes


def _forms(needs: Needs, config: Config) -> Iterator[Needs]:
    """Yield what the model needs as it is published, then as it is held in memory."""
    yield needs
    known = {n: t for n, t in needs.expected.items() if t.shape is not None}
    blank = {n: DescribedTensor(t.shape or (), t.dtype or DTYPES["float32"], ()) for n, t in known.items()}
    for recipe in recipes_to_try(config, ask_class=True):
        held = regroup(blank, recipe, "memory", possible_experts(config, known))
        if held is None:
            continue
        expected = {name: ExpectedTensor(tensor.shape, None) for name, tensor in held.tensors.items()}
        required = {name for name, made in held.origins.items() if needs.required.issuperset(made)}
        yield replace(needs, expected=expected, required=frozenset(required))
