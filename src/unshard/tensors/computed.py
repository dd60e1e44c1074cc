"""Tensors whose elements are computed when they are read, range by range.

A computed tensor is a described tensor of one piece, whose source computes instead of reading. So every
view of a tensor in a file is also a view of a computed one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from unshard.dtypes import DType
from unshard.tensors.boxes import Box
from unshard.tensors.described import DescribedTensor
from unshard.tensors.pieces import Piece
from unshard.tensors.sources import Source

# Describes what a source computes: as one piece, or as the pieces that different ranks can compute.
Computing = Callable[[Source, Sequence[int], DType], DescribedTensor]


def computed_tensor(source: Source, shape: Sequence[int], dtype: DType) -> DescribedTensor:
    """Return the tensor that one source computes.

    Args:
        source: Gives every range of its elements in row-major order; its `runs` are None.
        shape: As many elements as the source has.
        dtype: What the source gives.
    """
    return DescribedTensor(tuple(shape), dtype, (Piece(Box.whole(shape), source),))
