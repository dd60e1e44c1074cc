"""What one rank holds of a tensor: pieces, each with the box of the whole tensor that it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from unshard.dtypes import DType
from unshard.readers.torch_save.torch_objects import StoredTensor
from unshard.tensors import Box


@dataclass(frozen=True, slots=True)
class LocalPiece:
    """A box of a tensor, and what a rank stored for it; its shape is that of the box.

    Attributes:
        box: Which elements of the whole tensor it holds.
        stored: Where they are.
    """

    box: Box
    stored: StoredTensor


@dataclass(frozen=True, slots=True)
class DistributedTensor:
    """One rank's part of a tensor.

    Attributes:
        kind: The class of torch it was, or what says that it is a part.
        shape: Elements of the whole tensor along every dimension.
        dtype: Number format.
        pieces: What the rank holds of it; none where it holds nothing.
        readings: Where placements can be read in two ways that differ for this rank: what it holds by
            each, or None where its local tensor has not that size. All ranks are read in one way.
        world_size: How many ranks there were at least, as far as the file tells.
        everything: The boxes of all ranks, where the file tells them; empty where it does not.
    """

    kind: Literal["DTensor", "ShardedTensor", "part by tensor parallelism"]
    shape: tuple[int, ...]
    dtype: DType
    pieces: Sequence[LocalPiece]
    world_size: int | None = None
    everything: frozenset[Box] = frozenset()
    readings: tuple[Sequence[LocalPiece] | None, ...] = ()
