"""Views of described tensors: narrowed, taken apart, joined, permuted, reshaped. Nothing is read.

A view only rewrites pieces. A piece of a file stays a piece of a file, at another offset and with
other strides; a piece of any other source becomes a `ViewSource` over it.

Memory:
    Pieces are rewritten when they are first looked at, each at most once for every view of it. Taking
    a tensor apart goes over its pieces once, however many parts there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from itertools import accumulate, product

from unshard.tensors.boxes import Box, box_ranges, split_range
from unshard.tensors.described import DescribedTensor
from unshard.tensors.pieces import Piece
from unshard.tensors.view_sources import LatePieces, part_of


def narrow(tensor: DescribedTensor, box: Box) -> DescribedTensor:
    """Return the part of a tensor that lies in `box`."""

    def pieces() -> Iterator[Piece]:
        for piece in tensor.pieces:
            common = piece.box.intersect(box)
            if common is not None:
                inside = common.relative_to(piece.box.start)
                yield Piece(common.relative_to(box.start), part_of(piece, tensor.dtype, inside))

    return _viewed(tensor, box.shape, pieces)


def split(tensor: DescribedTensor, dim: int, sizes: Sequence[int]) -> list[DescribedTensor]:
    """Return consecutive parts of a tensor along `dim`, which have these sizes there.

    Raises:
        ValueError: The sizes do not add up to that of the tensor.
    """
    if sum(sizes) != tensor.shape[dim]:
        raise ValueError(f"parts of {list(sizes)} do not make up {tensor.shape[dim]}")
    whole = Box.whole(tensor.shape)
    stops = list(accumulate(sizes))
    return [
        narrow(tensor, Box(_with(whole.start, dim, stop - size), _with(whole.stop, dim, stop)))
        for size, stop in zip(sizes, stops, strict=True)
    ]


def unstack(tensor: DescribedTensor, dim: int) -> list[DescribedTensor]:
    """Return the tensors, one dimension less, that lie at every index along `dim`."""
    slices = _Slices(tensor, dim)
    shape = _without(tensor.shape, dim)
    return [_viewed(tensor, shape, partial(slices.pieces, index)) for index in range(tensor.shape[dim])]


def stack(tensors: Sequence[DescribedTensor], dim: int) -> DescribedTensor:
    """Return tensors of one shape as one tensor, with a new dimension at `dim` that counts them.

    Raises:
        ValueError: There are none, or their shapes or dtypes differ.
    """
    first = _like(tensors, "stacked", lambda shape: shape)

    def pieces() -> Iterator[Piece]:
        for index, tensor in enumerate(tensors):
            for piece in tensor.pieces:
                start = (*piece.box.start[:dim], index, *piece.box.start[dim:])
                stop = (*piece.box.stop[:dim], index + 1, *piece.box.stop[dim:])
                yield Piece(Box(start, stop), piece.source)

    return _viewed(first, (*first.shape[:dim], len(tensors), *first.shape[dim:]), pieces)


def concatenate(tensors: Sequence[DescribedTensor], dim: int) -> DescribedTensor:
    """Return tensors as one tensor in which they follow one another along `dim`.

    Raises:
        ValueError: There are none, or their dtypes, or their shapes apart from `dim`, differ.
    """
    first = _like(tensors, "concatenated", lambda shape: _without(shape, dim))
    sizes = [tensor.shape[dim] for tensor in tensors]

    def pieces() -> Iterator[Piece]:
        for offset, tensor in zip(accumulate(sizes, initial=0), tensors, strict=False):
            for piece in tensor.pieces:
                box = piece.box
                start = _with(box.start, dim, box.start[dim] + offset)
                stop = _with(box.stop, dim, box.stop[dim] + offset)
                yield Piece(Box(start, stop), piece.source)

    return _viewed(first, _with(first.shape, dim, sum(sizes)), pieces)


def permute(tensor: DescribedTensor, order: Sequence[int]) -> DescribedTensor:
    """Return a tensor whose dimension `d` is dimension `order[d]` of the one that is given.

    Raises:
        ValueError: `order` does not hold every dimension once.
    """
    if sorted(order) != list(range(len(tensor.shape))):
        raise ValueError(f"{list(order)} is no order of {len(tensor.shape)} dimensions")

    def pieces() -> Iterator[Piece]:
        for piece in tensor.pieces:
            start = tuple(piece.box.start[d] for d in order)
            stop = tuple(piece.box.stop[d] for d in order)
            yield Piece(Box(start, stop), part_of(piece, tensor.dtype, Box.whole(piece.box.shape), order))

    return _viewed(tensor, tuple(tensor.shape[d] for d in order), pieces)


def reshape(tensor: DescribedTensor, shape: Sequence[int]) -> DescribedTensor:
    """Return a tensor of the same elements, in the same row-major order, in another shape.

    A piece that ends inside a dimension which is put together with an outer one becomes many: one for
    every row of it.

    Raises:
        ValueError: The shapes do not have equally many elements.
    """
    if math.prod(shape) != math.prod(tensor.shape):
        raise ValueError(f"{tensor.shape} and {tuple(shape)} do not have equally many elements")
    groups = _common_groups(tensor.shape, shape)

    def pieces() -> Iterator[Piece]:
        for piece in tensor.pieces:
            yield from _reshaped(piece, tensor, groups)

    return _viewed(tensor, tuple(shape), pieces)


# Dimensions of the old shape, and those of the new one that hold as many elements.
_Group = tuple[range, tuple[int, ...]]


def _common_groups(old: Sequence[int], new: Sequence[int]) -> list[_Group]:
    """Return the smallest groups of neighbouring dimensions that correspond to one another."""
    if 0 in old:
        return [(range(len(old)), tuple(new))]
    groups: list[_Group] = []
    i = j = 0
    while i < len(old) or j < len(new):
        first, taken = i, [*new[j : j + 1]]
        count, other = (old[i] if i < len(old) else 1), math.prod(taken)
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while count != other:
            if count < other:
                count, i = count * old[i], i + 1
            else:
                other, j = other * new[j], j + 1
                taken.append(new[j - 1])
        groups.append((range(first, i), tuple(taken)))
    return groups


def _reshaped(piece: Piece, tensor: DescribedTensor, groups: Sequence[_Group]) -> Iterator[Piece]:
    """Yield a piece as boxes of another shape."""
    choices: list[list[tuple[Box, int, int]]] = []  # per group: a box, and which elements of the piece it is
    for dims, new in groups:
        old = [tensor.shape[d] for d in dims]
        box = Box(tuple(piece.box.start[d] for d in dims), tuple(piece.box.stop[d] for d in dims))
        parts = [part for first, last in box_ranges(old, box) for part in split_range(new, first, last)]
        stops = list(accumulate(part.volume for part in parts))
        choices.append([(part, stop - part.volume, stop) for part, stop in zip(parts, stops, strict=True)])
    if not all(choices):
        return
    # The piece as one dimension for every group: of that, every choice of parts is a box.
    flat = Piece(Box.whole([parts[-1][2] for parts in choices]), piece.source)
    for chosen in product(*choices):
        inside = Box(tuple(first for _, first, _ in chosen), tuple(last for _, _, last in chosen))
        start = tuple(i for part, _, _ in chosen for i in part.start)
        stop = tuple(i for part, _, _ in chosen for i in part.stop)
        yield Piece(Box(start, stop), part_of(flat, tensor.dtype, inside))


class _Slices:
    """The pieces of a tensor by the index along one dimension, which they lose."""

    def __init__(self, tensor: DescribedTensor, dim: int) -> None:
        self._tensor, self._dim = tensor, dim

    def pieces(self, index: int) -> Iterator[Piece]:
        """Return the pieces at an index."""
        return iter(self._found[index])

    @cached_property
    def _found(self) -> list[list[Piece]]:
        dim = self._dim
        found: list[list[Piece]] = [[] for _ in range(self._tensor.shape[dim])]
        for piece in self._tensor.pieces:
            box = Box(_without(piece.box.start, dim), _without(piece.box.stop, dim))
            inside = Box.whole(piece.box.shape)
            for at in range(inside.stop[dim]):
                part = Box(_with(inside.start, dim, at), _with(inside.stop, dim, at + 1))
                source = part_of(piece, self._tensor.dtype, part)
                found[piece.box.start[dim] + at].append(Piece(box, source))
        return found


def _viewed(
    tensor: DescribedTensor, shape: tuple[int, ...], pieces: Callable[[], Iterator[Piece]]
) -> DescribedTensor:
    return DescribedTensor(shape, tensor.dtype, LatePieces(pieces))


def _like(
    tensors: Sequence[DescribedTensor], what: str, rest: Callable[[tuple[int, ...]], tuple[int, ...]]
) -> DescribedTensor:
    """Return the first tensor, after looking that the others go with it.

    Raises:
        ValueError: There are none, or they do not.
    """
    kinds = {(rest(tensor.shape), len(tensor.shape), tensor.dtype) for tensor in tensors}
    if len(kinds) != 1:
        raise ValueError(f"tensors of {len(kinds)} kinds cannot be {what}")
    return tensors[0]


def _with(index: tuple[int, ...], dim: int, value: int) -> tuple[int, ...]:
    return (*index[:dim], value, *index[dim + 1 :])


def _without(index: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return (*index[:dim], *index[dim + 1 :])
