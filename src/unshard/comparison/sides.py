"""Both sides of a comparison, with names that can be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from unshard.base import Base, find_base
from unshard.base.of_model import base_of_model
from unshard.checkpoint import Checkpoint
from unshard.errors import InputError, UnshardError
from unshard.match import outline_of, with_shapes
from unshard.readers import Places, as_paths, open_checkpoint
from unshard.recipes.ties import shared_pairs
from unshard.recipes.wrappers import AMBIGUOUS_WRAPPERS, WRAPPERS, without_segments
from unshard.tensors import DescribedTensor

_ROLE = "what it is compared with"


@dataclass(frozen=True, slots=True)
class Named:
    """Tensors by the names that are compared, and how these were found."""

    tensors: Mapping[str, DescribedTensor]
    naming: str = ""


@dataclass(frozen=True, slots=True)
class Sides:
    """A and B, what is compared of each, and what a person should know of their names."""

    checkpoints: tuple[Checkpoint, Checkpoint]
    named: tuple[Named, Named]
    notes: tuple[str, ...]


def open_sides(
    old: Places,
    new: Places,
    *,
    base: str | Path | None,
    steps: tuple[int | None, int | None],
    select: str | None,
) -> Sides:
    """Return both sides with names that can be compared."""
    a, b = (
        open_checkpoint(as_paths(place), step=step, select=select)
        for place, step in zip((old, new), steps, strict=True)
    )
    known = None if base is None else find_base(a, reference=str(base), download=False, model_class=False)[0]
    notes: list[str] = []
    named = _lead(a, _model_of(a, b, known), notes), _lead(b, _model_of(b, a, known), notes)
    return Sides((a, b), named, tuple(notes))


def _model_of(checkpoint: Checkpoint, other: Checkpoint, known: Base | None) -> Base | None:
    """Return the model whose names a checkpoint's tensors should have, or None where its own do.

    Those of the base that was named; of an adapter, those of its own base; else those of the other side, if
    that is a model folder and this is not, or if only this one's names have wrappers in them.
    """
    if checkpoint.layout.name == "peft-adapter" and known is None:
        return find_base(checkpoint, reference=None, download=False, model_class=False)[0] or base_of_model(
            other, _ROLE
        )
    if checkpoint.unshaped is None and checkpoint.tensors.keys() == other.tensors.keys():
        return None
    if known is not None:
        return None if checkpoint.layout.is_model_folder and checkpoint.path == known.path else known
    if checkpoint.layout.is_model_folder or other.unshaped is not None:
        return None
    if other.layout.is_model_folder or _plainness(checkpoint) < _plainness(other):
        return base_of_model(other, _ROLE)
    return None


def _plainness(checkpoint: Checkpoint) -> tuple[bool, int]:
    """Return what is larger for names that are more like those of a model."""
    wrappers = {*WRAPPERS, *AMBIGUOUS_WRAPPERS}
    wrapped = sum(without_segments(name, wrappers) != name for name in checkpoint.tensors)
    return checkpoint.unshaped is None, -wrapped


def _lead(checkpoint: Checkpoint, model: Base | None, notes: list[str]) -> Named:
    """Return a checkpoint's tensors by the names of a model; plain ones, and a note, where that fails."""
    if model is None:
        return Named(checkpoint.tensors)
    try:
        outline = outline_of(with_shapes(checkpoint, model, accept_inferred=False), model)
    except InputError:
        raise
    except UnshardError as error:
        notes.append(
            f"{checkpoint.path} does not fit the names of {model.reference}, so only wrappers were taken "
            f"from its names: {error.message}"
        )
        plain = {without_segments(name, WRAPPERS): tensor for name, tensor in checkpoint.tensors.items()}
        alike = len(plain) == len(checkpoint.tensors)
        return Named(plain if alike else checkpoint.tensors, "without wrappers")
    sources = outline.sources
    tensors = {target: outline.tensors[source] for target, source in sources.items()}
    return Named(tensors, "" if tensors.keys() == checkpoint.tensors.keys() else f"as {model.reference}'s")


def tied_names(
    a: Mapping[str, DescribedTensor], b: Mapping[str, DescribedTensor]
) -> Iterator[tuple[str, str]]:
    """Yield names that one side leaves out, since they repeat another tensor that it has, and that tensor."""
    for kept, repeated in shared_pairs({**a, **b}):
        for name, twin in ((repeated, kept), (kept, repeated)):
            if (name in a) != (name in b) and twin in a and twin in b:
                yield name, twin
