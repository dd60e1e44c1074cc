"""A base that knows nothing but the shapes of a truth, for readers whose files do not tell them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from reader_suite import opened

from unshard.base import Base, ExpectedTensor
from unshard.checkpoint import Checkpoint
from unshard.match import with_shapes


def knowing(shapes: Mapping[str, tuple[int, ...]], *, in_order: bool = False) -> Base:
    """Return a base of tensors of these shapes."""
    expected = {name: ExpectedTensor(shape, None) for name, shape in shapes.items()}
    return Base(Path("base"), "base", "--base", b"{}", {}, expected, "headers", expected_in_order=in_order)


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def shaped(path: Path, tensors: Mapping[str, torch.Tensor]) -> Checkpoint:
    """Return a checkpoint in the shapes of the truth."""
    return with_shapes(opened(path), knowing(shapes_of(tensors)), accept_inferred=False)
