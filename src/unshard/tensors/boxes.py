"""Geometry of boxes and ranges; pure arithmetic on integers.

A *box* is a start and a stop per dimension. A *range* is a half-open interval of a tensor's elements
in row-major order. A range of a tensor splits into at most `2 * ndim - 1` boxes, and a box is a
sequence of equally long ranges; these two conversions carry every layout.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Box:
    """The elements `start[d] <= index[d] < stop[d]` in every dimension `d`."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Box:
        """Return the box that holds a whole tensor of `shape`."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along every dimension."""
        return tuple(stop - start for start, stop in zip(self.start, self.stop, strict=True))

    @property
    def volume(self) -> int:
        """Elements in the box; 1 for a box without dimensions."""
        return math.prod(self.shape)

    def intersect(self, other: Box) -> Box | None:
        """Return what both boxes hold, or None where that is nothing."""
        start = tuple(map(max, self.start, other.start))
        stop = tuple(map(min, self.stop, other.stop))
        return Box(start, stop) if all(a < b for a, b in zip(start, stop, strict=True)) else None

    def relative_to(self, origin: Sequence[int]) -> Box:
        """Return the same box in coordinates that begin at `origin`."""
        return Box(
            tuple(a - o for a, o in zip(self.start, origin, strict=True)),
            tuple(b - o for b, o in zip(self.stop, origin, strict=True)),
        )


def row_major_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides, in elements, of a contiguous tensor of `shape`."""
    strides = [1] * len(shape)
    for d in range(len(shape) - 2, -1, -1):
        strides[d] = strides[d + 1] * max(shape[d + 1], 1)
    return tuple(strides)


def row_ranges(shape: Sequence[int], start: int, stop: int, most: int) -> Iterator[tuple[int, int]]:
    """Cut elements `start` to `stop` of `shape` into ranges of at most `most`, which end as rows do.

    A range that begins and ends between rows is one box. Where a row of the first dimension is longer
    than `most`, rows of the next one are what counts, and so on.
    """
    unit = next((stride for stride in row_major_strides(shape) if stride <= most), 1)
    while start < stop:
        end = (start + most) // unit * unit
        end = min(stop, end if end > start else start + most)
        yield start, end
        start = end


def split_range(shape: Sequence[int], start: int, stop: int) -> list[Box]:
    """Return the boxes, in row-major order, that together are elements `start` to `stop` of `shape`.

    There are at most `2 * len(shape) - 1` of them (one for a tensor without dimensions).
    """
    boxes: list[Box] = []
    _split(tuple(shape), (), start, stop, boxes)
    return boxes


def _split(shape: tuple[int, ...], fixed: tuple[int, ...], start: int, stop: int, out: list[Box]) -> None:
    """Append the boxes of a range of the sub-tensor at index `fixed` of the leading dimensions."""
    if start >= stop:
        return
    if not shape:
        out.append(Box(fixed, tuple(i + 1 for i in fixed)))
        return
    inner = math.prod(shape[1:])
    first, head = divmod(start, inner)
    last, tail = divmod(stop, inner)
    if first == last:  # inside one slice of the first dimension
        _split(shape[1:], (*fixed, first), head, tail, out)
        return
    if head:
        _split(shape[1:], (*fixed, first), head, inner, out)
        first += 1
    if first < last:
        lead = tuple(i + 1 for i in fixed)
        out.append(Box((*fixed, first, *(0 for _ in shape[1:])), (*lead, last, *shape[1:])))
    _split(shape[1:], (*fixed, last), 0, tail, out)


def _outer_dimensions(shape: Sequence[int], box: Box) -> int:
    """Return how many dimensions lead to the longest ranges that are inside `box` and `shape` alike."""
    inner = box.shape
    outer = len(shape)
    while outer > 0 and (outer == len(shape) or inner[outer] == shape[outer]):
        outer -= 1
    return outer


def box_range(shape: Sequence[int], box: Box) -> tuple[int, int] | None:
    """Return the one row-major range of a tensor of `shape` that is `box`, or None where it is not one."""
    outer = _outer_dimensions(shape, box)
    if any(stop - start != 1 for start, stop in zip(box.start[:outer], box.stop[:outer], strict=True)):
        return None
    begin = sum(i * s for i, s in zip(box.start, row_major_strides(shape), strict=True))
    return begin, begin + box.volume


def box_ranges(shape: Sequence[int], box: Box) -> Iterator[tuple[int, int]]:
    """Yield the row-major ranges of a tensor of `shape` that together are `box`, in order.

    They are as long as they can be: trailing dimensions that the box spans whole are one range.
    """
    if box.volume == 0:
        return
    strides = row_major_strides(shape)
    split = _outer_dimensions(shape, box)  # dimensions from here on are contiguous
    length = math.prod(box.shape[split:])
    outer = [range(a, b) for a, b in zip(box.start[:split], box.stop[:split], strict=True)]
    base = sum(i * s for i, s in zip(box.start[split:], strides[split:], strict=True))
    for index in itertools.product(*outer):
        begin = base + sum(i * s for i, s in zip(index, strides[:split], strict=True))
        yield begin, begin + length
