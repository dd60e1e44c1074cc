"""What proof comes to: a verdict and its evidence for each of its levels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from unshard.findings import Finding, Severity
from unshard.proof.bytes import BytesProof
from unshard.proof.forward import ForwardProof
from unshard.sizes import format_size

Verdict = Literal["sound", "differs", "not checked"]


@dataclass(frozen=True, slots=True)
class Losses:
    """Mean cross entropies on one text, in nats.

    Attributes:
        own: That of the model.
        base: That of its base, or None where it was not taken.
        uniform: That of guessing blindly.
    """

    own: float
    base: float | None
    uniform: float


@dataclass(frozen=True, slots=True)
class Level:
    """What one level of proof found.

    Attributes:
        name: `replicas`, `bytes`, `structure`, `record`, `forward` or `fingerprint`.
        verdict: `sound`, `differs`, or `not checked`.
        evidence: What was compared with what, in numbers.
        findings: What differs, and what a person should know.
        losses: What a forward pass measured, where it did.
    """

    name: Literal["replicas", "bytes", "structure", "record", "forward", "fingerprint"]
    verdict: Verdict
    evidence: tuple[str, ...]
    findings: tuple[Finding, ...] = ()
    losses: Losses | None = None


def verdict_of(findings: Iterable[Finding]) -> Verdict:
    """Return `differs` if any of the findings is an error."""
    return "differs" if any(f.severity is Severity.ERROR for f in findings) else "sound"


def bytes_level(proof: BytesProof, *more: str, findings: tuple[Finding, ...] = ()) -> Level:
    """Return the level of a comparison with the source; `more` and `findings` are what else was found."""
    found = (*proof.findings, *findings)
    evidence = []
    if proof.tensors:
        size = format_size(proof.compared_bytes)
        equal = "read back and equal bit for bit to the source or its cast"
        evidence.append(f"{proof.tensors:,} tensors, {size}, {equal}")
        evidence.append(f"checksums of the source: {_share(proof)}")
    if proof.differences:
        evidence[:1] = [f"{len(proof.differences):,} of {proof.tensors:,} tensors differ from the source"]
    return Level("bytes", verdict_of(found), (*evidence, *more), found)


def structure_level(compared: str, findings: tuple[Finding, ...]) -> Level:
    """Return the level of a comparison of names, shapes, dtypes and configuration."""
    return Level("structure", verdict_of(findings), (compared,), findings)


def forward_level(proof: ForwardProof) -> Level:
    """Return the level of a forward pass."""
    verdict = "not checked" if proof.verdict == "untried" else verdict_of(proof.findings)
    own, uniform = proof.loss, proof.uniform_loss
    losses = None if own is None or uniform is None else Losses(own, proof.base_loss, uniform)
    return Level("forward", verdict, (proof.verdict, *proof.evidence), proof.findings, losses)


def _share(proof: BytesProof) -> str:
    """Return how much of the source its writer's checksums vouch for."""
    if not proof.unchecked_bytes:
        return f"all of {format_size(proof.checked_bytes)} agree"
    if not proof.checked_bytes:
        return "its writer left none"
    return f"{format_size(proof.checked_bytes)} agree, {format_size(proof.unchecked_bytes)} have none"
