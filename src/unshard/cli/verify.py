"""`unshard verify`: prove a model, ours or anybody's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from unshard.cli.options import (
    base_option,
    json_option,
    path_argument,
    quiet_option,
    report_option,
    workers_option,
)
from unshard.cli.printing import echo, echo_findings, echo_json, echo_rows, level_rows, plain
from unshard.cli.progress_bar import progress_bar
from unshard.cli.report_file import require_report_place, write_report_file

if TYPE_CHECKING:
    from unshard.progress import Progress
    from unshard.report import Report
    from unshard.verification import Verification


@click.command(short_help="Prove a model folder, ours or anybody's.")
@path_argument
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="CHECKPOINT",
    help="The training checkpoint: every tensor is compared with it bit for bit. "
    "May be repeated for the folders of several nodes.",
)
@base_option
@click.option(
    "--forward/--no-forward",
    default=None,
    help="Load it in transformers and run it; by default where the extra `hf` is installed.",
)
@report_option
@workers_option
@quiet_option
@json_option
@click.pass_context
def verify(
    context: click.Context,
    path: Path,
    against: tuple[Path, ...],
    base: str | None,
    forward: bool | None,
    report: Path | None,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Check the model at PATH by what lies on disk, and exit with 3 where anything differs.

    Bytes: headers, offsets, index, digests of the manifest, and with --against every bit of the
    source. Structure: names, shapes and dtypes, configuration against tensors. Record, where there
    is one: tensors are, bit for bit, what training held. Forward: it loads with nothing missing,
    its logits are finite, and its loss on a fixed text is that of a model. Fingerprint, where the
    record has one: its logits are those of training, but for rounding.
    """
    from unshard.verification import verify as verify_path

    require_report_place(report)
    with progress_bar(shown=not (quiet or as_json)) as progress:
        result = verify_path(
            path, against=against or None, base=base, forward=forward, workers=workers, progress=progress
        )
        write_report_file(report, lambda: _report(result, base=base, workers=workers, progress=progress))
    if as_json:
        echo_json(result)
    else:
        echo(click.style(plain(path), bold=True))
        echo_rows(level_rows(result.levels))
        echo_findings(result.findings, quiet=quiet)
        echo()
        echo(
            click.style("verified", fg="green", bold=True)
            if result.sound
            else click.style("differs", fg="red", bold=True)
        )
    context.exit(0 if result.sound else 3)


def _report(result: Verification, *, base: str | None, workers: int | None, progress: Progress) -> Report:
    from unshard.report.of_verification import report_of_verification

    return report_of_verification(result, base=base, workers=workers, progress=progress)
