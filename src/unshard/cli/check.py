"""`unshard check`: what is wrong, before anybody relies on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from unshard.cli.options import (
    base_option,
    json_option,
    lora_alpha_option,
    paths_argument,
    quiet_option,
    report_option,
    which_checkpoint,
    workers_option,
)
from unshard.cli.printing import (
    command,
    echo,
    echo_commands,
    echo_findings,
    echo_json,
    echo_rows,
    plain,
)
from unshard.cli.progress_bar import progress_bar
from unshard.cli.report_file import require_report_place, write_report_file
from unshard.findings import Severity
from unshard.sizes import counted, format_size

if TYPE_CHECKING:
    from unshard.diagnosis import Diagnosis, StepVerdict
    from unshard.report import Report


@click.command(short_help="What is wrong with a run or a model, and what to do?")
@paths_argument
@base_option
@which_checkpoint
@lora_alpha_option
@click.option(
    "--deep",
    is_flag=True,
    help="Read every tensor, and the base's beside it: broken numbers, exchanged, shuffled or unchanged "
    "tensors. Without a base, transformers is asked what the model needs, if it is installed.",
)
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning", "never"]),
    default="error",
    show_default=True,
    help="Exit with 3 where a finding is as bad as this.",
)
@report_option
@workers_option
@quiet_option
@json_option
@click.pass_context
def check(
    context: click.Context,
    paths: tuple[Path, ...],
    base: str | None,
    step: int | None,
    select: str | None,
    lora_alpha: float | None,
    deep: bool,
    fail_on: Literal["error", "warning", "never"],
    report: Path | None,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Say what is wrong with the run or the model at PATH, with evidence, cause and remedy.

    Of a run, every expected rank, file, chunk and range of bytes is held against what is there, for every
    step, and names and shapes against the base. Of a model folder of Hugging Face's kind, whoever wrote it,
    names, shapes, ties, configuration, tokenizer and files are held against one another, and against the
    base where one is named.

    Several PATHs are the folders of several nodes, whose ranks wrote one checkpoint together. Without
    --deep only headers and small files are read. `unshard explain CODE` tells more of a finding.
    """
    from unshard.diagnosis import check as check_path

    require_report_place(report)
    with progress_bar(shown=not (quiet or as_json)) as progress:
        result = check_path(
            paths,
            base=base,
            step=step,
            select=select,
            lora_alpha=lora_alpha,
            deep=deep,
            workers=workers,
            progress=progress,
        )
    write_report_file(report, lambda: _report(result))
    if as_json:
        echo_json(result)
    else:
        echo(f"{click.style(plain(result.path.name), bold=True)}  in {plain(result.path.parent)}")
        echo_rows(_rows(result))
        echo_findings(result.findings, quiet=quiet)
        if following := _next(result, paths, base, step):
            echo_commands("next", following)
    context.exit(3 if result.fails(fail_on) else 0)


def _report(result: Diagnosis) -> Report:
    from unshard.report.of_diagnosis import report_of_diagnosis

    return report_of_diagnosis(result)


def _rows(result: Diagnosis) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [
        ("layout", plain(result.layout)),
        *((_label(one), f"{one.verdict}: {_verdict(one, result.path)}") for one in result.steps),
        ("base", _base(result)),
    ]
    if result.kind == "run":
        taken = "none: no step is whole" if result.taken is None else plain(result.taken)
        rows.append(("convert takes", taken))
    return [*rows, ("looked at", _looked_at(result)), ("verdict", _sentence(result))]


def _looked_at(result: Diagnosis) -> str:
    checks = counted(result.checks, "check")
    if not result.is_deep:
        return f"{checks}, of headers and small files alone; --deep reads the tensors, too"
    size = format_size(sum(tensor.nbytes for tensor in result.tensors.values()))
    compared = sum(one.delta is not None for one in result.measured.values())
    beside = f", {compared:,} of them beside the base's" if compared else ""
    sums = f"; checksums of {format_size(result.sound_bytes)} agree" if result.sound_bytes else ""
    return f"{checks}; {counted(len(result.measured), 'tensor')} read ({size}){beside}{sums}"


def _sentence(result: Diagnosis) -> str:
    errors, warnings = result.count(Severity.ERROR), result.count(Severity.WARNING)
    if not errors and not warnings:
        return click.style("nothing wrong was found", fg="green")
    parts = [counted(count, word) for count, word in ((errors, "error"), (warnings, "warning")) if count]
    return click.style(" and ".join(parts), fg="red" if errors else "yellow") + ", told below"


def _base(result: Diagnosis) -> str:
    if result.base is not None:
        return plain(result.base)
    if result.kind == "model":
        return "none was named: the folder is compared with itself"
    return "not found" if result.taken else "not looked for"


def _label(one: StepVerdict) -> str:
    return "this" if one.step.number is None else f"step {one.step.number}"


def _verdict(one: StepVerdict, checked: Path) -> str:
    if one.verdict == "whole":
        return f"{plain(one.evidence)} ({format_size(one.step.size)})"
    if one.step.path == checked:
        return f"{counted(one.missing, 'gap')}, told below" if one.missing else "told below"
    return plain(one.evidence)


def _next(result: Diagnosis, paths: tuple[Path, ...], base: str | None, step: int | None) -> list[str]:
    """Return the commands that come next."""
    if result.kind == "model":
        words: list[object] = ["unshard", "mend", *paths]
        problems = (item for item in result.findings if item.severity is not Severity.INFO)
        broken = any("unshard mend" in (item.remedy or "") for item in problems)
        return [command(*words, *(["--base", base] if base else []))] if broken else []
    if result.taken is None:
        return []
    words = ["unshard", "convert", *paths, "OUT"]
    if step is not None:
        words += ["--step", step]
    if base or result.base is None:
        words += ["--base", base or "BASE"]
    return [command(*words)]
