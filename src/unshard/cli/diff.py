"""`unshard diff`: what did training change?"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unshard.cli.options import json_option, quiet_option, report_option, workers_option
from unshard.cli.printing import echo, echo_commands, echo_json, echo_rows, plain, width
from unshard.cli.progress_bar import progress_bar
from unshard.cli.report_file import require_report_place, write_report_file
from unshard.sizes import counted, format_count

if TYPE_CHECKING:
    from unshard.comparison import Comparison, GroupChange, TensorChange
    from unshard.report import Report

_SHOWN_LAYERS, _SHOWN_KINDS, _SHOWN_TENSORS, _SHOWN_NAMES = 40, 16, 5, 5
_BAR = 20


@click.command(short_help="What did training change, tensor by tensor?")
@click.argument("old", metavar="A", type=click.Path(path_type=Path))
@click.argument("new", metavar="B", type=click.Path(path_type=Path))
@click.option("--tensors", metavar="GLOB", help="Compare only tensors with names like this: '*.self_attn.*'.")
@click.option(
    "--base",
    metavar="DIR|HUB_ID",
    help="The model both came from, where neither tells: an adapter's own model, for one.",
)
@click.option("--step-a", type=int, metavar="N", help="Which of several steps of A; the newest without it.")
@click.option("--step-b", type=int, metavar="N", help="Which of several steps of B; the newest without it.")
@click.option("--select", metavar="PREFIX", help="Which of several models in one file.")
@click.option("--exit-code", is_flag=True, help="Exit with 3 where A and B differ, and with 0 where not.")
@report_option
@workers_option
@quiet_option
@json_option
@click.pass_context
def diff(
    context: click.Context,
    old: Path,
    new: Path,
    tensors: str | None,
    base: str | None,
    step_a: int | None,
    step_b: int | None,
    select: str | None,
    exit_code: bool,
    report: Path | None,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Say what is different in B: tensors that came, went, or changed, and by how much.

    A and B are any two things that can be read: a checkpoint, a run, a model folder, an adapter, a file. The
    names of a checkpoint are led to those of the other side: without wrappers, experts grouped alike,
    adapters merged. Values are compared exactly, whatever the dtypes; changes are in units of A's norm.
    With --quiet only the verdict is printed.
    """
    from unshard.comparison import diff as compare

    require_report_place(report)
    with progress_bar(shown=not (quiet or as_json)) as progress:
        result = compare(
            old,
            new,
            base=base,
            tensors=tensors,
            old_step=step_a,
            new_step=step_b,
            select=select,
            workers=workers,
            progress=progress,
        )
    write_report_file(report, lambda: _report(result))
    if as_json:
        echo_json(result)
    else:
        _echo(result, quiet=quiet)
    context.exit(3 if exit_code and not result.is_equal else 0)


def _report(result: Comparison) -> Report:
    from unshard.report.of_comparison import report_of_comparison

    return report_of_comparison(result)


def _echo(result: Comparison, *, quiet: bool) -> None:
    for line in textwrap.wrap(_verdict(result), width()):
        echo(click.style(line, bold=True))
    if quiet:
        return
    echo_rows(_sides(result))
    _echo_groups("by layer", _largest(result.layers, _SHOWN_LAYERS), len(result.layers))
    _echo_groups("by kind of module, largest change first", result.kinds[:_SHOWN_KINDS], len(result.kinds))
    if top := list(_top(result)):
        echo_commands("largest changes", [])
        echo_rows(top)


def _verdict(result: Comparison) -> str:
    """Return the answer in a sentence."""
    total = result.total
    words = [f"{total.changed_tensors:,} of {counted(total.tensors, 'tensor')} differ"]
    if total.changed_tensors:
        share = _percent(total.changed, total.elements)
        words.append(f"{share} of their numbers, by {_relative(total.relative)} of A's norm")
    for names, what in ((result.added, "only in B"), (result.removed, "only in A")):
        if names:
            words.append(f"{len(names):,} {what}")
    if result.reshaped:
        words.append(f"{len(result.reshaped):,} of another shape")
    return "; ".join(words)


