"""The first half of matching: names, ties and open questions; no tensor byte is needed for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unshard.base import Base
from unshard.base.weights import describe_base_weights
from unshard.checkpoint import Checkpoint
from unshard.errors import BaseModelError
from unshard.match.experts import Regrouped
from unshard.match.fitting import fit_to
from unshard.match.frequencies import rotary_variants
from unshard.match.names import Naming
from unshard.match.needs import Account, Needs, Shape, needs_of
from unshard.match.orders import order_questions
from unshard.match.questions import EqualQuestion, Question, RecomputableQuestion
from unshard.match.restoring import Choices, Restored, restore
from unshard.match.ties import Ties, find_ties
from unshard.recipes.leftovers import is_training_only
from unshard.recipes.recomputable import Kind, recomputable_kind
from unshard.tensors import DescribedTensor


@dataclass(frozen=True, slots=True)
class Outline:
    """What names, shapes and configuration tell of a checkpoint.

    Attributes:
        checkpoint: The checkpoint.
        base: Its base.
        needs: What the model needs, where that is known.
        restored: The tensors of the checkpoint as plain parameters.
        tensors: The same, with experts taken apart or put together as the base has them; "source" names
            one of these.
        regrouped: How that was done, or None where it was not.
        naming: The names of the tensors in the model.
        account: How far these give what is needed, where that is known.
        ties: What they share.
        training_only: Sources that are state of training.
        recomputable: Sources that the model may compute itself, and how.
    """

    checkpoint: Checkpoint
    base: Base | None
    needs: Needs | None
    restored: Restored
    tensors: Mapping[str, DescribedTensor]
    regrouped: Regrouped | None
    naming: Naming
    account: Account | None
    ties: Ties
    training_only: frozenset[str]
    recomputable: Mapping[str, Kind]

    @property
    def sources(self) -> dict[str, str]:
        """The source of every name in the model."""
        return {target: source for source, target in self.naming.names.items()}

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shapes of the tensors by their names in the model."""
        return {target: self.tensors[source].shape for source, target in self.naming.names.items()}

    def origins(self, source: str) -> tuple[str, ...]:
        """Return the names in the checkpoint of what a source is made of."""
        made = (source,) if self.regrouped is None else self.regrouped.origins[source]
        return tuple(dict.fromkeys(origin for name in made for origin in self.restored.origins[name]))


def outline_of(checkpoint: Checkpoint, base: Base | None, choices: Choices | None = None) -> Outline:
    """Return what names, shapes and configuration tell of a checkpoint.

    Args:
        checkpoint: What lies on disk.
        base: The model training started from, or None.
        choices: What a person decided; by default everything is as its own words say.

    Raises:
        UnsupportedLayoutError: It is recognised what was done to tensors, and not how to undo it.
        MatchError: Parts are missing that belong to others.
    """
    restored = restore(checkpoint, base, choices or Choices())
    needs = None if base is None else needs_of(base, restored.tensors)
    fit = fit_to(restored.tensors, needs, None if base is None else base.config)
    naming, shapes = fit.naming, {name: tensor.shape for name, tensor in fit.tensors.items()}
    training_only = frozenset(source for source, target in naming.names.items() if is_training_only(target))
    ties = find_ties(
        {target: shapes[source] for source, target in naming.names.items() if source not in training_only},
        needs,
        None if base is None else base.config,
    )
    known = frozenset() if needs is None else needs.expected.keys()
    recomputable = {
        source: kind
        for source, target in naming.names.items()
        if base is not None and target not in known and (kind := recomputable_kind(target, shapes[source]))
    }
    return Outline(
        checkpoint,
        base,
        needs,
        restored,
        fit.tensors,
        fit.regrouped,
        naming,
        fit.account,
        ties,
        training_only,
        recomputable,
    )


def questions_for(outline: Outline) -> tuple[Question, ...]:
    """Return what must be read before `match_model` can decide: a few tensors, never the whole model."""
    base = outline.base
    tensors, sources = outline.tensors, outline.sources
    questions: list[Question] = []
    for group in outline.ties.groups:
        first, *others = (sources[name] for name in group.present)
        questions += [EqualQuestion((first, other), (tensors[first], tensors[other])) for other in others]
    for source, kind in outline.recomputable.items():
        assert base is not None
        variants = rotary_variants(base.config, outline.naming.names[source]) if kind == "frequencies" else ()
        questions.append(RecomputableQuestion((source,), tensors[source], kind, variants))
    questions += order_questions(outline.restored.arranged, outline.naming.names, _weights_beside(outline))
    return tuple(questions)


def _weights_beside(outline: Outline) -> Mapping[str, DescribedTensor]:
    """Return the base's own weights where rows are held against them; none if they cannot be read."""
    if outline.base is None or not outline.restored.arranged:
        return {}
    try:
        return describe_base_weights(outline.base)
    except BaseModelError:
        return {}
