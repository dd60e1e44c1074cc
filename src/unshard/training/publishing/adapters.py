"""Adapters of low rank inside a model in training: merged by the ranks together, or written as PEFT does.

Every rank merges what it holds of a weight and nobody else's: for that it needs the factors, which are
small and lie with all ranks. They are passed around once, in blocks, into a temporary file of each rank
(`share_parts`); tensors of the live model are then read as if all of them were here. Each element is
computed in the tile that it has in the whole weight, so a merged model has, bit for bit, the numbers that
a conversion of the same weights has, whatever the ranks.

DoRA divides by norms of whole rows, so a rank that holds a part of a row needs the rest of it, too: with
FSDP the two rows at the ends of its part, under tensor parallelism those parts of its rows that lie with
others. Where a layer holds its weight transposed (`Conv1D`, embeddings) that is the whole weight.

Memory:
    4 MiB for every rank that is sent to or received from, at most 64 MiB together; a temporary file with
    the factors, and with what DoRA needs.

"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from unshard.dtypes import DType
from unshard.tensors import Box, CastTensor, DescribedTensor, Piece, Place, Run, Source, Tensor
from unshard.tensors.computed import computed_tensor
from unshard.tensors.merging import CastSource, MergedSource
from unshard.tensors.views import narrow
from unshard.training.live.source import Holdings, LiveSource, owner_of
from unshard.training.ranks.protocol import Ranks

_BLOCK_BYTES = 4 << 20
_BLOCKS_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class ComputedByRank:
    """Elements that one rank computes of what it holds and of what others gave it.

    Attributes:
        rank: The rank.
        whole: What computes them.
        needed: What it is computed of, wherever that lies.
    """

    rank: int
    whole: Source
    needed: tuple[LiveSource, ...]

    @property
    def count(self) -> int:
        """How many elements there are."""
        return self.whole.count

    @property
    def place(self) -> Place | None:
        """None: they lie in no file."""
        return None

    @property
    def origin(self) -> str:
        """Where they come from, in words."""
        return self.whole.origin

    def runs(self, start: int, stop: int) -> list[Run] | None:
        """Return None: they must be computed."""
        return None

    def read(self, start: int, stop: int, into: memoryview) -> None:
        """Fill `into` with elements `start` to `stop`, little-endian."""
        self.whole.read(start, stop, into)


@dataclass(frozen=True, slots=True)
class _Elsewhere:
    """Elements of a weight that lie with other ranks, and of which nothing is wanted: zeros."""

    count: int

    @property
    def place(self) -> Place | None:
        return None

    @property
    def origin(self) -> str:
        return "another rank"

    def runs(self, start: int, stop: int) -> list[Run] | None:
        return None

    def read(self, start: int, stop: int, into: memoryview) -> None:
        into[:] = bytes(len(into))


def computed_by_ranks(source: Source, shape: Sequence[int], dtype: DType) -> DescribedTensor:
    """Return what a source computes of live tensors, as the pieces that single ranks can compute.

    This is the `computing` of `Choices` for a model in training.
    """
    if isinstance(source, CastSource):
        pieces = _cast(source, dtype)
    elif isinstance(source, MergedSource):
        pieces = _merged(source, shape, dtype)
    else:
        raise TypeError(f"{type(source).__name__} is not computed by ranks")
    return DescribedTensor(tuple(shape), dtype, tuple(pieces))


def _cast(source: CastSource, dtype: DType) -> Iterator[Piece]:
    """Yield every piece of what is cast, cast."""
    before = source.tensor.source
    assert isinstance(before, DescribedTensor)
    for piece in before.pieces:
        shape = piece.box.shape
        part = DescribedTensor(shape, before.dtype, (Piece(Box.whole(shape), piece.source),))
        cast_part = CastSource(CastTensor(part, dtype, source.tensor.tally))
        yield Piece(
            piece.box, ComputedByRank(owner_of(piece.source), cast_part, tuple(_live_in(piece.source)))
        )


def _merged(source: MergedSource, shape: Sequence[int], dtype: DType) -> Iterator[Piece]:
    """Yield the pieces of a weight, merged by the ranks that hold them."""
    weight = source.weight
    assert isinstance(weight, DescribedTensor)
    held: dict[int, list[Piece]] = {}
    for piece in weight.pieces:
        held.setdefault(owner_of(piece.source), []).append(piece)
    for rank, own in held.items():
        wanted = _wanted_of_weight(source, weight, [piece.box for piece in own])
        seen = DescribedTensor(
            weight.shape,
            weight.dtype,
            tuple(
                piece if piece.box in wanted else replace(piece, source=_Elsewhere(piece.source.count))
                for piece in weight.pieces
            ),
        )
        merged = computed_tensor(replace(source, weight=seen), shape, dtype)
        others = [t for t in (source.a, source.b, source.magnitude) if t is not None]
        needed = tuple(dict.fromkeys(live for t in (seen, *others) for live in _live_of(t)))
        for piece in (each for each in own if each.box.volume):
            part = narrow(merged, piece.box)
            yield Piece(piece.box, ComputedByRank(rank, part.pieces[0].source, needed))


def _wanted_of_weight(source: MergedSource, weight: DescribedTensor, own: list[Box]) -> set[Box]:
    """Return the boxes of pieces that a rank needs of a weight to compute its own."""
    if source.magnitude is None:
        return set(own)
    boxes = [piece.box for piece in weight.pieces]
    if source.transposed:
        return set(boxes)
    rows = [(box.start[0], box.stop[0]) for box in own if box.volume]
    return {
        box for box in boxes if any(box.start[0] < stop and start < box.stop[0] for start, stop in rows)
    } | set(own)


def _live_of(tensor: Tensor) -> Iterator[LiveSource]:
    """Yield what live elements a tensor is made of."""
    described = tensor.source if isinstance(tensor, CastTensor) else tensor
    assert isinstance(described, DescribedTensor)
    for piece in described.pieces:
        yield from _live_in(piece.source)


def _live_in(source: Source) -> Iterator[LiveSource]:
    inner: object = source
    while inner is not None:
        if isinstance(inner, LiveSource):
            yield inner
            return
        if isinstance(inner, ComputedByRank):
            yield from inner.needed
            return
        inner = getattr(inner, "whole", None)


@contextmanager
def share_parts(
    tensors: Iterable[Tensor],
    holdings: Holdings,
    ranks: Ranks,
    *,
    folder: Path | None = None,
    block_bytes: int = _BLOCK_BYTES,
) -> Iterator[None]:
    """Give every rank what it needs of others to compute its own pieces, until the block is left.

    Every rank calls it, with the same tensors. Where none of them is computed nothing is sent.

    Args:
        tensors: The tensors of the result.
        holdings: What this rank holds.
        ranks: All ranks.
        folder: Where the temporary file lies; by default where such files are.
        block_bytes: The most that is sent to one rank at a time.
    """
    needs = _needs(tensors)
    if not needs:
        yield
        return
    before = holdings.remote
    step = max(1, min(block_bytes, _BLOCKS_BYTES // (2 * ranks.size)))
    with tempfile.TemporaryFile(dir=folder) as file:
        given = _Given(file.fileno(), _placed(needs, ranks.rank))
        for number in range(_rounds(needs, step)):
            _pass_around(number * step, step, needs, ranks, given)
        holdings.remote = given.read
        try:
            yield
        finally:
            holdings.remote = before


# By (sender, receiver): what is sent, in an order that both know.
_Needs = Mapping[tuple[int, int], tuple[LiveSource, ...]]


def _needs(tensors: Iterable[Tensor]) -> _Needs:
    """Return who must send what to whom."""
    needs: dict[tuple[int, int], dict[LiveSource, None]] = {}
    for tensor in tensors:
        described = tensor.source if isinstance(tensor, CastTensor) else tensor
        assert isinstance(described, DescribedTensor)
        for piece in described.pieces:
            inner: object = piece.source
            while inner is not None and not isinstance(inner, ComputedByRank):
                inner = getattr(inner, "whole", None)
            if inner is not None:
                for live in inner.needed:
                    if live.rank != inner.rank and live.count:
                        needs.setdefault((live.rank, inner.rank), {})[live] = None
    return {pair: tuple(lives) for pair, lives in needs.items()}


def _nbytes(lives: Iterable[LiveSource]) -> int:
    return sum(live.count * live.dtype.itemsize for live in lives)


def _rounds(needs: _Needs, step: int) -> int:
    return max(-(-_nbytes(lives) // step) for lives in needs.values())


def _placed(needs: _Needs, rank: int) -> dict[int, tuple[int, dict[int, tuple[int, int]]]]:
    """Return where in this rank's file lies what each sender gives: its start, and every slot's place."""
    placed, end = {}, 0
    for (sender, receiver), lives in sorted(needs.items()):
        if receiver == rank:
            start, slots = end, {}
            for live in lives:
                size = live.count * live.dtype.itemsize
                slots[live.slot] = (end, live.dtype.itemsize)
                end += size
            placed[sender] = (start, slots)
    return placed


@dataclass(frozen=True, slots=True)
class _Given:
    """What others gave this rank, in a temporary file."""

    file: int
    placed: Mapping[int, tuple[int, Mapping[int, tuple[int, int]]]]

    def write(self, sender: int, offset: int, block: memoryview) -> None:
        begin = self.placed[sender][0] + offset
        while block:
            written = os.pwrite(self.file, block, begin)
            block, begin = block[written:], begin + written

    def read(self, rank: int, slot: int, start: int, stop: int, into: memoryview) -> None:
        """Fill `into` with elements that another rank holds."""
        place, itemsize = self.placed[rank][1][slot]
        begin = place + start * itemsize
        while into:
            count = os.preadv(self.file, [into], begin)
            assert count, "what was given is there"
            into, begin = into[count:], begin + count


def _pass_around(offset: int, step: int, needs: _Needs, ranks: Ranks, given: _Given) -> None:
    """Send and receive one block of everything, which begins at byte `offset` of it."""
    outgoing, incoming = dict[int, memoryview](), dict[int, memoryview]()
    for (sender, receiver), lives in needs.items():
        length = min(step, _nbytes(lives) - offset)
        if length <= 0 or ranks.rank not in (sender, receiver):
            continue
        block = memoryview(bytearray(length))
        if ranks.rank == receiver:
            incoming[sender] = block
        else:
            _read_stream(lives, offset, block)
            outgoing[receiver] = block
    ranks.exchange("passing an adapter around", outgoing, incoming)
    for sender, block in incoming.items():
        given.write(sender, offset, block)


def _read_stream(lives: Sequence[LiveSource], offset: int, into: memoryview) -> None:
    """Fill `into` with bytes of sources that follow one another, from `offset` on."""
    for live in lives:
        size = live.dtype.itemsize
        nbytes = live.count * size
        if not into:
            return
        if offset >= nbytes:
            offset -= nbytes
            continue
        count = min(nbytes - offset, len(into))
        first, last = offset // size, -(-(offset + count) // size)
        raw = memoryview(bytearray((last - first) * size))
        live.read(first, last, raw)
        into[:count] = raw[offset - first * size :][:count]
        into, offset = into[count:], 0
