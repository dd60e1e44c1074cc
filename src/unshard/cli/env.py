"""`unshard env`: this machine beside the one that trained."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unshard.cli.options import json_option
from unshard.cli.printing import (
    command,
    echo,
    echo_commands,
    echo_findings,
    echo_json,
    echo_rows,
    note,
    plain,
    width,
)
from unshard.errors import OutputExistsError
from unshard.findings import RULES

if TYPE_CHECKING:
    from unshard.environment import EnvironmentComparison, Line

_COLOURS = {"error": "red", "warning": "yellow", "info": "blue"}
_ORDER = {"error": 0, "warning": 1, "info": 2}
# What is of interest where nothing is known of the other side.
_ALWAYS = frozenset(
    ("python", "torch", "transformers", "accelerate", "accelerator", "devices", "memory", "bfloat16")
)

_TOLD = frozenset(("same", "enough"))
_NARROWEST = 12


@click.command(short_help="This machine beside the one that trained: what differs, and what it means.")
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option(
    "--step", type=int, metavar="N", help="Which of several epochs or steps; the newest without it."
)
@click.option("--strict", is_flag=True, help="Exit with 3 where a difference is more than a mere fact.")
@click.option(
    "--export",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE",
    help="Write a requirements.txt that recreates the environment of training, or of this machine without a "
    "PATH; `-` for stdout, in place of the table.",
)
@json_option
@click.pass_context
def env(
    context: click.Context,
    path: Path | None,
    step: int | None,
    strict: bool,
    export: Path | None,
    as_json: bool,
) -> None:
    """Compare this machine with the environment that the model at PATH was trained in, line by line.

    PATH is a run, a checkpoint, a file or a model folder. What its record tells is taken from there; without
    a record, what the files tell is inferred, and marked with a star. A difference is as bad as what follows
    from it for inference. Without a PATH this machine is described. No byte of a tensor is read.
    """
    from unshard.environment import compare_environment
    from unshard.environment.requirements import requirements

    result = compare_environment(path, step=step)
    if export is not None:
        _export(export, requirements(result))
    if as_json:
        echo_json(result)
    elif export != Path("-"):
        _echo(result)
        if path is not None and result.record is not None:
            words = [path, *(() if step is None else ("--step", step)), "--export", "requirements.txt"]
            echo_commands("recreate it", [command("unshard", "env", *words)])
    context.exit(3 if strict and not result.is_harmless else 0)


def _export(place: Path, text: str) -> None:
    if place == Path("-"):
        echo(text.rstrip("\n"))
        return
    from unshard.storage.folders import new_files

    if os.path.lexists(place):  # it may be the one that a project relies on
        raise OutputExistsError(place, "already exists", hint="Name another file, or print it: --export -")
    with new_files(place.parent, [place.name], overwrite=False, durable=False) as staged:
        (staged / place.name).write_text(text, encoding="utf-8")
    note(f"requirements: {place}")


def _echo(result: EnvironmentComparison) -> None:
    where = "this machine" if result.path is None else plain(result.path.name)
    echo(click.style(where, bold=True) + ("" if result.path is None else f"  in {plain(result.path.parent)}"))
    shown = [line for line in result.lines if result.path is None or _is_shown(line)]
    _echo_table([_cells(line, alone=result.path is None) for line in shown], alone=result.path is None)
    inferred = [(line.aspect, plain(line.evidence)) for line in shown if line.evidence]
    if inferred:
        echo()
        echo("  * inferred from")
        echo_rows(inferred, indent=4)
    codes = {line.code for line in result.lines}
    echo_findings([found for found in result.findings if found.code not in codes])
    _echo_consequences(result)


def _is_shown(line: Line) -> bool:
    return line.training is not None or line.code is not None or line.aspect in _ALWAYS


def _cells(line: Line, *, alone: bool) -> tuple[str, ...]:
    """Return the cells of a line: aspect, training, here, mark."""
    mark = f"{line.code} {line.verdict}" if line.code else line.verdict if line.verdict in _TOLD else ""
    there = plain(line.training or "-") + (" *" if line.evidence else "")
    here = plain(line.here or "-")
    return (line.aspect, here, mark) if alone else (line.aspect, there, here, mark)


def _echo_table(rows: Sequence[tuple[str, ...]], *, alone: bool) -> None:
    """Print rows in columns, or each by itself where the terminal is too narrow; long cells go on below."""
    header = ("", "here", "") if alone else ("", "training", "here", "")
    table = [header, *rows]
    first, last = max(len(row[0]) for row in table), max(len(row[-1]) for row in table)
    between = (width() - 2 - first - last - 2 * (len(header) - 1)) // (len(header) - 2)
    if between < _NARROWEST:
        for row in rows:
            echo(f"  {row[0]}")
            echo_rows(zip((*header[1:-1], ""), row[1:], strict=True), indent=4)
        return
    widths = [first, *[between] * (len(header) - 2), last]
    for number, row in enumerate(table):
        cells = [_wrapped(cell, size) for cell, size in zip(row, widths, strict=True)]
        for index in range(max(map(len, cells))):
            parts = [cell[index] if index < len(cell) else "" for cell in cells]
            line = "  ".join(part.ljust(size) for part, size in zip(parts, widths, strict=True)).rstrip()
            echo("  " + click.style(line, dim=number == 0))


def _wrapped(text: str, columns: int) -> list[str]:
    return textwrap.wrap(text, max(columns, 1), break_on_hyphens=False) or [""]


def _echo_consequences(result: EnvironmentComparison) -> None:
    """Print what follows from differences, worst first; mere facts with what they mean, too."""
    for line in sorted((line for line in result.lines if line.code), key=lambda line: _ORDER[line.verdict]):
        assert line.code is not None
        head = click.style(f"{line.code} {line.verdict}", fg=_COLOURS[line.verdict], bold=True)
        echo()
        title = RULES[line.code].title
        title += "" if line.aspect in title else f": {line.aspect}"
        for part in _wrapped(title, width() - len(line.code) - 12):
            echo(f"  {head}  {part}" if head else f"      {part}")
            head = ""
        echo_rows([("means", line.means), ("do", line.remedy)], indent=6)
    if result.is_harmless:
        echo()
        for part in _wrapped("nothing here stands in the way of inference", width() - 2):
            echo("  " + click.style(part, fg="green"))
