"""Names of another scheme, translated to those of Hugging Face's files: renamed, taken apart, reordered.

The scheme is recognised by all names together, and which of its models is meant by what the base needs.
Everything is a view. Shapes cannot prove the order of rows inside a head, so that the head counts which
were used are told.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

from unshard.base import Base
from unshard.base.configuration import text_levels
from unshard.base.head_counts import HeadCounts, head_counts_of
from unshard.checkpoint import Checkpoint
from unshard.match.needs import needs_of
from unshard.match.restored import Arranged, Choices, Restored
from unshard.match.scheme_findings import Done, impossible, misfit, told_of_kept, told_of_scheme, undecided
from unshard.match.scheme_orders import arranged_columns
from unshard.match.scheme_steps import MisfitError, needs_heads, walk
from unshard.match.scheme_translation import Job, Translation, translation_of
from unshard.recipes.schemes import readings_of
from unshard.recipes.schemes.rows import Heads, Rotary, Swap
from unshard.tensors import DescribedTensor


def undo_scheme(restored: Restored, checkpoint: Checkpoint, base: Base | None, choices: Choices) -> Restored:
    """Return the tensors under the names of Hugging Face's files, where those of a scheme are recognised.

    Without a base, names stay as they are where nothing else tells what translating them takes.

    Raises:
        UnsupportedLayoutError: The base does not tell which model the names mean, or how many heads it
            has; or a tensor cannot be that of a model with so many.
        BaseModelError: Head counts mean nothing, or contradict those beside the checkpoint.
    """
    found = [translation_of(reading) for reading in readings_of(tuple(restored.tensors))]
    found = _told_apart([one for one in found if one.jobs], restored, base)
    if not found:
        return restored
    heads = head_counts_of(checkpoint, base)
    lacking = _lacking(found, heads)
    if lacking is not None and base is not None:
        raise undecided(checkpoint.path, base, found, lacking)
    if lacking is not None:
        return replace(restored, findings=(*restored.findings, told_of_kept(found, lacking)))
    (chosen,) = found
    if chosen.reading.family.obstacle:
        raise impossible(checkpoint.path, chosen)
    return _translated(restored, checkpoint, chosen, heads, proven=base is not None)


def _lacking(found: list[Translation], heads: HeadCounts | None) -> str | None:
    """Return what is not known of a model and must be, in words, or None."""
    if len(found) > 1:
        return "which of these models it is"
    return "the number of attention heads" if heads is None and found[0].needs_heads else None


def _told_apart(found: list[Translation], restored: Restored, base: Base | None) -> list[Translation]:
    """Return the translations that may be meant, each once: what the base needs tells, then its type."""
    needs = None if base is None else needs_of(base, restored.tensors)
    if needs is not None and found:
        scores = [_known(one.likely_names, needs.expected) for one in found]
        if _known(restored.tensors, needs.expected) >= max(1, *scores):
            return []  # the base itself has these names
        found = [one for one, score in zip(found, scores, strict=True) if score == max(scores)]
    found = list({one.work: one for one in reversed(found)}.values())[::-1]
    if len(found) > 1 and base is not None:
        types = {level.get("model_type") for _, level in text_levels(base.config)}
        found = [one for one in found if types.intersection(one.reading.family.model_types)] or found
    return found


def _known(names: Collection[str], expected: Collection[str]) -> int:
    return sum(name in expected for name in names)


@dataclass(slots=True)
class _Made:
    """Tensors under their new names, and what was done to make them."""

    tensors: dict[str, DescribedTensor] = field(default_factory=dict)
    origins: dict[str, tuple[str, ...]] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    sizes: set[int] = field(default_factory=set)
    reordered: int = 0
    arranged: dict[Heads, tuple[str, Arranged]] = field(default_factory=dict)

    def add(self, name: str, tensor: DescribedTensor, origins: tuple[str, ...]) -> None:
        """Add a tensor.

        Raises:
            MisfitError: There is another one of that name.
        """
        if name in self.tensors:
            raise MisfitError(f"it would be a second `{name}`")
        self.tensors[name], self.origins[name] = tensor, origins


def _translated(
    restored: Restored, checkpoint: Checkpoint, chosen: Translation, heads: HeadCounts | None, *, proven: bool
) -> Restored:
    """Return the tensors under their new names, in the order of the checkpoint.

    Raises:
        UnsupportedLayoutError: A tensor does not fit.
    """
    made, misfits = _Made(), list[str]()
    jobs, waiting = {job.sources[0][0]: job for job in chosen.jobs}, chosen.sources
    for name in restored.tensors:
        try:
            if name in jobs:
                _carry_out(jobs[name], restored, heads, made)
            elif name not in waiting:
                made.add(name, restored.tensors[name], restored.origins[name])
        except MisfitError as error:
            misfits.append(f"`{name}`: {error}")
    allowed = made.sizes if heads is None or heads.size is None else {heads.size}
    if len(made.sizes) > 1 or not made.sizes <= allowed:
        misfits.append(f"heads of {' and '.join(map(str, sorted(made.sizes)))} rows")
    if misfits:
        raise misfit(checkpoint.path, chosen, misfits, heads)
    done = Done(proven, made.reordered, frozenset(made.sizes), made.lost)
    return replace(
        restored,
        tensors=made.tensors,
        origins=made.origins,
        dropped={**restored.dropped, **made.dropped},
        reasons={**restored.reasons, **made.reasons},
        findings=(*restored.findings, *told_of_scheme(chosen, done, heads)),
        arranged=dict(made.arranged.values()),
    )


def _carry_out(job: Job, restored: Restored, heads: HeadCounts | None, made: _Made) -> None:
    """Add what a job makes.

    Raises:
        MisfitError: A shape does not fit, or there is another tensor of that name.
    """
    sources = [name for column in job.sources for name in column]
    origins = tuple(dict.fromkeys(origin for name in sources for origin in restored.origins[name]))
    if not job.row.ours:
        made.dropped |= dict.fromkeys(origins, job.row.lost)
        made.lost |= dict.fromkeys(sources, job.row.lost)
        return
    columns = [[restored.tensors[n] for n in column] for column in job.sources]
    walked = walk(columns, job.row.steps, heads)
    made.sizes |= walked.sizes
    made.reordered += any(map(needs_heads, job.row.steps))
    targets = job.targets([len(column) for column in walked.columns])
    before = list(dict.fromkeys(restored.reasons[name] for name in sources if name in restored.reasons))
    for column, (names, tensors) in enumerate(zip(targets, walked.columns, strict=True)):
        done = ", ".join([*before, *_done(job, column, sum(map(len, targets)))])
        for name, tensor in zip(names, tensors, strict=True):
            made.add(name, tensor, origins)
            made.reasons |= {name: done} if done else {}
    if heads is not None and len(made.arranged) < 2:  # the first queries and the first keys tell
        for at, kind, arranged in arranged_columns(columns, job.row.steps, heads, walked):
            made.arranged.setdefault(kind, (targets[at][0], arranged))


def _done(job: Job, column: int, targets: int) -> Iterator[str]:
    """Yield what was done, besides renaming, to make the tensors of one name of a row."""
    sources, steps = sum(map(len, job.sources)), job.row.steps
    if targets > sources:
        yield f"one of {targets} parts of it"
    if targets < sources:
        yield f"put together with {sources - 1} more"
    if any(isinstance(step, Rotary) and step.heads[column] is not None for step in steps):
        yield "rows of every head reordered"
    if any(isinstance(step, Swap) for step in steps):
        yield "two dimensions exchanged"
