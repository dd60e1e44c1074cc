"""Elements that lie in the memory of a rank that trains, as a source like any other.

A live model is described by all ranks together: every rank knows which rank holds which box of which
tensor, and holds its own boxes itself. So names, ties, experts, dtypes and files are decided by the same
code that converts checkpoints, and each rank then reads what is its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import torch

from unshard.dtypes import DType
from unshard.tensors import CastTensor, DescribedTensor, Piece, Place, Run, Source, Tensor
from unshard.tensors.boxes import split_range

# Reads elements that another rank holds: (rank, slot, start, stop, into).
RemoteRead = Callable[[int, int, int, int, memoryview], None]


@runtime_checkable
class OwnedSource(Protocol):
    """A source whose elements one rank can give, and nobody else without asking it."""

    @property
    def rank(self) -> int:
        """The rank."""


class Holdings:
    """What this rank holds of a live model: tensors by slot, a number that only this rank counts.

    Never sent to another rank; sources find the holdings of their own process by a token.
    """

    def __init__(
        self,
        token: str,
        rank: int,
        held: Mapping[int, torch.Tensor],
        published: Mapping[int, torch.dtype] = MappingProxyType({}),
    ) -> None:
        """Remember tensors until `close`.

        Args:
            token: What sources of the same live model carry.
            rank: This rank.
            held: For every slot a tensor of any strides and device; its row-major order is the order of
                the elements. They are views of the model's own memory, never copies.
            published: The dtypes that elements are read in, for slots where that is not their own.
        """
        self.token = token
        self.rank = rank
        self.held = held
        self._published = published
        self.remote: RemoteRead | None = None
        _HOLDINGS[token] = self

    def dtype_of(self, slot: int) -> torch.dtype:
        """Return the dtype that the elements of a slot are read in."""
        return self._published.get(slot, self.held[slot].dtype)

    def close(self) -> None:
        """Forget the tensors."""
        _HOLDINGS.pop(self.token, None)


_HOLDINGS: dict[str, Holdings] = {}


@dataclass(frozen=True, slots=True)
class LiveSource:
    """The elements of one box of a tensor, in the memory of one rank.

    Attributes:
        token: Which live model.
        rank: Who holds it.
        slot: Its number there.
        shape: The shape of the box.
        dtype: Number format.
        name: The tensor, for errors.
    """

    token: str
    rank: int
    slot: int
    shape: tuple[int, ...]
    dtype: DType
    name: str

    @property
    def count(self) -> int:
        """How many elements there are."""
        return math.prod(self.shape)

    @property
    def place(self) -> Place | None:
        """None: they lie in no file."""
        return None

    @property
    def origin(self) -> str:
        """Where they are, in words."""
        return f"`{self.name}` on rank {self.rank}"

    def runs(self, start: int, stop: int) -> list[Run] | None:
        """Return None: they must be read."""
        return None

    def read(self, start: int, stop: int, into: memoryview) -> None:
        """Fill `into` with elements `start` to `stop`, little-endian.

        What another rank holds is read through `Holdings.remote`, where that is set.
        """
        holdings = _HOLDINGS[self.token]
        if self.rank != holdings.rank:
            assert holdings.remote is not None, "another rank's elements are read only where it serves them"
            holdings.remote(self.rank, self.slot, start, stop, into)
        else:
            read_elements(holdings.held[self.slot], start, stop, into, holdings.dtype_of(self.slot))


def read_elements(
    tensor: torch.Tensor, start: int, stop: int, into: memoryview, dtype: torch.dtype | None = None
) -> None:
    """Fill `into` with elements `start` to `stop` of `tensor` in row-major order, little-endian.

    Args:
        tensor: Of any strides and device.
        start: The first element.
        stop: The element after the last one.
        into: As long as they are.
        dtype: What they become; their own without it.
    """
    if start == stop:
        return
    target = torch.frombuffer(into, dtype=tensor.dtype if dtype is None else dtype)
    elements = tensor.detach()
    if elements.is_contiguous():
        target.copy_(elements.view(-1)[start:stop])
        return
    done = 0
    for box in split_range(elements.shape, start, stop):
        part = elements[tuple(map(slice, box.start, box.stop))]
        target[done : done + box.volume].view(box.shape).copy_(part)
        done += box.volume


def owner_of(source: Source) -> int:
    """Return the rank that can give the elements of a source, or of a view of one."""
    inner: object = source
    while not isinstance(inner, OwnedSource):
        inner = inner.whole  # type: ignore[attr-defined]  # views and ranges keep what they are of
    return inner.rank


@dataclass(frozen=True, slots=True)
class OwnedPiece:
    """What one rank gives to a tensor of the result.

    Attributes:
        rank: The rank.
        piece: The box, and the source of its elements before any cast.
    """

    rank: int
    piece: Piece


def owned_pieces(tensor: Tensor) -> list[OwnedPiece]:
    """Return the pieces of a tensor of the result, each with the rank that gives it; a cast changes none."""
    described = tensor.source if isinstance(tensor, CastTensor) else tensor
    assert isinstance(described, DescribedTensor)
    return [OwnedPiece(owner_of(piece.source), piece) for piece in described.pieces]
