"""What a comparison of environments tells, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from unshard.findings import Finding, Severity
from unshard.record.description import Device, Environment

Verdict = Literal["same", "different", "enough", "only here", "only there", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that is known of a training.

    Attributes:
        value: What it was: a version or a range of versions, a dtype, the name of a device.
        evidence: What it was inferred from, or None where it was recorded.
    """

    value: str
    evidence: str | None = None


@dataclass(frozen=True, slots=True)
class Training:
    """What is known of the environment that a model was trained in, and of what it needs.

    Attributes:
        path: The checkpoint.
        record: The record that lies with it, or None.
        facts: What is known, by aspect; packages by their names.
        needs: For packages, versions that can read the files at all, whatever wrote them.
        config: The model's config.json; empty where there is none.
        weights_bytes: Bytes of all tensors as they lie, or None where that is not known.
        halved_bytes: The same with every floating number in 16 bits at most.
        devices: The devices that training ran on; empty where they are not known.
        findings: What a person should know of the record itself.
    """

    path: Path | None = None
    record: Path | None = None
    facts: Mapping[str, Fact] = field(default_factory=dict)
    needs: Mapping[str, Fact] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    weights_bytes: int | None = None
    halved_bytes: int | None = None
    devices: tuple[Device, ...] = ()
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """One aspect of the two environments, side by side.

    Attributes:
        aspect: What is compared: a package, `devices`, `attention`, ...
        training: What it was in training, or None where nothing tells.
        evidence: What that was inferred from, or None where it was recorded.
        here: What it is here, or None where it is not there.
        verdict: `same`; `different` without a consequence; `enough` where one side is what is
            needed and the other what is there; `only here` or `only there`; else how much the
            difference matters: `info`, `warning`, `error`.
        code: The finding that says so, or None.
        means: What the difference means for inference, or None where it means nothing.
        remedy: What to do.
    """

    aspect: str
    training: str | None
    evidence: str | None
    here: str | None
    verdict: Verdict
    code: str | None = None
    means: str | None = None
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class EnvironmentComparison:
    """This machine beside the environment that a model was trained in.

    Attributes:
        path: The checkpoint or model, or None where this machine is described alone.
        record: The record that tells of its training, or None where that was inferred.
        lines: Every aspect that is known on a side.
        here: This machine.
        findings: The lines that have a consequence, as findings, and what is wrong with the record itself.
    """

    path: Path | None
    record: Path | None
    lines: tuple[Line, ...]
    here: Environment
    findings: tuple[Finding, ...]

    @property
    def is_harmless(self) -> bool:
        """Whether nothing is worse than a mere fact."""
        return all(found.severity is Severity.INFO for found in self.findings)
