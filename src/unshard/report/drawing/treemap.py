"""Rectangles whose areas are sizes, as near to squares as they can be laid out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle.

    Attributes:
        index: Which of the sizes it stands for.
        x: Its left edge.
        y: Its upper edge.
        width: Its width.
        height: Its height.
    """

    index: int
    x: float
    y: float
    width: float
    height: float


def squarified(sizes: Sequence[float], *, x: float, y: float, width: float, height: float) -> list[Tile]:
    """Return a tile for every size above zero, which together fill the rectangle that is given.

    Source:
        Bruls, Huizing, van Wijk, "Squarified Treemaps" (2000): tiles are laid in rows along the shorter
        side, and a row takes another tile as long as its worst aspect ratio gets better by it.
    """
    order = sorted((i for i, size in enumerate(sizes) if size > 0), key=lambda i: -sizes[i])
    total = sum(sizes[i] for i in order)
    area = {i: sizes[i] / total * width * height for i in order} if total else {}
    tiles: list[Tile] = []
    start = 0
    while start < len(order) and width > 0 and height > 0:
        side = min(width, height)
        stop = start + 1
        while stop < len(order) and _worst(area, order[start : stop + 1], side) <= _worst(
            area, order[start:stop], side
        ):
            stop += 1
        row = order[start:stop]
        depth = sum(area[i] for i in row) / side
        tiles += _laid(area, row, x, y, depth, upright=width >= height)
        if width >= height:
            x, width = x + depth, width - depth
        else:
            y, height = y + depth, height - depth
        start = stop
    return tiles


def _worst(area: dict[int, float], row: Sequence[int], side: float) -> float:
    """Return the largest ratio of long to short edge in a row along an edge of length `side`."""
    total = sum(area[i] for i in row)
    largest, smallest = area[row[0]], area[row[-1]]
    return max(side**2 * largest / total**2, total**2 / (side**2 * smallest))


def _laid(
    area: dict[int, float], row: Sequence[int], x: float, y: float, depth: float, *, upright: bool
) -> list[Tile]:
    """Return the tiles of a row that is `depth` thick: one below the other where `upright`."""
    tiles = []
    for i in row:
        length = area[i] / depth
        if upright:
            tiles.append(Tile(i, x, y, depth, length))
            y += length
        else:
            tiles.append(Tile(i, x, y, length, depth))
            x += length
    return tiles
