"""Where checkpoints lie: candidates in a folder and below it, and which of them is meant.

In a run folder the newest step of the only model is taken. Names alone decide, with one exception:
where several candidates could be the model, those that hold only training state are told by their
content. Models that only training needs (a critic, a reward model) stand back behind the one that was
trained. Several models are refused, and so is an older step where the newest is of a layout that is not
read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from unshard.checkpoint import Step
from unshard.errors import (
    AmbiguousModelError,
    InputError,
    OptionError,
    TrainingStateError,
    UnknownLayoutError,
)
from unshard.readers.folders import Folder, Tree, size_of
from unshard.readers.layouts import (
    dcp,
    fairscale,
    hugging_face,
    meta,
    other_layouts,
    peft_adapter,
    rank_files,
    sharded_safetensors,
    state_dict,
    torchtune,
)
from unshard.readers.protocol import Candidate, Reader
from unshard.readers.rendering import as_argument, listed
from unshard.readers.steps import Numbers, split_words
from unshard.readers.training_files import training_kind

# Every layout, in this order. A file that one of them claims is not shown to those after it.
READERS: tuple[Reader, ...] = (
    dcp,
    peft_adapter,
    torchtune,
    hugging_face,
    sharded_safetensors,
    fairscale,
    meta,
    other_layouts,
    rank_files,
    state_dict,
)

_MOST_LOOKED_INTO = 50
# What reinforcement learning trains or keeps beside the policy: verl, OpenRLHF, SkyRL.
_COMPANIONS = frozenset(("critic", "_critic", "reward", "reward_model", "ref", "reference"))


@dataclass(frozen=True, slots=True)
class Found:
    """A candidate, and what is known of it from where it lies.

    Attributes:
        reader: Its layout.
        candidate: What it is.
        place: Its path in the run, for people.
        series: What it and the other steps of its model have in common.
        numbers: Its epoch and step; empty where no name tells.
    """

    reader: Reader
    candidate: Candidate
    place: str
    series: tuple[str, ...]
    numbers: Numbers

    @property
    def is_read(self) -> bool:
        """Whether its layout is one that is read."""
        return self.reader is not other_layouts

    @property
    def step(self) -> Step:
        """The candidate as one of several steps."""
        path = self.candidate.path
        size = sum(size_of(self.candidate.folder.at(name)) for name in self.candidate.files)
        return Step(path, self.numbers[-1] if self.numbers else None, size)


def find_here(folder: Folder, tree: Tree) -> list[Found]:
    """Return the candidates that lie directly in a folder of the run."""
    split = [split_words(part) for part in tree.relative(folder.path).parts]
    labels, numbers = tuple(label for label, _ in split), tuple(n for _, found in split for n in found)
    shown, everything = folder, []
    for reader in READERS:
        for candidate in reader.find_candidates(shown):
            place = str(tree.relative(candidate.path))
            series, own = (*labels, candidate.series), (*numbers, *candidate.numbers)
            everything.append(Found(reader, candidate, place, series, own))
            shown = shown.without((*candidate.files, *candidate.left_out))
    return everything


def find_below(folder: Folder, tree: Tree) -> list[Found]:
    """Return the candidates in the folders below `folder`; what lies below one of them is part of it."""
    everything: list[Found] = []
    inside: list[Path] = []
    top = tree.relative(folder.path)
    for below in tree.below(folder):
        place = tree.relative(below.path)
        if any(place.is_relative_to(path) for path in inside):
            continue
        if any(training_kind(part) for part in place.relative_to(top).parts):
            continue
        found = find_here(below, tree)
        if found and not (below.folders and hold_no_model(found)):
            inside.append(place)
            everything += found
    return everything


def hold_no_model(found: Sequence[Found]) -> bool:
    """Return whether candidates turn out to be nothing but training state, which hides no model below."""
    return all(f.is_read and f.candidate.path.is_file() and _holds_no_model(f) for f in found)


def choose(found: Sequence[Found], step: int | None, subject: Path) -> Found:
    """Return the candidate that is meant, of which there is at least one.

    Raises:
        AmbiguousModelError: There are several models.
        OptionError: There is no such step.
    """
    if step is not None:
        found = _at_step(found, step)
    readable = [f for f in found if f.is_read]
    if not readable:
        return max(found, key=lambda f: f.numbers)
    readable = without_companions(readable)
    if len({f.series for f in readable}) > 1:
        readable = _without_training_state(readable)
    series = {f.series for f in readable}
    unnumbered = [f for f in readable if not f.numbers]
    if len(series) > 1 or (unnumbered and len(readable) > 1):
        raise _ambiguous(readable, subject)
    newest = max(readable, key=lambda f: f.numbers)
    like_it = [f for f in found if not f.is_read and f.series[0] == newest.series[0]]
    newer = [f for f in like_it if f.numbers > newest.numbers]
    return max(newer, key=lambda f: f.numbers) if newer else newest


def without_companions(found: list[Found]) -> list[Found]:
    """Return the candidates without models that only training needs, where there are others."""
    return [f for f in found if not _COMPANIONS.intersection(f.series)] or found


def steps_of(chosen: Found, found: Iterable[Found]) -> list[Found]:
    """Return all steps of the model that was chosen, oldest first."""
    return sorted((f for f in found if f.series == chosen.series), key=lambda f: f.numbers)


def _at_step(found: Sequence[Found], step: int) -> list[Found]:
    matching = [f for f in found if f.numbers and f.numbers[-1] == step]
    if not matching:
        there = sorted({f.numbers[-1] for f in found if f.numbers})
        raise OptionError(
            f"--step {step}",
            "is not among the checkpoints",
            saw=f"steps {listed([str(n) for n in there], at_most=20)}" if there else "names without numbers",
        )
    return matching


def _without_training_state(found: list[Found]) -> list[Found]:
    """Return the candidates without those that turn out to hold no model; one of each series tells."""
    newest = {f.series: f for f in sorted(found, key=lambda f: f.numbers)}
    if len(newest) > _MOST_LOOKED_INTO:
        return found
    empty = {series for series, one in newest.items() if _holds_no_model(one)}
    return [f for f in found if f.series not in empty] or found


def _holds_no_model(found: Found) -> bool:
    try:
        found.reader.open_candidate(found.candidate, select=None)
    except (TrainingStateError, UnknownLayoutError):
        return True
    except InputError:  # what is wrong with it is told when it is the one that is meant
        return False
    return False


def _ambiguous(found: list[Found], subject: Path) -> AmbiguousModelError:
    places = sorted({f"`{f.place}`" for f in found})
    example = as_argument(found[0].candidate.path)
    return AmbiguousModelError(
        subject,
        f"holds {len(places)} checkpoints that are not steps of one model",
        saw=listed(places, at_most=6),
        hint=f"Give the one that is meant, for example: unshard inspect {example}",
    )
