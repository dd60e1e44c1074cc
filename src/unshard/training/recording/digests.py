"""Digests of a model in training: every rank hashes the boxes that it owns, in every dtype that is wanted.

What is hashed are the published tensors: names, shapes and the cutting of experts are those of a converted
folder, so its tensors can be held against the digests without the ranks. Each element is read once,
however many dtypes there are.

Memory:
    4 MiB for every worker.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from unshard.dtypes import DType
from unshard.engines.workers import Job, run_jobs
from unshard.progress import Silence
from unshard.record.description import BoxDigest, RecordTensor
from unshard.tensors import CastTensor, DescribedTensor, Piece, Tensor, cast_block
from unshard.training.live.source import OwnedSource, owned_pieces

_BLOCK_BYTES = 1 << 20

# By name and dtype: the boxes of one rank.
Digests = Mapping[str, Mapping[str, Sequence[BoxDigest]]]


@dataclass(slots=True)
class _Hashed:
    """A piece and the digests of it that are wanted."""

    name: str
    dtype: DType
    piece: Piece
    wanted: tuple[DType, ...]
    found: dict[str, BoxDigest] = field(default_factory=dict)


class _Buffers:
    """What one worker reads into, and casts into."""

    def __init__(self) -> None:
        self.elements = bytearray(_BLOCK_BYTES)
        self.cast = bytearray(_BLOCK_BYTES)


def uncast(tensor: Tensor) -> DescribedTensor:
    """Return a published tensor in the dtype of training."""
    described = tensor.source if isinstance(tensor, CastTensor) else tensor
    assert isinstance(described, DescribedTensor)
    return described


def is_owned(tensor: DescribedTensor) -> bool:
    """Return whether every element of a tensor is one that some rank can give; others get no digests."""
    for piece in tensor.pieces:
        inner: object = piece.source
        while not isinstance(inner, OwnedSource) and inner is not None:
            inner = getattr(inner, "whole", None)
        if inner is None:
            return False
    return True


def hash_owned(
    tensors: Mapping[str, Tensor], served: Mapping[str, Sequence[DType]], *, rank: int, workers: int
) -> Digests:
    """Return the digests of what one rank owns of every tensor.

    Args:
        tensors: The published tensors; casts are looked through.
        served: The dtypes of each beside its own, by name.
        rank: The rank.
        workers: Threads.
    """
    hashed = []
    for name, tensor in tensors.items():
        described = uncast(tensor)
        wanted = tuple(dict.fromkeys((described.dtype, *served.get(name, ()))))
        owned = (
            (each.piece for each in owned_pieces(described) if each.rank == rank)
            if is_owned(described)
            else ()
        )
        hashed += [_Hashed(name, described.dtype, piece, wanted) for piece in owned if piece.box.volume]
    hashed.sort(key=lambda each: -each.piece.box.volume)
    run_jobs(_jobs(hashed), _Buffers, workers=workers, progress=Silence())
    digests: dict[str, dict[str, list[BoxDigest]]] = {}
    for each in hashed:
        for dtype, digest in each.found.items():
            digests.setdefault(each.name, {}).setdefault(dtype, []).append(digest)
    return digests


def _jobs(hashed: Sequence[_Hashed]) -> Iterator[Job[_Buffers]]:
    for each in hashed:
        yield partial(_hash, each)


def _hash(each: _Hashed, buffers: _Buffers) -> Iterator[int]:
    """Hash one piece in all wanted dtypes, block by block."""
    import numpy as np

    source, size = each.piece.source, each.dtype.itemsize
    step = _BLOCK_BYTES // max(size, *(dtype.itemsize for dtype in each.wanted))
    hashers = {dtype: hashlib.sha256() for dtype in each.wanted}
    for start in range(0, source.count, step):
        count = min(step, source.count - start)
        block = memoryview(buffers.elements)[: count * size]
        source.read(start, start + count, block)
        for dtype, hasher in hashers.items():
            if dtype == each.dtype:
                hasher.update(block)
            else:
                cast = memoryview(buffers.cast)[: count * dtype.itemsize]
                cast_block(np.frombuffer(block, each.dtype.numpy), np.frombuffer(cast, dtype.numpy))
                hasher.update(cast)
        yield len(block)
    box = each.piece.box
    each.found = {
        dtype.name: BoxDigest(tuple(box.start), tuple(box.stop), hasher.hexdigest())
        for dtype, hasher in hashers.items()
    }


def record_tensors(tensors: Mapping[str, Tensor], parts: Sequence[Digests]) -> dict[str, RecordTensor]:
    """Return the tensors of a record from the digests of all ranks; none where digests were not taken."""
    found: dict[str, dict[str, list[BoxDigest]]] = {}
    for part in parts:
        for name, by_dtype in part.items():
            for dtype, boxes in by_dtype.items():
                found.setdefault(name, {}).setdefault(dtype, []).extend(boxes)
    return {
        name: RecordTensor(
            shape=tuple(tensor.shape),
            dtype=uncast(tensor).dtype.name,
            digests={
                dtype: tuple(sorted(boxes, key=lambda box: box.start))
                for dtype, boxes in sorted(found.get(name, {}).items())
            },
        )
        for name, tensor in tensors.items()
    }
