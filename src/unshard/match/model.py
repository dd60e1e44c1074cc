"""The result of matching: the tensors of the output, and a decision about every source tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unshard.findings import Finding
from unshard.tensors import Tensor


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one tensor of the checkpoint, or to one part of it.

    Attributes:
        source: Its name in the checkpoint.
        target: Its name in the output, or None where it is dropped.
        reason: Why it is dropped, renamed or cast; "" where it is written as it is.
    """

    source: str
    target: str | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """A model as it will be written: complete, named and typed as its base says.

    Attributes:
        tensors: Every tensor of the output by its final name, in the checkpoint's order; a cast is
            already part of the tensor.
        sources: For every name in `tensors`, the names of the tensors in the checkpoint that it is
            made of: one, or many where experts were put together.
        decisions: One for every tensor of the checkpoint, in its order; one for every part where
            experts were taken apart.
        config_edits: What the tensors prove wrong in the base's config.json, by dotted key
            (`text_config.vocab_size`); None removes a key.
        findings: What a person should know.
    """

    tensors: Mapping[str, Tensor]
    sources: Mapping[str, tuple[str, ...]]
    decisions: tuple[Decision, ...]
    config_edits: Mapping[str, object]
    findings: tuple[Finding, ...]
