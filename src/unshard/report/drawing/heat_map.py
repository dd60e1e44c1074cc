"""The change against the base, by layer and module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unshard.measures import Delta
from unshard.report.contents import ReportedTensor
from unshard.report.drawing.scales import Scale, scale_for
from unshard.report.kinds import by_stack, joined, short_names
from unshard.report.numbers import cosine, percent, share_of

# Known models stay well below; what is beyond is left out of the picture, and told.
_MOST_LAYERS, _MOST_MODULES, _MOST_STACKS = 256, 64, 8


@dataclass(frozen=True, slots=True)
class Cell:
    """One module of one layer.

    Attributes:
        step: Of the scale; 0 is no change.
        text: The change, in percent.
        told: All of its numbers.
    """

    step: int
    text: str
    told: str


@dataclass(frozen=True, slots=True)
class Row:
    """One module in every layer; None where a layer has none."""

    module: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True, slots=True)
class HeatMap:
    """One stack of layers.

    Attributes:
        stack: Its name, `model.layers`.
        layers: The numbers of its layers, rising.
        rows: Its modules.
        hidden: How many modules and layers are not in the picture.
    """

    stack: str
    layers: tuple[int, ...]
    rows: tuple[Row, ...]
    hidden: int


@dataclass(frozen=True, slots=True)
class HeatMaps:
    """All stacks, on one scale; None where nothing has changed."""

    maps: tuple[HeatMap, ...]
    scale: Scale | None


def heat_maps(tensors: Sequence[ReportedTensor]) -> HeatMaps:
    """Return how much every module of every layer has changed; no maps where nothing is compared."""
    stacks = by_stack([tensor for tensor in tensors if tensor.delta is not None])
    deltas = {
        stack: {
            module: {
                layer: joined(t.delta for t in group if t.delta is not None)
                for layer, group in layers.items()
            }
            for module, layers in modules.items()
        }
        for stack, modules in list(stacks.items())[:_MOST_STACKS]
    }
    all_deltas = (d for modules in deltas.values() for layers in modules.values() for d in layers.values())
    scale = scale_for(delta.relative for delta in all_deltas if delta is not None)
    return HeatMaps(tuple(_heat_map(stack, modules, scale) for stack, modules in deltas.items()), scale)


def _heat_map(stack: str, modules: dict[str, dict[int, Delta | None]], scale: Scale | None) -> HeatMap:
    every = sorted({layer for layers in modules.values() for layer in layers})
    shown = tuple(every[:_MOST_LAYERS])
    labels = short_names(modules)
    rows = tuple(
        Row(labels[module], tuple(_cell(layers.get(layer), scale) for layer in shown))
        for module, layers in list(modules.items())[:_MOST_MODULES]
    )
    return HeatMap(stack, shown, rows, len(every) - len(shown) + len(modules) - len(rows))


def _cell(delta: Delta | None, scale: Scale | None) -> Cell | None:
    if delta is None:
        return None
    step = 0 if scale is None else scale.step(delta.relative)
    return Cell(step, percent(delta.relative), told(delta))


def told(delta: Delta) -> str:
    """Return a change in words, with its numbers."""
    if delta.changed == 0:
        return "unchanged"
    parts = [
        f"{percent(delta.relative)} of the norm",
        f"cosine {cosine(delta.cosine)}",
        f"{share_of(delta.changed, delta.count)} of the elements differ",
    ]
    if delta.survived != delta.changed:
        parts.append(f"{share_of(delta.survived, delta.changed)} of these survive the cast")
    return ", ".join(parts)
