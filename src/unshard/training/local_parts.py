"""What one rank holds of a tensor: boxes of it, each with a view of the memory that its elements are in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unshard.dtypes import DTYPES, DType
from unshard.tensors import Box

# Copies on several ranks are compared by so many of their elements.
_COMPARED = 4096


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


def dtype_named(dtype: torch.dtype) -> DType | None:
    """Return our dtype for torch's, or None where there is none: quantised ones."""
    return DTYPES.get(str(dtype).removeprefix("torch."))


def fingerprint_of(elements: torch.Tensor) -> bytes:
    """Return a digest of some elements, by which copies of one tensor on several ranks are compared.

    Memory:
        A few thousand elements.
    """
    some = elements.detach()
    while some.numel() > _COMPARED:
        longest = max(range(some.dim()), key=lambda d: some.shape[d])
        some = some[(slice(None),) * longest + (slice(None, None, 2),)]
    some = some.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    raw = bytes(some.view(torch.uint8).tolist())
    return hashlib.sha256(raw).digest()[:8]
