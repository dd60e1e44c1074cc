"""Where the bytes are: kinds of tensors as tiles, those of one dtype together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unshard.report.drawing.treemap import Tile, squarified
from unshard.report.kinds import Kind
from unshard.sizes import format_size

# Height of a line of text, and the width of a letter, at the size that labels have; in pixels.
_LINE, _LETTER = 16.0, 6.6
_PADDING = 6.0
# Fewer letters of a name tell nothing.
_FEWEST_LETTERS = 8
# Smaller ones could not be seen; they are told in the table.
_MOST_TILES = 60


@dataclass(frozen=True, slots=True)
class SizedTile:
    """A tile, and as much of its words as it has room for.

    Attributes:
        tile: Where it is.
        colour: Which of the dtypes it has, the largest first.
        title: All of its words.
        lines: Those that fit.
    """

    tile: Tile
    colour: int
    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SizesMap:
    """Tiles that fill a page of some width.

    Attributes:
        width: In pixels.
        height: In pixels.
        dtypes: Every dtype with its bytes, largest first, as text.
        tiles: One for every kind of tensors of one dtype.
    """

    width: float
    height: float
    dtypes: tuple[tuple[str, str], ...]
    tiles: tuple[SizedTile, ...]


def sizes_map(kinds: Sequence[Kind], *, width: float, height: float) -> SizesMap:
    """Return tiles for kinds of tensors, whose areas are their bytes."""
    groups = _by_dtype(kinds)
    order = sorted(groups, key=lambda dtype: -sum(groups[dtype].values()))
    blocks = squarified([sum(groups[d].values()) for d in order], x=0, y=0, width=width, height=height)
    tiles = [
        _labelled(tile, block.index, name, order[block.index], size)
        for block in blocks
        for tile, (name, size) in _inside(block, groups[order[block.index]])
    ]
    dtypes = tuple((dtype, format_size(sum(groups[dtype].values()))) for dtype in order)
    return SizesMap(width, height, dtypes, tuple(tiles))


def _by_dtype(kinds: Sequence[Kind]) -> dict[str, dict[str, int]]:
    """Return the bytes of every kind by dtype."""
    groups: dict[str, dict[str, int]] = {}
    for kind in kinds:
        for tensor in kind.tensors:
            sizes = groups.setdefault(tensor.dtype, {})
            sizes[kind.name] = sizes.get(kind.name, 0) + tensor.nbytes
    return groups


def _inside(block: Tile, sizes: dict[str, int]) -> list[tuple[Tile, tuple[str, int]]]:
    """Return the tiles of one dtype with their names and sizes, the largest first."""
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:_MOST_TILES]
    tiles = squarified(
        [size for _, size in largest], x=block.x, y=block.y, width=block.width, height=block.height
    )
    return [(tile, largest[tile.index]) for tile in tiles]


def _labelled(tile: Tile, colour: int, name: str, dtype: str, size: int) -> SizedTile:
    columns = int((tile.width - 2 * _PADDING) / _LETTER)
    lines = int((tile.height - 2 * _PADDING) / _LINE)
    wanted = [_fitted(name.removesuffix(".weight"), columns), f"{format_size(size)} {dtype}"]
    fitting = [line for line in wanted if len(line) <= columns][:lines] if columns >= _FEWEST_LETTERS else []
    return SizedTile(tile, colour, f"{name}: {format_size(size)}, {dtype}", tuple(fitting))


def _fitted(name: str, columns: int) -> str:
    """Return a name that has room, or as many of its last words as have."""
    words = name.split(".")
    while len(name) > columns and len(words) > 1:
        del words[0]
        name = "…" + ".".join(words)
    return name
