"""Everything of a report that is drawn, ready to be put down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unshard.report.contents import Report
from unshard.report.drawing.heat_map import HeatMaps, heat_maps, told
from unshard.report.drawing.histograms import Bar, Magnitudes, change_bars, exponent_range, magnitudes
from unshard.report.drawing.sizes_map import SizesMap, sizes_map
from unshard.report.kinds import Kind, kinds_of
from unshard.report.numbers import number, percent, shape_text, share_of
from unshard.sizes import format_size

# Kinds whose distributions are drawn, the largest first.
_MOST_DISTRIBUTIONS = 40


@dataclass(frozen=True, slots=True)
class KindRow:
    """One kind of tensors, in words."""

    name: str
    tensors: str
    shape: str
    dtype: str
    size: str
    source: str
    change: str
    changed: str
    told: str


@dataclass(frozen=True, slots=True)
class Distribution:
    """The numbers of one kind of tensors."""

    name: str
    smallest: str
    largest: str
    zeros: str
    magnitudes: Magnitudes


@dataclass(frozen=True, slots=True)
class Figures:
    """What is drawn; empty where nothing is known.

    Attributes:
        kinds: Every kind of tensors.
        heat: The change by layer and module.
        changes: How many tensors have changed how much.
        sizes: Where the bytes are, laid out for a wide and for a narrow page.
        exponents: The powers of two that `distributions` are about.
        distributions: The numbers of the largest kinds.
        losses: The loss beside those it is judged by.
    """

    kinds: tuple[KindRow, ...]
    heat: HeatMaps
    changes: tuple[Bar, ...]
    sizes: tuple[SizesMap, ...]
    exponents: range
    distributions: tuple[Distribution, ...]
    losses: tuple[Bar, ...]


def figures_of(report: Report) -> Figures:
    """Return everything of a report that is drawn."""
    kinds = kinds_of(report.tensors)
    exponents = exponent_range(t.statistics for t in report.tensors if t.statistics is not None)
    changes = [t.delta.relative for t in report.tensors if t.delta is not None]
    return Figures(
        kinds=tuple(map(_row, kinds)),
        heat=heat_maps(report.tensors),
        changes=tuple(change_bars(changes)) if changes else (),
        sizes=(sizes_map(kinds, width=960, height=360), sizes_map(kinds, width=340, height=420))
        if kinds
        else (),
        exponents=exponents,
        distributions=_distributions(kinds, exponents),
        losses=_losses(report),
    )


def _row(kind: Kind) -> KindRow:
    delta = kind.delta
    return KindRow(
        name=kind.name,
        tensors=f"{len(kind.tensors):,}",
        shape=_several([shape_text(shape) for shape in kind.shapes]),
        dtype=_several(kind.dtypes),
        size=format_size(kind.nbytes),
        source=_several(kind.sources) or ("same name" if any(t.sources for t in kind.tensors) else ""),
        change="" if delta is None else percent(delta.relative),
        changed="" if delta is None else share_of(delta.changed, delta.count),
        told="" if delta is None else told(delta),
    )


def _several(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - 1:,} more" if len(texts) > 1 else ""
    return texts[0] + more if texts else ""


def _distributions(kinds: Sequence[Kind], exponents: range) -> tuple[Distribution, ...]:
    rows: list[Distribution] = []
    for kind in sorted(kinds, key=lambda kind: -kind.nbytes):
        known = [t.statistics for t in kind.tensors if t.statistics is not None]
        if known and len(rows) < _MOST_DISTRIBUTIONS:
            rows.append(
                Distribution(
                    kind.name,
                    number(min(one.minimum for one in known)),
                    number(max(one.maximum for one in known)),
                    share_of(sum(one.zeros for one in known), sum(one.count for one in known)),
                    magnitudes(known, exponents),
                )
            )
    return tuple(rows)


def _losses(report: Report) -> tuple[Bar, ...]:
    found = next((level.losses for level in report.levels if level.losses is not None), None)
    if found is None:
        return ()
    rows = [("This model", found.own), ("Its base", found.base), ("Guessing blindly", found.uniform)]
    known = [(label, loss) for label, loss in rows if loss is not None]
    longest = max(loss for _, loss in known)
    return tuple(Bar(label, f"{loss:.3f}", loss / longest) for label, loss in known)
