"""What a base is, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from unshard.dtypes import DType


@dataclass(frozen=True, slots=True)
class ExpectedTensor:
    """What the model needs under one name.

    Attributes:
        shape: Its shape, or None where only the name is known.
        dtype: Its dtype, or None where only the name is known.
        is_buffer: Whether it is a buffer, which no dtype policy touches.
    """

    shape: tuple[int, ...] | None
    dtype: DType | None
    is_buffer: bool = False


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
        expected_from: Where `expected` comes from, in words fit for a message.
        expected_in_order: Whether the names in `expected` are in the order in which the model registers
            them; headers of files have an order of their own.
        ties: Names that repeat another tensor of the model class, and that tensor; empty where the
            model class was not asked.
        side_files: Every file that belongs to a model folder besides the weights and config.json,
            by name relative to the folder. Those of the tokenizer are the checkpoint's own where it
            has them.
        embedded: Content of such files that lies inside the checkpoint and nowhere else, by name.
        found_implicitly: Whether it was found without being named by the user.
    """

    path: Path
    reference: str
    origin: str
    config_bytes: bytes
    config: Mapping[str, object]
    expected: Mapping[str, ExpectedTensor] | None
    expected_from: str | None
    expected_in_order: bool = False
    ties: Mapping[str, str] = field(default_factory=dict)
    side_files: Mapping[str, Path] = field(default_factory=dict)
    embedded: Mapping[str, bytes] = field(default_factory=dict)
    found_implicitly: bool = False
