"""Whether a run can become a model: every step of it, and what is missing, before a tensor is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Literal

from unshard.base import find_base
from unshard.checkpoint import Checkpoint, Step
from unshard.checks.completeness import check_completeness, completeness_evidence
from unshard.checks.inference_files import check_inference_files
from unshard.checks.places import check_places
from unshard.errors import IncompleteCheckpointError
from unshard.findings import Finding, Severity
from unshard.match import with_shapes_to_show
from unshard.readers import Places, as_paths
from unshard.readers.opening import OpenedStep, open_steps
from unshard.sizes import counted

Verdict = Literal["whole", "incomplete", "unreadable"]


@dataclass(frozen=True, slots=True)
class StepVerdict:
    """Whether one step is whole.

    Attributes:
        step: Where it lies, its number and size.
        place: Its path in the run.
        verdict: `whole`, `incomplete` where parts are missing, `unreadable` where what is there is damaged.
        evidence: What was compared with what, or what is wrong.
        missing: How many things are missing.
    """

    step: Step
    place: str
    verdict: Verdict
    evidence: str
    missing: int


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What `unshard check` tells.

    Attributes:
        path: What was checked: the newest step, or the one that was asked for.
        layout: How it lies on disk, in words.
        steps: The verdict on every step of the run, oldest first.
        taken: The path of the step that a conversion would take, or None where none is whole.
        base: The base that would be used, or None.
        findings: What is missing, and what a person should know; all of it about the step that was
            checked.
    """

    path: Path
    layout: str
    steps: tuple[StepVerdict, ...]
    taken: Path | None
    base: str | None
    findings: tuple[Finding, ...]

    def fails(self, on: Literal["error", "warning", "never"]) -> bool:
        """Return whether a finding is as bad as `on`, or worse."""
        severe = {"error": {Severity.ERROR}, "warning": {Severity.ERROR, Severity.WARNING}, "never": set()}
        return any(item.severity in severe[on] for item in self.findings)


def check(
    path: Places, *, base: str | Path | None = None, step: int | None = None, select: str | None = None
) -> Diagnosis:
    """Return whether the run at `path` holds all of a model, and everything that is missing.

    Every expected rank, file, chunk and range of bytes is held against what is there; no byte of a
    tensor is read.

    Args:
        path: A run folder, a checkpoint folder, a file, or a model folder; or the folders of several
            nodes, whose ranks wrote one checkpoint together.
        base: The model training started from; without it, it is looked for on this machine.
        step: Which of several steps to check; the newest without it. The others get a verdict.
        select: The container or prefix of the model, where a file holds several.

    Raises:
        InputError: No checkpoint lies there.
        BaseModelError: The base that was named is missing or unreadable.
    """
    steps = open_steps(as_paths(path), step=step, select=select)
    opened = [_with_shapes(one, base) for one in steps]
    asked = next(one for one in opened if one.is_chosen)
    misplaced = check_places(asked.checkpoint) if asked.checkpoint else ()
    whole = [one for one in opened if one.checkpoint is not None and not (one is asked and misplaced)]
    within_reach = [one for one in whole if one.numbers <= asked.numbers] if step is None else []
    taken = asked if asked in whole else max(within_reach, key=attrgetter("numbers"), default=None)
    known = taken.checkpoint if taken is not None else None
    about_base, reference = _about_base(known, base)
    return Diagnosis(
        path=asked.step.path,
        layout=asked.checkpoint.layout.title if asked.checkpoint else asked.title,
        steps=tuple(_verdict(one, misplaced if one is asked else ()) for one in opened),
        taken=None if taken is None else taken.step.path,
        base=reference,
        findings=(
            *check_completeness(asked.error),
            *misplaced,
            *(asked.checkpoint.findings if asked.checkpoint else ()),
            *about_base,
        ),
    )


def _with_shapes(one: OpenedStep, base: str | Path | None) -> OpenedStep:
    """Return a step with the shapes that only the base tells, and whether anything is missing then."""
    if one.checkpoint is None or one.checkpoint.unshaped is None:
        return one
    reference = None if base is None else str(base)
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


def _about_base(
    checkpoint: Checkpoint | None, base: str | Path | None
) -> tuple[tuple[Finding, ...], str | None]:
    """Return what inference would miss besides tensors, and the base that would be used."""
    reference = None if base is None else str(base)
    if checkpoint is None:
        return (), reference
    found, findings = find_base(checkpoint, reference=reference, download=False, model_class=False)
    names = {"config.json", *found.side_files, *found.embedded} if found else set(checkpoint.side_files)
    missing = check_inference_files(names, has_base=found is not None)
    return (*findings, *missing), found.reference if found else None
