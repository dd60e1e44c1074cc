"""Strided views of a sequence of elements: where elements lie, and how they are gathered.

A view is a shape and, for every dimension, the distance between neighbours, counted in elements of a
sequence that lies elsewhere (in a file, or behind any other source). Distances are never negative.

Memory:
    A gathered view passes through one buffer of at most 1 MiB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from unshard.tensors.boxes import Box, row_major_strides, split_range

if TYPE_CHECKING:
    import numpy as np

# A strided read fetches the stretch that spans a box, at most this much at a time.
_SPAN_BYTES = 1 << 20
# To fetch so much more than is wanted is faster than to fetch once more.
_CLOSE_BYTES = 1 << 15
# Shorter runs cost more to copy one by one than to gather through a buffer.
SHORTEST_RUN_BYTES = 64 << 10

# Fills a buffer with elements of the sequence, from the given one on.
Fetch = Callable[[int, memoryview], None]


def is_contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Return whether the elements of a view lie one after the other."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1:
            if stride != expected:
                return 0 in shape
            expected *= size
    return True


def element_at(shape: Sequence[int], strides: Sequence[int], index: int) -> int:
    """Return where the `index`-th element of a view, in row-major order, lies in the sequence."""
    position = 0
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        index, coordinate = divmod(index, size)
        position += coordinate * stride
    return position


def contiguous_stretch(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Return how many elements lie one after the other in every row of a view, as many as there are."""
    length = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != length:
            break
        length *= size
    return length


def stretches(
    shape: Sequence[int], strides: Sequence[int], start: int, stop: int, length: int
) -> list[tuple[int, int]]:
    """Return (first, count) of the stretches of `length` that are elements `start` to `stop` of a view."""
    found = []
    while start < stop:
        end = min(stop, (start // length + 1) * length)
        found.append((element_at(shape, strides, start), end - start))
        start = end
    return found


def restrided(shape: Sequence[int], strides: Sequence[int], other: Sequence[int]) -> tuple[int, ...] | None:
    """Return the strides of the same view in a shape of as many elements; None where there are none.

    Dimensions can be put together where the outer one steps over the inner one exactly.
    """
    if 0 in shape or 0 in other:
        return row_major_strides(other)
    groups: list[list[int]] = []  # (elements, stride of the innermost) of dimensions that are one
    for size, stride in zip(shape, strides, strict=True):
        if size == 1:
            continue
        if groups and groups[-1][1] == size * stride:
            groups[-1] = [groups[-1][0] * size, stride]
        else:
            groups.append([size, stride])
    result: list[int] = []
    left = 1  # elements of the current group that no dimension has taken
    stride = 1
    for size in reversed(other):
        if size != 1 and left == 1:
            left, stride = groups.pop()
        if left % size:
            return None
        result.append(stride)
        left, stride = left // size, stride * size
    return tuple(reversed(result))


def gather(
    shape: Sequence[int],
    strides: Sequence[int],
    start: int,
    stop: int,
    into: memoryview,
    *,
    itemsize: int,
    fetch: Fetch,
) -> None:
    """Fill `into` with elements `start` to `stop` of a view, fetching what spans them."""
    import numpy as np

    out = np.frombuffer(into, dtype=f"V{itemsize}")
    done = 0
    for box in split_range(shape, start, stop):
        _gather_box(box, strides, out[done : done + box.volume].reshape(box.shape), fetch)
        done += box.volume


def _gather_box(box: Box, strides: Sequence[int], out: np.ndarray, fetch: Fetch) -> None:
    """Fill `out` with a box, walking the sequence forward in stretches of at most `_SPAN_BYTES`."""
    import numpy as np

    # Outer dimensions (large strides) are looped over until what remains spans a small stretch.
    order = sorted(range(out.ndim), key=lambda d: -strides[d])
    size = out.itemsize

    def span(dimensions: Sequence[int]) -> int:
        return (1 + sum((box.shape[d] - 1) * strides[d] for d in dimensions)) * size

    looped = 0
    while looped < len(order) and span(order[looped:]) > _SPAN_BYTES:
        looped += 1
    if looped and strides[order[looped - 1]] * size <= _CLOSE_BYTES:
        _gather_close(box, strides, out, fetch, order[looped - 1], span(order[looped:]))
        return
    inner = order[looped:]
    scratch = bytearray(span(inner))
    steps = tuple(strides[d] * size for d in inner)
    view = np.ndarray(tuple(box.shape[d] for d in inner), out.dtype, scratch, strides=steps)
    target = out.transpose(order)
    first = sum(i * s for i, s in zip(box.start, strides, strict=True))
    for index in np.ndindex(*(box.shape[d] for d in order[:looped])):
        element = first + sum(i * strides[d] for i, d in zip(index, order, strict=False))
        fetch(element, memoryview(scratch))
        target[index] = view


def _gather_close(
    box: Box, strides: Sequence[int], out: np.ndarray, fetch: Fetch, dim: int, inner_bytes: int
) -> None:
    """Fill `out` with a box, fetching as many neighbours along `dim` at once as a stretch holds."""
    step = max(1, (_SPAN_BYTES - inner_bytes) // (strides[dim] * out.itemsize))
    before = (slice(None),) * dim
    for begin in range(0, out.shape[dim], step):
        end = min(out.shape[dim], begin + step)
        start, stop = list(box.start), list(box.stop)
        start[dim], stop[dim] = box.start[dim] + begin, box.start[dim] + end
        part = Box(tuple(start), tuple(stop))
        _gather_box(part, strides, out[(*before, slice(begin, end))], fetch)
