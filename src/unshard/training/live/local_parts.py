"""What one rank holds of a tensor: boxes of it, each with a view of the memory that its elements are in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unshard.dtypes import DType
from unshard.tensors import Box
from unshard.tensors.boxes import split_range

_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class LocalPart:
    """A box of a tensor that this rank holds.

    Attributes:
        box: Which one.
        elements: A view of the model's memory, of the box's shape; its row-major order is the box's.
    """

    box: Box
    elements: torch.Tensor

    def within(self, box: Box) -> torch.Tensor:
        """Return the elements of a smaller box of the tensor, which is inside this one."""
        inside = box.relative_to(self.box.start)
        return self.elements[tuple(map(slice, inside.start, inside.stop))]


@dataclass(frozen=True, slots=True)
class LocalTensor:
    """A tensor of the model, as far as this rank holds it.

    Attributes:
        shape: The shape of the whole.
        dtype: What its elements are published in; a buffer that FSDP1 has cast is cast back when read.
        parts: What this rank holds; they do not overlap.
        is_copied: Whether other ranks hold the same.
    """

    shape: tuple[int, ...]
    dtype: DType
    parts: Sequence[LocalPart]
    is_copied: bool


def checksum_of(elements: torch.Tensor) -> bytes:
    """Return what is equal for equal bits, by which copies of one tensor on several ranks are compared.

    Sums of all bytes, block by block: they are read once, where they lie.

    Memory:
        At most 8 MiB, and nothing where the elements lie one after the other.
    """
    elements, sums = elements.detach().resolve_conj().resolve_neg(), []
    step = _BLOCK_BYTES // elements.element_size()
    for start in range(0, elements.numel(), step):
        boxes = split_range(elements.shape, start, min(start + step, elements.numel()))
        sums += [_sum(elements[tuple(map(slice, box.start, box.stop))]) for box in boxes]
    return hashlib.sha256(repr(sums).encode()).digest()[:8]


def _sum(block: torch.Tensor) -> tuple[int, int]:
    """Return the sum of the bytes of a block, eight at a time, and of those that remain."""
    flat = block.reshape(-1)  # of one element it may have any stride
    raw = (flat if flat.stride(0) == 1 else flat.clone(memory_format=torch.contiguous_format)).view(
        torch.uint8
    )
    whole = raw.numel() // 8 * 8
    longs = raw[:whole] if raw.storage_offset() % 8 == 0 else raw[:whole].clone()
    return int(longs.view(torch.int64).sum()), int(raw[whole:].sum())
