"""Boxes painted on the grid of their own edges, to find what is painted never, or more than once.

The edges of all boxes cut a region into cells, and within a cell every element is held by the same
boxes. Boxes are painted by their corners and summed up, so the work is that of the boxes plus that of
the cells. Where there are many more cells than boxes, the region is divided between two boxes first,
where no box is cut; where that cannot be done, the boxes are no layout, and are called irregular.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Bounds = tuple[tuple[int, ...], tuple[int, ...]]

# A grid may have this many cells for every box, and this many at any rate.
_CELLS_PER_BOX = 64
_CELLS_AT_LEAST = 4096
# How often, on average, a box may be sorted anew while regions are divided, one dimension at a time.
_SORTS_PER_BOX = 64
# More than people read, and few enough to find one by one.
_MOST_HOLES = 1000
_MOST_OVERLAPS = 100
_MOST_AMONG = 16


@dataclass(slots=True)
class Faults:
    """What was found, in the order of regions.

    Attributes:
        holes: Bounds of parts that no box holds.
        overlaps: Bounds of parts that several boxes hold, and which boxes.
        irregular: Whether looking was given up.
    """

    holes: list[Bounds] = field(default_factory=list)
    overlaps: list[tuple[Bounds, list[int]]] = field(default_factory=list)
    irregular: bool = False


def find_faults(shape: tuple[int, ...], boxes: Sequence[Bounds] | np.ndarray) -> Faults:
    """Return where boxes leave holes in `shape`, and where they overlap.

    Args:
        shape: The region; it has elements.
        boxes: Integers of shape (boxes, 2, dimensions), all inside, none empty, no two the same.
    """
    import numpy as np

    faults = Faults()
    if max(shape, default=0) > np.iinfo(np.int64).max:
        return Faults(irregular=True)
    table = np.asarray(boxes, np.int64).reshape(len(boxes), 2, len(shape))
    regions = [(np.array([[0] * len(shape), shape], np.int64), np.arange(len(table)))]
    budget = _SORTS_PER_BOX * len(table) + _CELLS_AT_LEAST
    while regions:
        region, numbers = regions.pop()
        grid = _Grid(region, table[numbers])
        if grid.is_small:
            _paint(grid, numbers, faults)
            continue
        budget -= len(numbers) * len(shape)
        halves = _divide(region, table[numbers]) if budget > 0 else None
        if halves is None:
            faults.irregular = True
            continue
        regions += [(half, numbers[mine]) for half, mine in reversed(halves)]
    return faults


class _Grid:
    """The cells that the edges of boxes cut a region into."""

    def __init__(self, region: np.ndarray, boxes: np.ndarray) -> None:
        import numpy as np

        self.boxes = boxes
        edges = np.concatenate([region, boxes[:, 0], boxes[:, 1]])
        self.edges = [np.unique(column) for column in edges.T]
        # Dimensions that nothing cuts have one cell, and need not be painted.
        self.cut = [d for d, edges in enumerate(self.edges) if len(edges) > 2]

    @property
    def is_small(self) -> bool:
        """Whether it can be painted."""
        cells = math.prod(len(edges) - 1 for edges in self.edges)
        corners = len(self.boxes) << len(self.cut)
        return max(cells, corners) <= _CELLS_PER_BOX * len(self.boxes) + _CELLS_AT_LEAST

    def layers(self) -> np.ndarray:
        """Return how many boxes hold each cell, along the dimensions that are cut."""
        import numpy as np

        at = [np.searchsorted(self.edges[d], self.boxes[:, :, d]) for d in self.cut]
        layers = np.zeros([len(self.edges[d]) for d in self.cut], np.int32)
        for corner in itertools.product((0, 1), repeat=len(self.cut)):
            place = tuple(column[:, side] for column, side in zip(at, corner, strict=True))
            # Without a place there is one cell, which is all that any box can be.
            np.add.at(layers, place, (-1) ** sum(corner) if place else len(self.boxes))
        for axis in range(len(self.cut)):
            np.cumsum(layers, axis=axis, out=layers)
        return layers[(slice(-1),) * len(self.cut)]

    def bounds(self, start: Sequence[int], stop: Sequence[int]) -> Bounds:
        """Return the bounds of a block of cells, given along the dimensions that are cut."""
        low = [int(edges[0]) for edges in self.edges]
        high = [int(edges[-1]) for edges in self.edges]
        for d, first, last in zip(self.cut, start, stop, strict=True):
            low[d], high[d] = int(self.edges[d][first]), int(self.edges[d][last])
        return tuple(low), tuple(high)


def _paint(grid: _Grid, numbers: np.ndarray, faults: Faults) -> None:
    """Add the faults of one region."""
    layers = grid.layers()
    room = _MOST_HOLES - len(faults.holes)
    faults.holes += [grid.bounds(*block) for block in itertools.islice(_blocks(layers == 0), room)]
    room = _MOST_OVERLAPS - len(faults.overlaps)
    for block in itertools.islice(_blocks(layers > 1), room):
        start, stop = grid.bounds(*block)
        touching = ((grid.boxes[:, 0] < stop) & (grid.boxes[:, 1] > start)).all(axis=1)
        faults.overlaps.append(((start, stop), numbers[touching][:_MOST_AMONG].tolist()))


def _blocks(marked: np.ndarray) -> Iterator[tuple[list[int], list[int]]]:
    """Yield blocks of cells that together are all that are marked, which ends up unmarked.

    Each begins at the first cell that is left, and grows as far as it can, last dimension first.
    """
    import numpy as np

    marked = np.asarray(marked)  # numpy makes a scalar of an array without dimensions
    flat, position = marked.reshape(-1), 0
    while True:
        position += int(flat[position:].argmax())
        if not flat[position]:
            return
        start = [int(i) for i in np.unravel_index(position, marked.shape)]
        stop = [i + 1 for i in start]
        for axis in reversed(range(marked.ndim)):
            block = tuple(map(slice, start, stop))
            beyond = (*block[:axis], slice(start[axis], None), *block[axis + 1 :])
            others = tuple(a for a in range(marked.ndim) if a != axis)
            full = np.atleast_1d(marked[beyond].all(axis=others))
            stop[axis] = start[axis] + (len(full) if full.all() else int(full.argmin()))
        marked[tuple(map(slice, start, stop))] = False
        yield start, stop


def _divide(region: np.ndarray, boxes: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """Return two parts of a region with the boxes of each, divided where no box is cut, near the middle."""
    import numpy as np

    best: tuple[int, int, int] | None = None
    for d in range(region.shape[1]):
        order = np.argsort(boxes[:, 0, d], kind="stable")
        starts, reached = boxes[order, 0, d], np.maximum.accumulate(boxes[order, 1, d])
        (free,) = np.nonzero(reached[:-1] <= starts[1:])
        if len(free):
            off = np.abs(free + 1 - len(boxes) // 2)
            nearest = int(off.argmin())
            best = min(best or (len(boxes), 0, 0), (int(off[nearest]), d, int(starts[free[nearest] + 1])))
    if best is None:
        return None
    _, d, edge = best
    low, high = region.copy(), region.copy()
    low[1, d] = high[0, d] = edge
    below = boxes[:, 0, d] < edge
    return [(low, np.flatnonzero(below)), (high, np.flatnonzero(~below))]
