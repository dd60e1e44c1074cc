"""What `unshard check` tells, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from unshard.checkpoint import Step
from unshard.findings import Finding, Severity
from unshard.measures import Measurement

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
class JudgedTensor:
    """A tensor as the checks saw it.

    Attributes:
        shape: Its shape.
        dtype: Its dtype on disk.
        nbytes: Bytes on disk.
        origin: Where it lies, in words.
    """

    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    origin: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What `unshard check` tells.

    Attributes:
        path: What was checked: a model folder, or the newest step, or the one that was asked for.
        kind: `run` for what training left, `model` for a folder made for inference.
        layout: How it lies on disk, in words.
        steps: The verdict on every step of the run, oldest first; none for a model.
        taken: The path of the step that a conversion would take; None where none is whole, and for a model.
        base: The base that would be used, or None.
        findings: What is missing, what is wrong, and what a person should know; all of it about the step
            that was checked.
        checks: How many checks looked at it.
        is_deep: Whether the bytes of tensors were read.
        sound_bytes: Bytes that agree with the checksums their writer left, where they were read.
        tensors: What was judged, by the names of the model where these are known.
        measured: What their bytes told, where they were read.
    """

    path: Path
    kind: Literal["run", "model"]
    layout: str
    steps: tuple[StepVerdict, ...]
    taken: Path | None
    base: str | None
    findings: tuple[Finding, ...]
    checks: int
    is_deep: bool
    sound_bytes: int = 0
    tensors: Mapping[str, JudgedTensor] = field(default_factory=dict)
    measured: Mapping[str, Measurement] = field(default_factory=dict)

    def fails(self, on: Literal["error", "warning", "never"]) -> bool:
        """Return whether a finding is as bad as `on`, or worse."""
        severe = {"error": {Severity.ERROR}, "warning": {Severity.ERROR, Severity.WARNING}, "never": set()}
        return any(item.severity in severe[on] for item in self.findings)

    def count(self, severity: Severity) -> int:
        """Return how many findings have a severity."""
        return sum(item.severity is severity for item in self.findings)
