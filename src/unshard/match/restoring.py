"""What training put between a model and its checkpoint, undone: quantisation, adapters, another naming.

Each stage takes the tensors as they are so far and returns others, with the names of what each is made
of. Nothing is read: tensors are views of others, or computed from them when they are read. A stage that
does not recognise anything returns what it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from unshard.base import Base
from unshard.checkpoint import Checkpoint
from unshard.findings import Finding
from unshard.tensors import DescribedTensor

AdapterChoice = Literal["merge", "keep", "both"]


@dataclass(frozen=True, slots=True)
class Choices:
    """What a person decides of how a checkpoint becomes a model.

    Attributes:
        dtype: The dtype policy: `base`, `keep`, or the name of a dtype.
        adapter: What becomes of an adapter: merged into the weights, kept by itself, or both.
        lora_alpha: The numerator of its scale, where no file tells it.
    """

    dtype: str = "base"
    adapter: AdapterChoice = "merge"
    lora_alpha: float | None = None


@dataclass(frozen=True, slots=True)
class Restored:
    """The tensors of a checkpoint as plain parameters of a model.

    Attributes:
        tensors: By name, in the checkpoint's order.
        origins: For each, the names in the checkpoint of what it is made of; those of the base are not
            among them.
        dropped: Names in the checkpoint that nothing is made of, and why.
        edits: Keys of config.json, dotted, that become untrue, and their new values; None removes one.
        findings: What a person should know.
    """

    tensors: Mapping[str, DescribedTensor]
    origins: Mapping[str, tuple[str, ...]]
    dropped: Mapping[str, str] = field(default_factory=dict)
    edits: Mapping[str, object] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


Stage = Callable[[Restored, Checkpoint, Base | None, Choices], Restored]

# In this order: what is quantised is a plain weight before an adapter is merged into it, and both have
# their own names before these are changed.
STAGES: tuple[Stage, ...] = ()


def restore(checkpoint: Checkpoint, base: Base | None, choices: Choices) -> Restored:
    """Return the tensors of a checkpoint as plain parameters, under names of Hugging Face's kind.

    Raises:
        UnsupportedLayoutError: It is recognised what was done to them, and not how to undo it.
        MatchError: Parts are missing that belong to others.
    """
    names = {name: (name,) for name in checkpoint.tensors}
    restored = Restored(checkpoint.tensors, names)
    for stage in STAGES:
        restored = stage(restored, checkpoint, base, choices)
    return restored