def _sides(result: Comparison) -> Iterator[tuple[str, object]]:
    for label, side in (("A", result.old), ("B", result.new)):
        naming = f", names {side.naming}" if side.naming else ""
        yield label, plain(f"{side.path}: {counted(side.tensors, 'tensor')}, {side.layout}{naming}")
    yield "only in A", _some(result.removed)
    yield "only in B", _some(result.added)
    shapes = [f"{n}: {list(r.old_shape)} became {list(r.new_shape)}" for n, r in result.reshaped.items()]
    yield "shapes", _some(shapes)
    yield "dtypes", _dtypes(result)
    yield "note", [plain(note) for note in result.notes]


def _some(lines: Sequence[str]) -> list[str]:
    more = len(lines) - _SHOWN_NAMES
    rest = [f"and {more:,} more; --json has all"] if more > 0 else []
    return [*(plain(line) for line in lines[:_SHOWN_NAMES]), *rest]


def _dtypes(result: Comparison) -> list[str]:
    """Return what dtypes the two sides have, where these are not the same."""
    pairs: dict[tuple[str, str], int] = {}
    for change in result.tensors.values():
        key = change.old_dtype, change.new_dtype
        pairs[key] = pairs.get(key, 0) + 1
    return [
        f"{counted(n, 'tensor')}: {old} in A, {new} in B" for (old, new), n in pairs.items() if old != new
    ]


def _largest(groups: Sequence[GroupChange], most: int) -> list[GroupChange]:
    """Return the groups of the largest changes, in the order that they have."""
    if len(groups) <= most:
        return list(groups)
    chosen = {group.name for group in sorted(groups, key=_size, reverse=True)[:most]}
    return [group for group in groups if group.name in chosen]


def _size(group: GroupChange) -> float:
    return math.inf if group.relative is None else group.relative


def _echo_groups(title: str, groups: Sequence[GroupChange], count: int) -> None:
    """Print a line for every group: its name, how much of it changed, by how much, and a bar of that."""
    if not groups or all(not group.changed_tensors for group in groups):
        return
    echo()
    shown = f"{title} ({len(groups)} of {count:,}; --json has all)" if len(groups) < count else title
    echo(click.style(shown, bold=True))
    finite = [group.relative for group in groups if group.relative is not None]
    largest = max(finite, default=0.0)
    for group in groups:
        for line in _lines(group, largest, max(len(plain(g.name)) for g in groups)):
            echo(line)


def _lines(group: GroupChange, largest: float, longest: int) -> Iterator[str]:
    """Yield one line, or two where the terminal is too narrow for it."""
    numbers = [
        f"{group.changed_tensors:>5,}/{group.tensors:<5,}",
        f"{_percent(group.changed, group.elements):>6}",
        f"{_relative(group.relative):>8}",
    ]
    filled = _BAR if group.relative is None else math.ceil(_BAR * group.relative / largest) if largest else 0
    text = f"{' '.join(numbers)}  {'#' * filled}"
    column = min(longest, 44)
    name = plain(group.name)
    if len(name) > column or 2 + column + 2 + 24 + _BAR > width():
        yield f"  {name}"
        yield f"      {text}"
    else:
        yield f"  {name.ljust(column)}  {text}".rstrip()


def _top(result: Comparison) -> Iterator[tuple[str, str]]:
    changed = [(name, change) for name, change in result.tensors.items() if change.delta.changed]
    changed.sort(key=lambda item: (-item[1].delta.relative, item[0]))
    for name, change in changed[:_SHOWN_TENSORS]:
        yield plain(name), _told(change)


def _told(change: TensorChange) -> str:
    delta = change.delta
    relative = delta.relative if math.isfinite(delta.relative) else None
    share = f"{_percent(delta.changed, delta.count)} of {format_count(delta.count)} numbers"
    return f"{_relative(relative)}, {share}, by up to {delta.largest:.2g}, cosine {delta.cosine:.6f}"


def _percent(part: int, whole: int) -> str:
    """Return a share that is 0 % only where nothing is, and 100 % only where all is."""
    if part in (0, whole):
        return "100%" if part else "0%"
    return f"{min(max(100 * part / whole, 0.1), 99.9):.1f}%"


def _relative(value: float | None) -> str:
    return "from 0" if value is None else f"{value:.2g}" if value else "0"
