"""A model in training, described: which rank holds which box of which tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unshard.checkpoint import Checkpoint
from unshard.findings import Finding
from unshard.record.description import Distribution
from unshard.training.live_source import Holdings


@dataclass(frozen=True, slots=True)
class LiveModel:
    """A model in training as all ranks know it together.

    Attributes:
        checkpoint: Its tensors under their names in the module, wrappers removed, each covered exactly once
            by boxes that ranks hold (what several ranks hold is dealt out among them), in the order of the
            module's state dict; equal on every rank. Names that repeat a parameter are left out.
        ties: Those names, and the name that is kept.
        buffers: Which names are buffers.
        holdings: What this rank holds itself.
        distribution: How it is spread over ranks.
        findings: What a person should know.
    """

    checkpoint: Checkpoint
    ties: Mapping[str, str]
    buffers: frozenset[str]
    holdings: Holdings
    distribution: Distribution
    findings: tuple[Finding, ...]
