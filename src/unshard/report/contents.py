"""What a report tells, as data; whatever command was run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from unshard.findings import Finding
from unshard.measures import Delta, Statistics
from unshard.proof.levels import Level

Tone = Literal["good", "attention", "bad", "neutral"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What it comes to.

    Attributes:
        tone: How it is coloured, and which mark stands beside it.
        words: One to three words that can be read from across the room.
        sentence: The same with its numbers.
    """

    tone: Tone
    words: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Fact:
    """A label and what belongs to it, in a line or in several."""

    label: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReportedTensor:
    """One tensor, with all that is known of it.

    Attributes:
        name: Its name in the result.
        shape: Its shape there.
        dtype: Its dtype there, by torch's name.
        nbytes: The bytes it takes there.
        file: The file it is in, or None where that is not known.
        sources: Its names where it came from; empty where that is not known.
        source_dtype: Its dtype there, or None where that is not known.
        sha256: Digest of its bytes, or None where none was taken.
        statistics: Its numbers, or None where they were not measured.
        delta: How far it is from the one it is compared with, or None where there is none.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    file: str | None = None
    sources: tuple[str, ...] = ()
    source_dtype: str | None = None
    sha256: str | None = None
    statistics: Statistics | None = None
    delta: Delta | None = None


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file that was read or written.

    Attributes:
        name: Its name, without the folders of a machine.
        size: Bytes, or None where that was not noted.
        origin: Where it came from, or None where it is what was read.
        sha256: Digest of its bytes, or None where none was taken.
    """

    name: str
    size: int | None = None
    origin: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Software:
    """A package, as it was and as it is.

    Attributes:
        name: What it is called.
        then: Its version when the model was made, or None where nothing tells.
        now: Its version here, or None where it is not installed.
        said_by: Who tells of `then`.
    """

    name: str
    then: str | None
    now: str | None
    said_by: str | None = None

    @property
    def differs(self) -> bool:
        """Whether both are known and not the same."""
        return self.then is not None and self.now is not None and self.then != self.now


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where everything came from.

    Attributes:
        facts: Layout, writer, step, base, options.
        sources: The files that were read.
        files: The files beside the tensors.
        dropped: Tensors of the source that are not in the result, each with the reason.
        edits: Keys of config.json that differ from the base's, with their values.
    """

    facts: tuple[Fact, ...] = ()
    sources: tuple[ListedFile, ...] = ()
    files: tuple[ListedFile, ...] = ()
    dropped: tuple[tuple[str, str], ...] = ()
    edits: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """One page.

    Attributes:
        command: The command that made it: `verify`.
        subject: What it was asked about, a name without the folders of a machine.
        verdict: What it comes to.
        facts: The few numbers that everybody wants to know first.
        levels: What was proven, each with its evidence.
        findings: What a person should know.
        tensors: Every tensor of the result, in its order.
        compared_with: What deltas are against, or None where there are none.
        unmatched: Names of tensors that cannot be compared, each list under the reason.
        software: Packages then and now.
        provenance: Where everything came from.
        created: When the page was made, in UTC.
    """

    command: str
    subject: str
    verdict: Verdict
    created: str
    facts: tuple[Fact, ...] = ()
    levels: tuple[Level, ...] = ()
    findings: tuple[Finding, ...] = ()
    tensors: tuple[ReportedTensor, ...] = ()
    compared_with: str | None = None
    unmatched: tuple[Fact, ...] = ()
    software: tuple[Software, ...] = ()
    provenance: Provenance = Provenance()
