"""Every error a user can meet.

    UnshardError
    ├── InputError                 what was given cannot be read
    │   ├── PathNotFoundError          (FileNotFoundError)
    │   ├── UnknownLayoutError         not a checkpoint, or the wrong folder
    │   ├── UnsupportedLayoutError     recognised by name, and not read
    │   ├── DamagedFileError           truncated, a checksum that disagrees, changed while being read
    │   ├── IncompleteCheckpointError  files that belong to it are not there
    │   ├── UnsafeFileError            a file that lies about itself, or asks for code to be run
    │   ├── TrainingStateError         an optimizer file where a model was expected
    │   └── AmbiguousModelError        several models, and nothing says which one is meant
    ├── BaseModelError             the base is missing, unreadable, or of another model
    ├── MatchError                 the tensors are not those the model needs
    ├── OutputError                the result cannot be written where it was asked for
    │   ├── OutputExistsError          (FileExistsError)
    │   ├── OutputInsideSourceError
    │   ├── NoSpaceError
    │   └── OutputPermissionError      (PermissionError)
    ├── OptionError                (ValueError) an option that has no meaning
    ├── MissingExtraError          (ImportError) a command needs packages that are not installed
    ├── VerificationError          what was written is not what it should be
    ├── InferenceError             the model loads, and does not work
    ├── RankError                  a rank of a training failed, died, or did not come
    └── InterruptedRunError        stopped by a signal, with nothing left behind

An error says which thing, what is wrong with it, what was seen and what was expected, and — as its
hint — what to do next. A foreign exception becomes one of these in one place per boundary; a bug
keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from unshard.findings import Finding


def printable(text: str) -> str:
    """Return `text` with its control characters spelled out; names in a file may hold any."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def listed(names: Sequence[str], *, at_most: int = 3) -> str:
    """Return the first few of many names, and how many more there are."""
    more = len(names) - at_most
    return ", ".join(names[:at_most]) + (f" and {more} more" if more > 0 else "")


class UnshardError(Exception):
    """The base of every error that is a person's to mend.

    Attributes:
        subject: The thing the error is about: a path, a tensor, an option.
        problem: What is wrong with it, as a clause without a full stop.
        saw: What was found, or None where the problem says it all.
        expected: What was needed instead.
        hint: The next action.
        code: The finding that says the same where problems are only looked for, or None.
        exit_code: What the command line exits with.
    """

    exit_code: ClassVar[int] = 1
    code: str | None = None

    def __init__(
        self,
        subject: object,
        problem: str,
        *,
        saw: object = None,
        expected: object = None,
        hint: str | None = None,
    ) -> None:
        self.subject = str(subject)
        self.problem = problem
        self.saw = None if saw is None else str(saw)
        self.expected = None if expected is None else str(expected)
        self.hint = hint
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """The sentence without its hint: subject, problem, saw and expected."""
        evidence = [
            f"{word} {value}"
            for word, value in (("saw", self.saw), ("expected", self.expected))
            if value is not None
        ]
        tail = f": {', '.join(evidence)}" if evidence else ""
        return printable(f"`{self.subject}` {self.problem}{tail}")

    def __str__(self) -> str:
        # KeyError and OSError, which some leaves inherit, print themselves in their own ways.
        return self.message if self.hint is None else f"{self.message}\n\nhint: {self.hint}"


class InputError(UnshardError):
    """What was given cannot be read as a checkpoint or a model."""


class PathNotFoundError(InputError, FileNotFoundError):
    """Nothing lies at the path that was given."""


class UnknownLayoutError(InputError):
    """Nothing at the path is a checkpoint; the hint names a folder that is, where there is one."""


class UnsupportedLayoutError(InputError):
    """The layout is recognised by name, and is one that is not read."""


class DamagedFileError(InputError):
    """A file is shorter than it says, disagrees with its checksum, or changed while it was read."""


class IncompleteCheckpointError(InputError):
    """Files, or parts of files, that hold part of the model are not there.

    Attributes:
        gaps: Everything that is missing, one finding each; the sentence shows the first of them.
    """

    def __init__(
        self,
        subject: object,
        problem: str,
        *,
        saw: object = None,
        expected: object = None,
        hint: str | None = None,
        gaps: Sequence[Finding] = (),
    ) -> None:
        self.gaps = tuple(gaps)
        super().__init__(subject, problem, saw=saw, expected=expected, hint=hint)


class UnsafeFileError(InputError):
    """A file contradicts itself, or asks for code to be run."""


class TrainingStateError(InputError):
    """The file holds optimizer or other training state, and no model."""


class AmbiguousModelError(InputError):
    """There are several models, and nothing says which one is meant."""


class BaseModelError(UnshardError):
    """The base model is missing, unreadable, or not the one the tensors belong to."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One tensor that keeps a checkpoint from being a model.

    Attributes:
        kind: `missing`, `unexpected`, `shape`, `dtype`, or `value`.
        name: The tensor's name in the model, or in the checkpoint where the model has none for it.
        saw: What the checkpoint has.
        expected: What the model needs.
    """

    kind: Literal["missing", "unexpected", "shape", "dtype", "value"]
    name: str
    saw: str | None = None
    expected: str | None = None


class MatchError(UnshardError):
    """The tensors of the checkpoint are not the tensors the model needs.

    Attributes:
        mismatches: Every tensor that is wrong; the sentence shows the first of each kind.
    """

    def __init__(
        self,
        subject: object,
        problem: str,
        *,
        mismatches: Sequence[Mismatch] = (),
        hint: str | None = None,
    ) -> None:
        self.mismatches = tuple(mismatches)
        super().__init__(subject, problem, hint=hint)


class OutputError(UnshardError):
    """The result cannot be written where it was asked for."""


class OutputExistsError(OutputError, FileExistsError):
    """The output is already there, and overwriting was not asked for."""


class OutputInsideSourceError(OutputError):
    """The output lies inside the checkpoint, or the checkpoint inside the output."""


class NoSpaceError(OutputError):
    """The disk cannot hold the result."""


class OutputPermissionError(OutputError, PermissionError):
    """The folder of the output does not let us write."""


class OptionError(UnshardError, ValueError):
    """An option has a value that means nothing."""


class MissingExtraError(UnshardError, ImportError):
    """A command needs packages that an extra of this package installs."""

    def __init__(self, feature: str, *, extra: str, package: str, command: str | None = None) -> None:
        self.extra = extra
        super().__init__(
            feature,
            f"needs the package `{package}`, which is not installed",
            hint=command or f'pip install "unshard[{extra}]"',
        )


class VerificationError(UnshardError):
    """What lies on disk is not what it should be."""

    exit_code = 3


class InferenceError(UnshardError):
    """The model was loaded, and its answers cannot be trusted."""


class RankError(UnshardError):
    """A rank of a training failed, died, or did not come in time; what the ranks did together is void."""


class InterruptedRunError(UnshardError):
    """A signal stopped the work; nothing that looks finished was left behind."""

    exit_code = 130
