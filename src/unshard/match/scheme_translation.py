"""What follows from reading names as those of a scheme: which tensors become which others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unshard.match.scheme_steps import needs_heads
from unshard.recipes.schemes import Reading
from unshard.recipes.schemes.rows import Row, filled, split_name


@dataclass(frozen=True, slots=True)
class Job:
    """What one row makes of some tensors.

    Attributes:
        row: The row.
        numbers: The numbers in the names that both sides share.
        sources: For every name of the row, its tensor, or one for every expert.
    """

    row: Row
    numbers: tuple[int, ...]
    sources: tuple[tuple[str, ...], ...]

    def targets(self, counts: Sequence[int]) -> list[list[str]]:
        """Return the names on the other side, where each has as many tensors as `counts` says."""
        return [
            [
                filled(pattern, (*self.numbers, *([expert] if "*" in self._own(pattern) else [])))
                for expert in range(n)
            ]
            for pattern, n in zip(self.row.ours, counts, strict=True)
        ]

    def _own(self, pattern: str) -> str:
        """Return the rest of a pattern after the numbers that both sides share."""
        return pattern.split("*", len(self.numbers))[-1]


@dataclass(frozen=True, slots=True)
class Translation:
    """Names read as those of a family, and the work that follows from it.

    Attributes:
        reading: How the names are read.
        jobs: What is made of the tensors.
        kept: Names that no row speaks of, or that lack others of their row.
    """

    reading: Reading
    jobs: tuple[Job, ...]
    kept: tuple[str, ...]

    @property
    def needs_heads(self) -> bool:
        """Whether a step asks how many heads there are."""
        return any(needs_heads(step) for job in self.jobs for step in job.row.steps)

    @property
    def sources(self) -> frozenset[str]:
        """The names that something is made of, or that are dropped."""
        return frozenset(name for job in self.jobs for column in job.sources for name in column)

    @property
    def likely_names(self) -> list[str]:
        """The names on the other side, of experts the first."""
        return [name for job in self.jobs for (name,) in job.targets([1] * len(job.row.ours))]

    @property
    def work(self) -> frozenset[tuple[object, ...]]:
        """What is made of what, and how: two families may ask for the same."""
        return frozenset((job.sources, job.row.ours, job.numbers, job.row.steps) for job in self.jobs)


def translation_of(reading: Reading) -> Translation:
    """Return what follows from reading names as those of a family."""
    groups: dict[tuple[Row, tuple[int, ...]], dict[tuple[int, int], str]] = {}
    kept = []
    for name, inner in reading.names.items():
        pattern, numbers = split_name(inner)
        place = reading.family.places.get(pattern)
        if place is None:
            kept.append(name)
            continue
        row, part = place
        shared = _shared(row, len(numbers))
        expert = numbers[shared] if len(numbers) > shared else 0
        groups.setdefault((row, numbers[:shared]), {})[part, expert] = name
    jobs = []
    for (row, numbers), members in groups.items():
        sources = _complete(row, members)
        if sources is None:
            kept += members.values()
        else:
            jobs.append(Job(row, numbers, sources))
    return Translation(reading, tuple(jobs), tuple(kept))


def _shared(row: Row, numbers: int) -> int:
    """Return how many numbers of a name stand in those of the other side, too."""
    return min([numbers, *(pattern.count("*") for pattern in row.ours)])


def _complete(row: Row, members: Mapping[tuple[int, int], str]) -> tuple[tuple[str, ...], ...] | None:
    """Return the names of a row, expert by expert; None where one is missing."""
    experts = len(members) // len(row.theirs)
    places = [[(part, expert) for expert in range(experts)] for part in range(len(row.theirs))]
    if experts * len(row.theirs) != len(members) or not all(
        p in members for column in places for p in column
    ):
        return None
    return tuple(tuple(members[place] for place in column) for column in places)
