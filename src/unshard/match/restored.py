"""What a checkpoint is after what training did to its tensors was undone, and what a person decides of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from unshard.base import Base
from unshard.checkpoint import Checkpoint
from unshard.findings import Finding
from unshard.tensors import DescribedTensor
from unshard.tensors.computed import Computing, computed_tensor

AdapterChoice = Literal["merge", "keep", "both"]


@dataclass(frozen=True, slots=True)
class Choices:
    """What a person decides of how a checkpoint becomes a model.

    Attributes:
        dtype: The dtype policy: `base`, `keep`, or the name of a dtype.
        adapter: What becomes of an adapter: merged into the weights, kept by itself, or both.
        lora_alpha: The numerator of its scale, where no file tells it.
        computing: How what is computed in merging is described: as one piece, or by who can compute it.
    """

    dtype: str = "base"
    adapter: AdapterChoice = "merge"
    lora_alpha: float | None = None
    computing: Computing = computed_tensor


@dataclass(frozen=True, slots=True)
class Arranged:
    """A tensor whose rows were put into another order, which nothing but values can prove.

    Attributes:
        tensor: As it was put.
        others: The same in other orders, by what these are, in words.
    """

    tensor: DescribedTensor
    others: Mapping[str, DescribedTensor]


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
        reasons: What was done to make a tensor, in words, by its name; nothing where it is only renamed.
        arranged: A few tensors that tell whether rows were put into the right order, by their names.
    """

    tensors: Mapping[str, DescribedTensor]
    origins: Mapping[str, tuple[str, ...]]
    dropped: Mapping[str, str] = field(default_factory=dict)
    edits: Mapping[str, object] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    arranged: Mapping[str, Arranged] = field(default_factory=dict)


Stage = Callable[[Restored, Checkpoint, Base | None, Choices], Restored]
