"""What a naming scheme is made of: rows of names, and what happens to the tensors between them.

A row says how tensors of a scheme (`theirs`) are tensors of Hugging Face's files (`ours`), `*` standing
for the numbers in their names. Its steps lead there, and each step has a reverse, so that a row is
read in both directions. Where `ours` has one `*` more, the last one counts what a tensor of `theirs`
holds of one layer: its experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

Heads = Literal["query", "key"]
Order = Literal["blocks", "groups"]

_MOST_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rows of a head in another order: what rotates together is neighbours, or half a head apart.

    Attributes:
        heads: For each tensor, whose heads its rows are; None where they stay.
        halves: Whether they are half a head apart afterwards.
    """

    heads: tuple[Heads | None, ...]
    halves: bool = True

    @property
    def reversed(self) -> Rotary:
        """The step back."""
        return Rotary(self.heads, not self.halves)


@dataclass(frozen=True, slots=True)
class Apart:
    """One tensor becomes the queries, the keys and the values that lie in it.

    Attributes:
        order: All queries, all keys, all values; or group by group, each with the queries that share a key.
    """

    order: Order

    @property
    def reversed(self) -> Together:
        """The step back."""
        return Together(self.order)


@dataclass(frozen=True, slots=True)
class Together:
    """Queries, keys and values become one tensor; the reverse of `Apart`."""

    order: Order

    @property
    def reversed(self) -> Apart:
        """The step back."""
        return Apart(self.order)


@dataclass(frozen=True, slots=True)
class Join:
    """Tensors of one shape, as many as `count`, follow one another along a dimension of one."""

    dim: int
    count: int = 2

    @property
    def reversed(self) -> Part:
        """The step back."""
        return Part(self.dim, self.count)


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor becomes `count` of one shape; the reverse of `Join`."""

    dim: int
    count: int = 2

    @property
    def reversed(self) -> Join:
        """The step back."""
        return Join(self.dim, self.count)


@dataclass(frozen=True, slots=True)
class Unstack:
    """A tensor becomes one for every expert, which its first dimension counts."""

    @property
    def reversed(self) -> Stack:
        """The step back."""
        return Stack()


@dataclass(frozen=True, slots=True)
class Stack:
    """The tensors of all experts become one; the reverse of `Unstack`."""

    @property
    def reversed(self) -> Unstack:
        """The step back."""
        return Unstack()


@dataclass(frozen=True, slots=True)
class Unfold:
    """The first dimension, in which experts follow one another, becomes two."""

    @property
    def reversed(self) -> Fold:
        """The step back."""
        return Fold()


@dataclass(frozen=True, slots=True)
class Fold:
    """The first two dimensions become one; the reverse of `Unfold`."""

    @property
    def reversed(self) -> Unfold:
        """The step back."""
        return Unfold()


@dataclass(frozen=True, slots=True)
class Swap:
    """Two dimensions of every tensor are exchanged."""

    first: int
    second: int

    @property
    def reversed(self) -> Swap:
        """The step back, which is the same one."""
        return self


Step = Rotary | Apart | Together | Join | Part | Unstack | Stack | Unfold | Fold | Swap


@dataclass(frozen=True, slots=True)
class Row:
    """Tensors of a scheme, and the tensors that they are in Hugging Face's files.

    Attributes:
        theirs: Patterns of names in the scheme.
        ours: Patterns of names in Hugging Face's files; none where these have no place for it.
        steps: What happens to the tensors, one step after the other.
        older: Other names of `theirs` in files of earlier versions.
        lost: Why nothing is made of `theirs`, where `ours` is empty.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    steps: tuple[Step, ...] = ()
    older: tuple[tuple[str, ...], ...] = ()
    lost: str = ""

    @property
    def reversed(self) -> Row:
        """The row in the other direction."""
        return Row(self.ours, self.theirs, tuple(step.reversed for step in reversed(self.steps)))


@dataclass(frozen=True)
class Family:
    """The names that one scheme gives the tensors of models of one kind.

    Attributes:
        title: The models, in words.
        rows: All their tensors.
        marks: Patterns of names that all must be there.
        model_types: `model_type` of their configurations, where nothing but that tells them apart.
        obstacle: What keeps their tensors from being translated, or "".
    """

    title: str
    rows: tuple[Row, ...]
    marks: tuple[str, ...]
    model_types: tuple[str, ...]
    obstacle: str = ""

    @cached_property
    def places(self) -> dict[str, tuple[Row, int]]:
        """For every pattern of a name in the scheme, its row, and which of the row's tensors it is."""
        return {
            pattern: (row, number)
            for row in self.rows
            for names in (row.theirs, *row.older)
            for number, pattern in enumerate(names)
        }

    @property
    def reversed(self) -> Family:
        """The family in the other direction: from Hugging Face's names to those of the scheme."""
        rows = tuple(row.reversed for row in self.rows if row.ours)
        return Family(self.title, rows, (), self.model_types, self.obstacle)

    @cached_property
    def endings(self) -> frozenset[str]:
        """How names end of which one must be there: what follows the numbers in marks that have some."""
        names = (name for spellings in self._spellings.values() for name in spellings if "*" in name)
        return frozenset(name.rpartition("*")[2] for name in names)

    def has_marks(self, patterns: frozenset[str]) -> bool:
        """Return whether all marks are among patterns of names, in one spelling or another."""
        return all(self._spellings[mark] & patterns for mark in self.marks)

    @cached_property
    def _spellings(self) -> dict[str, frozenset[str]]:
        return {mark: frozenset(self._names_of(*self.places[mark])) for mark in self.marks}

    @staticmethod
    def _names_of(row: Row, number: int) -> Iterator[str]:
        yield from (names[number] for names in (row.theirs, *row.older))


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one project calls tensors.

    Attributes:
        name: Its word in code and `--json`.
        title: Whose names they are, for people.
        families: The models that it has names for.
    """

    name: str
    title: str
    families: tuple[Family, ...] = field(repr=False)


def split_name(name: str) -> tuple[str, tuple[int, ...]]:
    """Return a name with `*` for the numbers that stand between its dots, and these numbers."""
    parts, numbers = name.split("."), list[int]()
    for place, part in enumerate(parts):
        if (
            part.isdigit()
            and part.isascii()
            and len(part) <= _MOST_DIGITS
            and (part == "0" or part[0] != "0")
        ):
            numbers.append(int(part))
            parts[place] = "*"
    return ".".join(parts), tuple(numbers)


def filled(pattern: str, numbers: tuple[int, ...]) -> str:
    """Return the name that a pattern is with these numbers, of which it has as many as `*`."""
    first, *rest = pattern.split("*")
    return first + "".join(f"{number}{text}" for number, text in zip(numbers, rest, strict=True))


def named(table: str) -> tuple[Row, ...]:
    """Return the rows of a table: their name, ours, and older ones of theirs, separated by blanks."""
    lines = (line.split() for line in table.strip().splitlines())
    return tuple(
        Row((theirs,), (ours,), older=tuple((name,) for name in older)) for theirs, ours, *older in lines
    )
