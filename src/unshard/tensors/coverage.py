"""Whether boxes cover a declared shape, every element exactly once.

Real layouts are grids: rows, columns, or both, in sizes that may differ. A grid is recognised from the
intervals along every dimension, without comparing boxes with each other. Only what is no whole grid is
looked at more closely, in `grids`, for the holes and overlaps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unshard.tensors.boxes import Box

if TYPE_CHECKING:
    import numpy as np

    # The boxes of one tensor: objects, or integers of shape (boxes, 2, dimensions), start before stop.
    Boxes = Sequence[Box] | np.ndarray

_Bounds = tuple[tuple[int, ...], tuple[int, ...]]  # start and stop; its hash is faster than a Box's

# So many boxes of an array are compared as objects in less time than numpy takes to begin.
_FEW = 128


@dataclass(frozen=True, slots=True)
class Overlap:
    """A part of a tensor that boxes hold together, and are not the same.

    Attributes:
        box: The part.
        among: Numbers of the boxes, the first 16.
    """

    box: Box
    among: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Coverage:
    """How boxes cover a shape. Boxes are told by their numbers in the order given.

    Attributes:
        shape: The shape.
        kept: Boxes that hold elements, the first of those that are the same, by where they begin.
        holes: Parts that no box holds, in row-major order, the first 1,000.
        overlaps: Parts that boxes hold together though they are not the same, the first 100.
        replicas: Groups of boxes that are the same, each group in the order given.
        outside: Boxes that are not inside the shape, or stop before they start; never kept.
        irregular: Whether the boxes are cut so wildly that it would take too long to say more.
    """

    shape: tuple[int, ...]
    kept: Sequence[int]
    holes: tuple[Box, ...] = ()
    overlaps: tuple[Overlap, ...] = ()
    replicas: tuple[tuple[int, ...], ...] = ()
    outside: tuple[int, ...] = ()
    irregular: bool = False

    @property
    def exact(self) -> bool:
        """Whether every element is held, and by one of the kept boxes only."""
        return not (self.holes or self.overlaps or self.outside or self.irregular)


def check_coverage(shape: Sequence[int], boxes: Boxes) -> Coverage:
    """Return how `boxes` cover `shape`. Empty boxes hold nothing, wherever in the shape they are.

    Takes a time that grows as the number of boxes does, for grids and for anything hostile; a million
    boxes of a thousand tensors take a few seconds, less as arrays than as objects.

    Args:
        shape: The declared shape.
        boxes: Objects, or one array of integers of shape (boxes, 2, dimensions).
    """
    full = tuple(shape)
    if isinstance(boxes, Sequence):
        return _check_bounds(full, [(box.start, box.stop) for box in boxes])
    if len(boxes) <= _FEW:
        return _check_bounds(full, [(tuple(start), tuple(stop)) for start, stop in boxes.tolist()])
    return _check_array(full, boxes)


def check_ranges(count: int, ranges: Iterable[tuple[int, int]]) -> Coverage:
    """Return how ranges (start, stop) cover `count` elements; as `check_coverage`, in one dimension."""
    return _check_bounds((count,), [((start,), (stop,)) for start, stop in ranges])


def described_box(shape: Sequence[int], box: Box) -> str:
    """Return a part of a tensor in words: `rows 96 to 128 of 515`, `columns 0 to 64 of rows 8 to 16`."""
    cut = [d for d, n in enumerate(shape) if (box.start[d], box.stop[d]) != (0, n)]
    if not cut:
        return "all of it"
    if len(shape) == 1:
        return f"elements {_span(shape, box, 0)}"
    if cut == [0]:
        return f"rows {_span(shape, box, 0)}"
    if len(shape) == 2:
        rows = f" of rows {box.start[0]:,} to {box.stop[0]:,}" if 0 in cut else ""
        return f"columns {_span(shape, box, 1)}{rows}"
    return "elements [" + ", ".join(f"{a}:{b}" for a, b in zip(box.start, box.stop, strict=True)) + "]"


def _span(shape: Sequence[int], box: Box, d: int) -> str:
    return f"{box.start[d]:,} to {box.stop[d]:,} of {shape[d]:,}"


def _check_bounds(shape: tuple[int, ...], boxes: list[_Bounds]) -> Coverage:
    """Return how boxes cover a shape, without numpy where they are a whole grid."""
    numbered: dict[_Bounds, int] = {}
    for number, bounds in enumerate(boxes):
        numbered.setdefault(bounds, number)
    outside: set[_Bounds] = set()
    if not _is_whole_grid(shape, numbered):
        outside = {bounds for bounds in numbered if not _is_inside(shape, bounds)}
        empty = {bounds for bounds in numbered.keys() - outside if _is_empty(bounds)}
        dropped = empty | outside
        numbered = {bounds: n for bounds, n in numbered.items() if bounds not in dropped}
    kept = [numbered[bounds] for bounds in sorted(numbered)]
    coverage = Coverage(
        shape,
        kept,
        replicas=_groups(boxes, numbered) if len(numbered) < len(boxes) else (),
        outside=tuple(n for n, bounds in enumerate(boxes) if bounds in outside) if outside else (),
    )
    if math.prod(shape) == 0 or _is_whole_grid(shape, numbered):
        return coverage
    return _examined(coverage, [boxes[number] for number in kept])


def _is_whole_grid(shape: tuple[int, ...], distinct: Iterable[_Bounds]) -> bool:
    """Return whether boxes, no two the same, are all cells of a grid that divides the shape.

    They are if the intervals of every dimension follow one another from its begin to its end, and
    there are as many boxes as the intervals have combinations.
    """
    known = list(distinct)
    cells = 1
    for d, size in enumerate(shape):
        try:
            intervals = sorted({(start[d], stop[d]) for start, stop in known})
        except IndexError:  # a box of fewer dimensions
            return False
        end = 0
        for start, stop in intervals:
            if start != end or start >= stop:
                return False
            end = stop
        if end != size:
            return False
        cells *= len(intervals)
    return cells == len(known) and all(len(start) == len(stop) == len(shape) for start, stop in known)


def _is_inside(shape: tuple[int, ...], bounds: _Bounds) -> bool:
    start, stop = bounds
    return len(start) == len(stop) == len(shape) and all(
        0 <= a <= b <= n for a, b, n in zip(start, stop, shape, strict=True)
    )


def _is_empty(bounds: _Bounds) -> bool:
    return any(a >= b for a, b in zip(*bounds, strict=True))


def _groups(boxes: list[_Bounds], numbered: dict[_Bounds, int]) -> tuple[tuple[int, ...], ...]:
    """Return the numbers of boxes that are the same, for every box that is there more than once."""
    groups: dict[_Bounds, list[int]] = {bounds: [] for bounds in numbered}
    for number, bounds in enumerate(boxes):
        if bounds in groups:
            groups[bounds].append(number)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def _check_array(shape: tuple[int, ...], boxes: np.ndarray) -> Coverage:
    """Return how the boxes of an array cover a shape."""
    import numpy as np

    starts, stops = boxes[:, 0], boxes[:, 1]
    inside = ((starts >= 0) & (stops >= starts) & (stops <= np.array(shape))).all(axis=1)
    (candidates,) = np.nonzero(inside & (starts < stops).all(axis=1))
    flat = boxes[candidates].reshape(len(candidates), 2 * len(shape))
    # By start, then by stop; the sort keeps the order given among those that are the same.
    order = np.lexsort(flat.T[::-1]) if flat.shape[1] else np.arange(len(flat))
    flat, numbers = flat[order], candidates[order]
    is_first = np.ones(len(flat), bool)
    is_first[1:] = (flat[1:] != flat[:-1]).any(axis=1)
    replicas: tuple[tuple[int, ...], ...] = ()
    if not is_first.all():
        groups = np.split(numbers, np.flatnonzero(is_first)[1:])
        replicas = tuple(sorted(tuple(group.tolist()) for group in groups if len(group) > 1))
    kept = numbers[is_first].tolist()
    coverage = Coverage(shape, kept, replicas=replicas, outside=tuple(np.flatnonzero(~inside).tolist()))
    return coverage if math.prod(shape) == 0 else _examined(coverage, boxes[kept])


def _examined(coverage: Coverage, kept: Sequence[_Bounds] | np.ndarray) -> Coverage:
    """Return the coverage with its holes and overlaps, found by painting the kept boxes."""
    from unshard.tensors.grids import find_faults

    faults = find_faults(coverage.shape, kept)
    number = coverage.kept
    return Coverage(
        coverage.shape,
        number,
        holes=tuple(itertools.starmap(Box, faults.holes)),
        overlaps=tuple(
            Overlap(Box(*bounds), tuple(number[i] for i in among)) for bounds, among in faults.overlaps
        ),
        replicas=coverage.replicas,
        outside=coverage.outside,
        irregular=faults.irregular,
    )
