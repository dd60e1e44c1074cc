"""`unshard convert`: a complete, verified model."""

from __future__ import annotations

import tempfile
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unshard.cli.options import (
    adapter_option,
    base_option,
    dtype_option,
    inferred_shapes_option,
    json_option,
    lora_alpha_option,
    offline_option,
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
    level_rows,
    plain,
)
from unshard.cli.progress_bar import progress_bar
from unshard.cli.report_file import require_report_place, write_report_file
from unshard.sizes import counted, format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unshard.conversion import Conversion
    from unshard.match import Decision
    from unshard.match.restored import AdapterChoice
    from unshard.preparation import DTypePolicy, Format, Preparation
    from unshard.progress import Progress
    from unshard.report import Report


# From how many tensors on the same fate is told once for all of them.
_SHOWN_ALIKE = 4


@click.command(short_help="Write a complete, verified model.")
@click.argument("paths", metavar="PATH...", nargs=-1, type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@base_option
@click.option(
    "--to",
    type=click.Choice(["safetensors", "pt"]),
    default="safetensors",
    show_default=True,
    help="Format of the tensors: a Hugging Face folder of safetensors, or torch's own format; "
    "with `pt`, OUT may also be one file that ends in .pt.",
)
@dtype_option
@click.option(
    "--max-shard-size", default="5GB", show_default=True, metavar="SIZE", help="Largest file of tensors."
)
@which_checkpoint
@adapter_option
@lora_alpha_option
@inferred_shapes_option
@click.option("--overwrite", is_flag=True, help="Replace OUT; the old one goes after the new one is whole.")
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@click.option("--prove", is_flag=True, help="Also load the result in transformers and run it (extra `hf`).")
@click.option("--no-verify", is_flag=True, help="Do not read the result back and compare it with the source.")
@click.option("--no-digest", is_flag=True, help="Leave the SHA-256 of every tensor out of the manifest.")
@click.option(
    "--compare-replicas",
    is_flag=True,
    help="Compare parts of tensors that the checkpoint holds several times (HSDP) bit for bit.",
)
@click.option("--no-fsync", is_flag=True, help="Do not wait until the disk has it all.")
@offline_option
@report_option
@workers_option
@quiet_option
@json_option
def convert(
    paths: tuple[Path, ...],
    out: Path,
    base: str | None,
    to: Format,
    dtype: DTypePolicy,
    max_shard_size: str,
    step: int | None,
    select: str | None,
    adapter: AdapterChoice,
    lora_alpha: float | None,
    accept_inferred_shapes: bool,
    overwrite: bool,
    dry_run: bool,
    prove: bool,
    no_verify: bool,
    no_digest: bool,
    compare_replicas: bool,
    no_fsync: bool,
    offline: bool,
    report: Path | None,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Turn the checkpoint at PATH into a model in the new folder OUT.

    Several PATHs are the folders of several nodes, whose ranks wrote one checkpoint together.

    OUT holds the tensors, the base's configuration (edited only where the tensors prove it wrong),
    tokenizer, generation settings and chat template, and a manifest. It appears whole or not at all.
    """
    if not paths:  # of a single argument, click makes OUT
        raise click.UsageError("Missing argument 'OUT': where to write the model.")
    if dry_run and report:
        raise click.UsageError("--report tells what was written, and with --dry-run nothing is.")
    from unshard.conversion import Settings, carry_out
    from unshard.preparation import plan_conversion

    require_report_place(report)
    ready = plan_conversion(
        paths,
        out,
        base=base,
        to=to,
        dtype=dtype,
        max_shard_size=max_shard_size,
        step=step,
        select=select,
        adapter=adapter,
        lora_alpha=lora_alpha,
        accept_inferred_shapes=accept_inferred_shapes,
        download=not offline,
    )
    if dry_run:
        _print_plan(ready, quiet=quiet, as_json=as_json)
        return
    settings = Settings(
        overwrite, not no_verify, not no_digest, prove, not no_fsync, compare_replicas, workers
    )
    with progress_bar(shown=not (quiet or as_json)) as progress:
        done = carry_out(ready, settings, progress=progress)
        write_report_file(report, lambda: _report(ready, done, workers=workers, progress=progress))
    if as_json:
        echo_json(done)
        return
    _print_result(ready, done, quiet=quiet)


def _report(ready: Preparation, done: Conversion, *, workers: int | None, progress: Progress) -> Report:
    from unshard.report.of_conversion import report_of_conversion

    return report_of_conversion(ready, done, workers=workers, progress=progress)


def _print_plan(ready: Preparation, *, quiet: bool, as_json: bool) -> None:
    plan = ready.plan
    if as_json:
        echo_json(ready.to_json())
        return
    echo(f"{click.style('plan', bold=True)}  nothing was written")
    echo_rows(
        [
            *_head(ready),
            (
                "files",
                [
                    f"{f.name}  {format_size(f.size)}, {counted(len(f.placements), 'tensor')}"
                    for f in plan.files
                ],
            ),
            ("", [f"{f.name}  {format_size(f.size)} ({f.origin})" for f in plan.side_files]),
            ("disk", f"{format_size(plan.output_bytes)} needed at {plan.target.absolute().parent}"),
            ("scratch", [_scratch(plan.scratch_bytes)] if plan.scratch_bytes else []),
            ("memory", f"{format_size(plan.budget_bytes)} for tensor data at most"),
            ("edits", [f"{key}: {plain(value)}" for key, value in ready.model.config_edits.items()]),
        ]
    )
    changed = [d for d in plan.decisions if d.target is None or d.reason or d.source != d.target]
    same = len(plan.decisions) - len(changed)
    echo()
    fates = [(plain(source), _fate(list(parts))) for source, parts in groupby(changed, lambda d: d.source)]
    alike = Counter(fate for _, fate in fates)
    together = [(counted(n, "tensor"), fate) for fate, n in alike.items() if n > _SHOWN_ALIKE]
    alone = [(name, fate) for name, fate in fates if alike[fate] <= _SHOWN_ALIKE]
    echo_rows([*([("as it is", counted(same, "tensor"))] if same else []), *together, *alone])
    echo_findings(plan.findings, quiet=quiet)


def _scratch(count: int) -> str:
    return f"{format_size(count)} at most in {tempfile.gettempdir()}, to unpack compressed tensors (TMPDIR)"


def _fate(decisions: Sequence[Decision]) -> str:
    """Return in one line what happens to a tensor; of its parts, where it is taken apart, to the first."""
    more = f" and {len(decisions) - 1} more" if len(decisions) > 1 else ""
    return _decision(decisions[0], more)


def _decision(decision: Decision, more: str) -> str:
    if decision.target is None:
        return f"dropped: {plain(decision.reason)}"
    renamed = "" if decision.target == decision.source else f"-> {plain(decision.target)}{more}"
    return ", ".join(filter(None, [renamed, plain(decision.reason)]))


def _head(ready: Preparation) -> list[tuple[str, object]]:
    checkpoint, base = ready.checkpoint, ready.base
    return [
        ("checkpoint", f"{plain(checkpoint.path)} ({plain(checkpoint.layout.title)})"),
        ("base", f"{plain(base.reference)} ({plain(base.origin)})" if base else "none"),
        ("output", plain(ready.plan.target)),
    ]


def _print_result(ready: Preparation, done: Conversion, *, quiet: bool) -> None:
    if quiet:
        echo_findings(done.findings, quiet=True)
        return
    amount = f"{counted(len(done.manifest.tensors), 'tensor')}, {format_size(done.output_bytes)}"
    rate = format_size(round(done.output_bytes / max(done.seconds, 1e-9)))
    echo_rows(
        [
            *_head(ready),
            (
                "written",
                f"{amount} in {counted(len(ready.plan.files), 'file')}, {done.seconds:.1f} s, {rate}/s",
            ),
            ("dropped", _dropped(done)),
            *level_rows(done.proof),
        ]
    )
    echo_findings(done.findings)
    echo_commands("next", next_commands(ready))


def _dropped(done: Conversion) -> list[str]:
    """Return what is not in the result, and why; many for one reason together."""
    dropped = done.manifest.dropped
    alike = Counter(d["reason"] for d in dropped)
    alone = [
        f"{plain(d['source'])}: {plain(d['reason'])}" for d in dropped if alike[d["reason"]] <= _SHOWN_ALIKE
    ]
    together = [f"{counted(n, 'tensor')}: {plain(why)}" for why, n in alike.items() if n > _SHOWN_ALIKE]
    return [*alone, *together]


def next_commands(ready: Preparation) -> list[str]:
    """Return the commands that use the result."""
    target, base = ready.plan.target, ready.base
    if ready.options["adapter"] == "keep":
        merge = command("unshard", "convert", target, "MERGED", *(["--base", base.reference] if base else []))
        return [merge]
    if ready.plan.files[0].name == target.name:
        return [f"python -c 'import torch; torch.load(\"{target}\", mmap=True)'"]
    places = ready.places if len(ready.places) > 1 else (ready.checkpoint.path,)
    against: list[object] = [word for place in places for word in ("--against", place)]
    if base is not None and ready.checkpoint.layout.name == "peft-adapter":
        against += ["--base", base.reference]
    lines = [command("unshard", "verify", target, *against)]
    if base is not None:
        lines.insert(0, command("unshard", "run", target, "--prompt", "Hello"))
        lines.append(command("vllm", "serve", target))
    return lines
