"""`unshard mend`: repair a model folder without the run that it came from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from unshard.cli.options import base_option, json_option, offline_option, quiet_option, workers_option
from unshard.cli.printing import command, echo, echo_commands, echo_findings, echo_json, echo_rows, plain
from unshard.cli.progress_bar import progress_bar
from unshard.sizes import counted, format_size

if TYPE_CHECKING:
    from unshard.mending import Mending
    from unshard.mending.mend_plan import MendPlan
    from unshard.mending.planning import Layout
    from unshard.mending.weight_plans import PlannedWeights

_NAMES = (
    "names, experts, format, size, index, architectures, ties, dtype, vocabulary, spelling, cache, "
    "quantization, files"
)


@click.command(short_help="Repair a broken model folder.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("out", required=False, type=click.Path(path_type=Path))
@base_option
@click.option("--in-place", is_flag=True, help="Change FOLDER itself: all of it or nothing, by a journal.")
@click.option(
    "--layout",
    type=click.Choice(["hub", "v5"]),
    help="How experts lie: one by one as published, or together as transformers 5 has them in memory. "
    "Without it, as the base has them, else as published.",
)
@click.option("--max-shard-size", metavar="SIZE", help="Split files of weights that are larger, such as 5GB.")
@click.option("--only", metavar="REPAIR", multiple=True, help=f"Make this repair and no other: {_NAMES}.")
@click.option("--skip", metavar="REPAIR", multiple=True, help="Do not make this repair.")
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@click.option(
    "--no-links",
    is_flag=True,
    help="Copy weights that stay as they are. Otherwise OUT shares them with FOLDER by hard links where the "
    "file system can: a program that writes into such a file (none that replaces it) changes both folders.",
)
@click.option("--overwrite", is_flag=True, help="Replace OUT; the old one goes after the new one is whole.")
@offline_option
@workers_option
@quiet_option
@json_option
@click.pass_context
def mend(
    context: click.Context,
    folder: Path,
    out: Path | None,
    base: str | None,
    in_place: bool,
    layout: Layout | None,
    max_shard_size: str | None,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    dry_run: bool,
    no_links: bool,
    overwrite: bool,
    offline: bool,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Repair the model folder FOLDER: in OUT, a new folder, or where it is.

    Without OUT and --in-place it only prints what it would do. Names, index and configuration are mended
    without a tensor being copied. What cannot be known (a missing tensor, a missing output head) is told,
    and nothing is written then; the exit code is 3.
    """
    from unshard.mending import mend as mend_folder

    with progress_bar(shown=not (quiet or as_json)) as progress:
        done = mend_folder(
            folder,
            out,
            base=base,
            in_place=in_place,
            layout=layout,
            max_shard_size=max_shard_size,
            only=only,
            skip=skip,
            dry_run=dry_run,
            links=not no_links,
            overwrite=overwrite,
            download=not offline,
            workers=workers,
            progress=progress,
        )
    if as_json:
        echo_json(done.to_json())
    else:
        _print(done, out, base, quiet=quiet)
    context.exit(3 if done.remains else 0)


def _print(done: Mending, out: Path | None, base: str | None, *, quiet: bool) -> None:
    plan = done.plan
    if done.recovered:
        echo("changes that had begun when a process died were completed")
    if quiet:
        echo_findings((*plan.refusals, *plan.findings), quiet=True)
        return
    echo(f"{_headline(done)}  {plain(plan.path)}")
    if not plan.is_refused:
        echo_rows(
            [(repair.name, [plain(repair.what), plain(f"because: {repair.why}")]) for repair in plan.repairs]
        )
        _print_files(plan)
    echo_findings((*plan.refusals, *plan.findings))
    if done.target is not None:
        echo()
        size = format_size(done.written_bytes)
        echo(f"{size} written in {done.seconds:.2f} s; next: {command('unshard', 'check', done.target)}")
    elif plan.changes and not plan.is_refused:
        words = ["unshard", "mend", plan.path]
        named = ["--base", base] if base else []
        echo_commands(
            "to do it",
            [
                command(*words, out or f"{plan.path}-mended", *named),
                command(*words, "--in-place", *named),
            ],
        )


def _headline(done: Mending) -> str:
    plan = done.plan
    if plan.is_refused:
        return click.style("cannot be mended", fg="red", bold=True)
    if not plan.changes:
        return click.style("nothing to mend", fg="green", bold=True)
    if done.target is None:
        return click.style("plan", bold=True) + "  nothing was written"
    return click.style("mended", fg="green", bold=True)


def _print_files(plan: MendPlan) -> None:
    """Print what becomes of every file that changes, and what changes in small ones."""
    files = [(file.name, _fate(file)) for file in plan.weights if file.changes]
    texts = [(text.name, "added" if text.before is None else "edited") for text in plan.texts if text.after]
    gone = [(text.name, "removed") for text in plan.texts if text.after is None]
    if files or texts or gone:
        echo()
        echo_rows([(plain(name), fate) for name, fate in (*files, *texts, *gone)])
    for text in plan.texts:
        if text.diff:
            echo()
            echo(f"  {plain(text.name)}")
            for line in text.diff:
                colour = {"-": "red", "+": "green"}.get(line[:1])
                echo("    " + click.style(plain(line), fg=colour, dim=line.startswith("@@")))


def _fate(file: PlannedWeights) -> str:
    tensors = counted(len(file.tensors), "tensor")
    renamed = f", was {plain(file.source)}" if file.source not in (None, file.name) else ""
    match file.fate:
        case "header":
            what = f"{format_size(len(file.header or b''))} of header written over, {tensors}"
        case "copied":
            what = f"a longer header, then its data as they are, {tensors}"
        case "written":
            what = f"written anew, {tensors}"
        case "removed":
            what = "removed; its tensors are in other files"
        case "unchanged":
            what = f"renamed, {tensors}"
    return what + renamed
