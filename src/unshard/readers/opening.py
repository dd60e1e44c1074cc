"""From a path to the checkpoint that is meant, opened: the newest step that is whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unshard.checkpoint import Checkpoint, Step, told_of_replicas
from unshard.errors import (
    IncompleteCheckpointError,
    InputError,
    TrainingStateError,
    UnknownLayoutError,
    UnshardError,
)
from unshard.findings import Finding, finding
from unshard.readers.copies import require_equal_copies
from unshard.readers.flat.flat_tensors import with_flat_parameters
from unshard.readers.rendering import as_argument, listed
from unshard.readers.runs import Run, beside, find_run
from unshard.readers.search import Found, find_below, find_here, steps_of, without_companions
from unshard.readers.steps import split_words
from unshard.readers.surroundings import with_surroundings


def open_checkpoint(
    path: Path | Sequence[Path], *, step: int | None = None, select: str | None = None
) -> Checkpoint:
    """Return the checkpoint at `path`, its tensors described and not read.

    Args:
        path: A file, the folder of a checkpoint, or the folder of a run; or several folders that
            hold one checkpoint together, as the disks of several nodes do.
        step: Which of several steps is meant; None for the newest that is whole.
        select: Which of several models in a file is meant: a container, or a prefix of names.

    Raises:
        PathNotFoundError: Nothing lies at `path`.
        UnknownLayoutError: No checkpoint lies there.
        UnsupportedLayoutError: It is of a layout that is recognised, and not read.
        AmbiguousModelError: There are several models, and nothing says which one is meant.
        TrainingStateError: It holds an optimizer or other training state, and no model.
        IncompleteCheckpointError: Parts of it are missing.
        DamagedFileError: A file is cut short, or disagrees with its checksum.
        UnsafeFileError: A file contradicts itself, or asks for code to be run.
        OptionError: `step` or `select` names nothing.
    """
    run = find_run([path] if isinstance(path, Path) else path, step=step)
    taken, checkpoint, passed_over = _newest_whole(run, select)
    told = (*passed_over, *_others_told(taken, run), *_unread_told(taken, run))
    checkpoint = with_surroundings(checkpoint, run.tree)
    if not any(found.code == "U116" for found in checkpoint.findings):  # its reader has told more
        told = (*told, *told_of_replicas(checkpoint.path, checkpoint.replicas))
    return replace(checkpoint, steps=tuple(f.step for f in run.steps), findings=(*told, *checkpoint.findings))


@dataclass(frozen=True, slots=True)
class OpenedStep:
    """One step of a run, opened, or why it cannot be.

    Attributes:
        step: Where it lies, its number and size.
        place: Its path in the run.
        title: What it seems to be by its names.
        numbers: Its epoch and step.
        is_chosen: Whether it is the one that is meant, by its name.
        checkpoint: What lies there, or None.
        error: Why it cannot be opened, or None.
    """

    step: Step
    place: str
    title: str
    numbers: tuple[int, ...]
    is_chosen: bool
    checkpoint: Checkpoint | None
    error: InputError | None


def open_steps(paths: Sequence[Path], *, step: int | None, select: str | None) -> tuple[OpenedStep, ...]:
    """Return every step of the model that is meant, oldest first, whether it can be opened or not.

    Raises:
        InputError: Nothing that lies there is a checkpoint, or nothing says which model is meant.
        OptionError: `step` names nothing.
    """
    run = find_run(paths, step=step)
    return tuple(_tried(found, run, select) for found in run.steps)


def _tried(found: Found, run: Run, select: str | None) -> OpenedStep:
    checkpoint, error = None, None
    try:
        checkpoint = with_surroundings(open_step(found, select=select), run.tree)
    except InputError as refusal:
        error = refusal
    is_chosen = found is run.chosen
    return OpenedStep(
        found.step, found.place, found.candidate.title, found.numbers, is_chosen, checkpoint, error
    )


def open_step(found: Found, *, select: str | None) -> Checkpoint:
    """Return one step that was found; `open_checkpoint` says what can go wrong."""
    require_equal_copies(found.candidate)
    return with_flat_parameters(found.reader.open_candidate(found.candidate, select=select))


def _newest_whole(run: Run, select: str | None) -> tuple[Found, Checkpoint, list[Finding]]:
    """Return the step that is meant, opened; of those that may be meant, the newest that is whole."""
    try:
        return run.chosen, open_step(run.chosen, select=select), []
    except TrainingStateError as error:
        others = run.folder.without(run.chosen.candidate.files)
        error.hint = _model_among(find_here(others, run.tree)) or error.hint
        raise
    except IncompleteCheckpointError as error:
        if len(run.tree.roots) > 1:
            level = "All places must be of one level: the runs of all nodes, or their folders of a step."
            error.hint = f"{error.hint or ''} {level}".strip()
        whole = _whole_before(run, select)
        if whole is None:
            raise
        found, checkpoint = whole
        if run.step is None and found in run.steps:
            return found, checkpoint, [_passed_over(run.chosen, error)]
        error.hint = (
            f"{error.hint or ''} Step {found.numbers[-1]} is whole: {as_argument(found.candidate.path)}"
        )
        raise
    except InputError as error:
        earlier = [f for f in run.steps if f.is_read and f.numbers < run.chosen.numbers]
        if earlier:
            error.hint = f"{error.hint or ''} An earlier one: --step {earlier[-1].numbers[-1]}".strip()
        elif isinstance(error, UnknownLayoutError) and error.hint is None:
            error.hint = beside(run.folder.path, apart_from=run.chosen.candidate.path)
        raise


def _whole_before(run: Run, select: str | None) -> tuple[Found, Checkpoint] | None:
    """Return the newest step before the chosen one that can be opened."""
    steps = run.steps
    if run.folder.path != run.tree.roots[0]:  # the folder of one step was given; the others lie beside it
        steps = tuple(steps_of(run.chosen, find_below(run.tree.look_into(run.tree.roots[0]), run.tree)))
    for found in reversed(steps):
        if found.is_read and found.numbers < run.chosen.numbers:
            try:
                return found, open_step(found, select=select)
            except UnshardError:
                continue
    return None


def _passed_over(found: Found, error: IncompleteCheckpointError) -> Finding:
    return finding(
        "U115",
        subject=found.place,
        saw=error.message,
        remedy="To have the newest step, copy what it lacks; unshard check names all of it.",
    )


def _model_among(found: list[Found]) -> str | None:
    readable = [f for f in found if f.is_read]
    if not readable:
        return "The model must be in another file: a state dict, without `optimizer` in its name."
    newest = max(readable, key=lambda f: f.numbers)
    return f"The model is in the file beside it: unshard inspect {as_argument(newest.candidate.path)}"


def _others_told(taken: Found, run: Run) -> list[Finding]:
    """Tell of the other steps and models: those it was chosen from, or those below a model at the top."""
    if not run.of_folder:
        return []
    others = [(f.place, f.numbers[-1]) for f in run.steps if f is not taken]
    if not taken.numbers:
        numbered = ((name, split_words(name)[1]) for name in run.folder.folders)
        others += [(f"{name}/", numbers[-1]) for name, numbers in numbered if numbers]
    told = []
    if others:
        told.append(
            finding(
                "U101",
                subject=taken.place,
                saw=f"also there: {listed([place for place, _ in others], at_most=5)}",
                remedy=f"Take another one with --step, for example: --step {others[-1][1]}",
            )
        )
    like_it = [f for f in run.found if f.is_read and f.numbers == taken.numbers]
    if companions := [f.place for f in like_it if f not in without_companions(like_it)]:
        told.append(finding("U108", subject=taken.place, saw=listed(companions, at_most=5)))
    return told


def _unread_told(taken: Found, run: Run) -> list[Finding]:
    if not run.of_folder:
        return []
    unread = [f"{f.place} ({f.candidate.title})" for f in run.found if not f.is_read and f is not taken]
    return [finding("U107", subject=taken.place, saw=listed(unread, at_most=5))] if unread else []
