"""The record of a training, built by all ranks: what the script tells, what the model is, what it holds.

`build_record` is what saving calls; everything that it needs to know beforehand is a `Telling`, which is
checked before the first byte is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unshard.base import Base
from unshard.findings import Finding
from unshard.record.description import Record
from unshard.tensors import Tensor
from unshard.training.live_model import LiveModel
from unshard.training.ranks import Ranks


@dataclass(frozen=True, slots=True)
class Telling:
    """What a training script tells of itself; all of it is optional.

    Attributes:
        config: The training configuration: a dataclass, a namespace, a mapping, TrainingArguments, the path
            of a YAML or JSON file, or a tuple of several of these.
        tokenizer: The tokenizer.
        base: What training started from: a folder, or a name on the hub.
        step: The step.
        seed: The seed.
        data: What the model was trained on, in words.
        serve_dtypes: Dtypes that the model will be served in: `base`, or a dtype's name.
        digests: Whether tensors get digests.
    """

    config: object = None
    tokenizer: Any = None
    base: str | Path | None = None
    step: int | None = None
    seed: int | None = None
    data: str | None = None
    serve_dtypes: tuple[str, ...] = ("base",)
    digests: bool = True


@dataclass(frozen=True, slots=True)
class Recorded:
    """A record, and what lies beside it.

    Attributes:
        record: The record; equal on every rank.
        files: Content of the files that belong into the folder, the record among them, by name.
        findings: What a person should know.
    """

    record: Record
    files: Mapping[str, bytes]
    findings: tuple[Finding, ...]


def build_record(
    model: torch.nn.Module,
    live: LiveModel,
    tensors: Mapping[str, Tensor],
    telling: Telling,
    *,
    ranks: Ranks,
    base: Base | None,
) -> Recorded:
    """Return the record of a model in training. Every rank calls it, with the same arguments.

    Args:
        model: The model, wrapped or not.
        live: The same, described.
        tensors: The published tensors by name, made of the live ones; casts are looked through.
        telling: What the script tells.
        ranks: All ranks.
        base: The base, which tells the dtypes that it is served in.
    """
    raise NotImplementedError
