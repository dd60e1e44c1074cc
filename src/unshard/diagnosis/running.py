"""Every step of a run: which are whole, and which of them a conversion takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

from unshard.base import find_base
from unshard.checkpoint import Checkpoint
from unshard.checks.completeness import check_completeness, completeness_evidence
from unshard.checks.places import check_places
from unshard.diagnosis.description import StepVerdict, Verdict
from unshard.errors import IncompleteCheckpointError
from unshard.findings import Finding
from unshard.match import with_shapes_to_show
from unshard.readers.opening import OpenedStep, open_steps
from unshard.sizes import counted


@dataclass(frozen=True, slots=True)
class JudgedSteps:
    """The steps of a run.

    Attributes:
        path: The step that was asked for, or the newest.
        layout: How it lies on disk, in words.
        steps: The verdict on every step, oldest first.
        taken: The step that a conversion takes, opened, or None where none is whole.
        findings: What is missing of the step that was asked for, and what its reader tells.
    """

    path: Path
    layout: str
    steps: tuple[StepVerdict, ...]
    taken: Checkpoint | None
    findings: tuple[Finding, ...]


def judge_steps(
    paths: Sequence[Path], *, reference: str | None, step: int | None, select: str | None
) -> JudgedSteps:
    """Return which steps are whole, held against the base where only it tells shapes.

    Raises:
        InputError: No checkpoint lies there.
        BaseModelError: The base that was named is missing or unreadable.
    """
    opened = [_with_shapes(one, reference) for one in open_steps(paths, step=step, select=select)]
    asked = next(one for one in opened if one.is_chosen)
    misplaced = check_places(asked.checkpoint) if asked.checkpoint else ()
    whole = [one for one in opened if one.checkpoint is not None and not (one is asked and misplaced)]
    within_reach = [one for one in whole if one.numbers <= asked.numbers] if step is None else []
    taken = asked if asked in whole else max(within_reach, key=attrgetter("numbers"), default=None)
    return JudgedSteps(
        path=asked.step.path,
        layout=asked.checkpoint.layout.title if asked.checkpoint else asked.title,
        steps=tuple(_verdict(one, misplaced if one is asked else ()) for one in opened),
        taken=None if taken is None else taken.checkpoint,
        findings=(
            *check_completeness(asked.error),
            *misplaced,
            *(asked.checkpoint.findings if asked.checkpoint else ()),
        ),
    )


def _with_shapes(one: OpenedStep, reference: str | None) -> OpenedStep:
    """Return a step with the shapes that only the base tells, and whether anything is missing then."""
    if one.checkpoint is None or one.checkpoint.unshaped is None:
        return one
    found, _ = find_base(one.checkpoint, reference=reference, download=False, model_class=False)
    try:
        return replace(one, checkpoint=with_shapes_to_show(one.checkpoint, found))
    except IncompleteCheckpointError as error:
        return replace(one, checkpoint=None, error=error)


def _verdict(one: OpenedStep, misplaced: Sequence[Finding]) -> StepVerdict:
    missing = check_completeness(one.error)
    if misplaced:
        what = f"{counted(len(misplaced), 'file')} without the parts that should lie there"
        return StepVerdict(one.step, one.place, "unreadable", what, 0)
    if one.checkpoint is not None:
        return StepVerdict(one.step, one.place, "whole", completeness_evidence(one.checkpoint), 0)
    assert one.error is not None
    incomplete = isinstance(one.error, IncompleteCheckpointError)
    verdict: Verdict = "incomplete" if incomplete else "unreadable"
    return StepVerdict(one.step, one.place, verdict, one.error.message, len(missing) if incomplete else 0)
