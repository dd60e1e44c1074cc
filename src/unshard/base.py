"""The base: the model training started from, which knows what a checkpoint does not.

It gives the configuration, the tokenizer, and — from the headers of its own weights — the names,
shapes and dtypes the result must have. Its weights are never copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from unshard.dtypes import DType


@dataclass(frozen=True, slots=True)
class ExpectedTensor:
    """What the model needs under one name."""

    shape: tuple[int, ...]
    dtype: DType


@dataclass(frozen=True, slots=True)
class Base:
    """A base model, read from its folder.

    Attributes:
        path: Its folder.
        reference: How it was named: a folder, or a name on a model hub.
        origin: How it was found, in words: "--base", "model_name in train_params.yaml".
        config_bytes: Its config.json, byte for byte.
        config: The same, parsed.
        expected: What the model needs, by name, or None where neither the base's weights nor the
            model class could tell.
        expected_from: Where `expected` comes from: "safetensors headers", "model class".
        side_files: Every file that belongs to a model folder besides the weights and config.json,
            by name relative to the folder.
        found_implicitly: Whether it was found without being named by the user.
    """

    path: Path
    reference: str
    origin: str
    config_bytes: bytes
    config: Mapping[str, object]
    expected: Mapping[str, ExpectedTensor] | None
    expected_from: str | None
    side_files: Mapping[str, Path] = field(default_factory=dict)
    found_implicitly: bool = False
