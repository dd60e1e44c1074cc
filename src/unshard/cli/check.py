"""`unshard check`: is everything there?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from unshard.cli.options import base_option, json_option, paths_argument, quiet_option, which_checkpoint
from unshard.cli.printing import (
    command,
    echo,
    echo_commands,
    echo_findings,
    echo_json,
    echo_rows,
    plain,
)
from unshard.sizes import counted, format_size

if TYPE_CHECKING:
    from unshard.diagnosis import Diagnosis, StepVerdict


@click.command(short_help="Is everything there? Names what is missing.")
@paths_argument
@base_option
@which_checkpoint
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning", "never"]),
    default="error",
    show_default=True,
    help="Exit with 3 where a finding is as bad as this.",
)
@quiet_option
@json_option
@click.pass_context
def check(
    context: click.Context,
    paths: tuple[Path, ...],
    base: str | None,
    step: int | None,
    select: str | None,
    fail_on: Literal["error", "warning", "never"],
    quiet: bool,
    as_json: bool,
) -> None:
    """Say whether the run at PATH holds all of a model, and name everything that is missing.

    Every expected rank, file, chunk and range of bytes is held against what is there, for every step.
    Several PATHs are the folders of several nodes, whose ranks wrote one checkpoint together. No byte
    of a tensor is read.
    """
    from unshard.diagnosis import check as check_path

    result = check_path(paths, base=base, step=step, select=select)
    if as_json:
        echo_json(result)
    else:
        echo(f"{click.style(plain(result.path.name), bold=True)}  in {plain(result.path.parent)}")
        echo_rows(_rows(result))
        echo_findings(result.findings, quiet=quiet)
        if result.taken is not None:
            echo_commands("next", [_next(result, paths, base, step)])
    context.exit(3 if result.fails(fail_on) else 0)


def _rows(result: Diagnosis) -> list[tuple[str, object]]:
    taken = "none: no step is whole" if result.taken is None else plain(result.taken)
    return [
        ("layout", plain(result.layout)),
        *((_label(one), f"{one.verdict}: {_verdict(one, result.path)}") for one in result.steps),
        ("base", _base(result)),
        ("convert takes", taken),
    ]


def _base(result: Diagnosis) -> str:
    if result.base is None:
        return "not found" if result.taken else "not looked for"
    return plain(result.base)


def _label(one: StepVerdict) -> str:
    return "this" if one.step.number is None else f"step {one.step.number}"


def _verdict(one: StepVerdict, checked: Path) -> str:
    if one.verdict == "whole":
        return f"{plain(one.evidence)} ({format_size(one.step.size)})"
    if one.step.path == checked:
        return f"{counted(one.missing, 'gap')}, told below" if one.missing else "told below"
    return plain(one.evidence)


def _next(result: Diagnosis, paths: tuple[Path, ...], base: str | None, step: int | None) -> str:
    words: list[object] = ["unshard", "convert", *paths, "OUT"]
    if step is not None:
        words += ["--step", step]
    if base or result.base is None:
        words += ["--base", base or "BASE"]
    return command(*words)
