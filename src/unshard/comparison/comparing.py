"""What is different between two things that we read, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from unshard.checkpoint import Checkpoint
from unshard.comparison.description import Comparison, Reshaped, Side, TensorChange
from unshard.comparison.groups import by_kind, by_layer, group_of
from unshard.comparison.sides import Named, open_sides, tied_names
from unshard.engines.workers import default_workers
from unshard.errors import OptionError, listed
from unshard.measures import Measurement, measure
from unshard.progress import Progress, Silence
from unshard.readers import Places
from unshard.tensors import DescribedTensor


def diff(
    old: Places,
    new: Places,
    *,
    base: str | Path | None = None,
    tensors: str | None = None,
    old_step: int | None = None,
    new_step: int | None = None,
    select: str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Return what is different in `new`, tensor by tensor.

    Each is a checkpoint, a step of a run, a model folder, an adapter, a file, or the folders of several
    nodes. Where the names of the two are of different kinds, those of a checkpoint are led to the names of
    the other, as a conversion would: without wrappers, with experts grouped alike, with adapters merged.

    Args:
        old: What it was. Distances are in units of its norms.
        new: What became of it.
        base: The model that both came from, for what is not told by either: an adapter's own model, or the
            names and shapes of two checkpoints.
        tensors: Which tensors to compare, by a pattern for their names: `*.self_attn.*`.
        old_step: Which of several steps of `old`; the newest without it.
        new_step: Which of several steps of `new`.
        select: The container or prefix of the model, where a file holds several.
        workers: Threads; by default one per core, at most four.
        progress: Told how far it is.

    Memory:
        A few MiB for every worker.

    Raises:
        InputError: One of them cannot be read.
        BaseModelError: The base that was named is missing or unreadable.
        OptionError: No tensor has a name like `tensors`.
    """
    sides = open_sides(old, new, base=base, steps=(old_step, new_step), select=select)
    a, b = (_matching(side.tensors, tensors) for side in sides.named)
    if tensors is not None and not a and not b:
        raise OptionError(
            tensors,
            "is like the name of no tensor",
            saw=f"names such as {listed(list(sides.named[1].tensors))}",
            hint="Use a pattern such as '*.self_attn.*'. All names: unshard inspect PATH --tensors.",
        )
    ties = dict(tied_names(a, b))
    for side in (a, b):
        side.update({name: side[twin] for name, twin in ties.items() if name not in side})
    both = {name: tensor for name, tensor in b.items() if name in a and a[name].shape == tensor.shape}
    found = measure(both, against=a, workers=workers or default_workers(), progress=progress or Silence())
    changes = dict(_changes(both, a, found))
    return Comparison(
        old=_side(sides.checkpoints[0], sides.named[0]),
        new=_side(sides.checkpoints[1], sides.named[1]),
        tensors=changes,
        added=tuple(name for name in b if name not in a),
        removed=tuple(name for name in a if name not in b),
        reshaped={
            name: Reshaped(a[name].shape, b[name].shape) for name in b if name in a and name not in both
        },
        total=group_of("all", changes.values()),
        layers=tuple(by_layer(changes)),
        kinds=tuple(by_kind(changes)),
        notes=(*sides.notes, *(f"{n} is compared with {k}, which it repeats" for n, k in ties.items())),
    )


def _side(checkpoint: Checkpoint, named: Named) -> Side:
    return Side(checkpoint.path, checkpoint.layout.title, len(named.tensors), named.naming)


def _matching(tensors: Mapping[str, DescribedTensor], pattern: str | None) -> dict[str, DescribedTensor]:
    return {n: tensor for n, tensor in tensors.items() if pattern is None or fnmatchcase(n, pattern)}


def _changes(
    new: Mapping[str, DescribedTensor],
    old: Mapping[str, DescribedTensor],
    found: Mapping[str, Measurement],
) -> Iterator[tuple[str, TensorChange]]:
    for name, tensor in new.items():
        told = found[name]
        assert told.delta is not None
        dtypes = old[name].dtype.name, tensor.dtype.name
        yield name, TensorChange(tensor.shape, *dtypes, told.statistics, told.delta)
