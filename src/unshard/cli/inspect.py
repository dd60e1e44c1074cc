"""`unshard inspect`: what is this?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from unshard.cli.options import base_option, json_option, paths_argument, which_checkpoint
from unshard.cli.printing import (
    command,
    echo,
    echo_commands,
    echo_findings,
    echo_json,
    echo_rows,
    plain,
    plain_lines,
)
from unshard.sizes import counted, format_count, format_size

if TYPE_CHECKING:
    from unshard.inspection import Inspection

_SHOWN = 4
# Facts that a row of the table tells already.
_SHOWN_IN_ROWS = frozenset(("U101", "U102", "U105", "U116", "U603"))


@click.command(short_help="What is this checkpoint? Reads headers only.")
@paths_argument
@base_option
@which_checkpoint
@click.option("--tensors", is_flag=True, help="List every tensor.")
@json_option
def inspect(
    paths: tuple[Path, ...],
    base: str | None,
    step: int | None,
    select: str | None,
    tensors: bool,
    as_json: bool,
) -> None:
    """Say what lies at PATH: a run folder, a checkpoint folder, a file, or a model folder.

    Tells the layout and who wrote it, the tensors, the model they belong to, what is there only for
    training, and what inference still needs. No byte of a tensor is read.
    """
    from unshard.inspection import inspect as inspect_path

    result = inspect_path(paths, base=base, step=step, select=select)
    if as_json:
        echo_json(result)
        return
    echo(f"{click.style(plain(result.path.name), bold=True)}  in {plain(result.path.parent)}")
    echo_rows([(label, plain_lines(value)) for label, value in _rows(result)])
    if tensors:
        echo()
        shown = ((n, f"{t.dtype} {list(t.shape)}, {t.origin}") for n, t in result.tensors.items())
        echo_rows((plain(name), plain(text)) for name, text in shown)
    echo_findings([found for found in result.findings if found.code not in _SHOWN_IN_ROWS])
    words = ["unshard", "convert", *paths, "OUT"]
    if step is not None:
        words += ["--step", step]
    if base or result.base is None:
        words += ["--base", base or "BASE"]
    echo_commands("next", [command(*words)])


def _rows(result: Inspection) -> list[tuple[str, list[str]]]:
    """Return the table: one label per question a person has."""
    total = (
        f"{len(result.tensors):,}, {format_count(result.parameters)} parameters, {format_size(result.nbytes)}"
    )
    groups = [
        f"{dtype}: {format_size(group.nbytes)} in {counted(group.tensors, 'tensor')}"
        for dtype, group in result.dtypes.items()
    ]
    base, layout = result.base, result.layout
    return [
        ("layout", [layout.title]),
        ("written by" if layout.writer else "told by", [*filter(None, [layout.writer]), *layout.evidence]),
        ("model", [_model(result)]),
        ("tensors", [total, *groups]),
        ("quantised", list(result.quantised)),
        ("inside", [f"container `{'.'.join(result.container)}`"] if result.container else []),
        ("names", [f"of {result.model.scheme}, translated with a base"] if result.model.scheme else []),
        ("wrappers", [f"{segment} in {counted(n, 'name')}" for segment, n in result.wrappers.items()]),
        ("tied", [f"{t.repeated} = {t.kept}{_storage(one=t.one_storage)}" for t in result.ties]),
        ("training", [f"{key}: {value}" for key, value in result.precision.items()]),
        ("record", _record(result)),
        ("left out", _left_out(result)),
        ("checksums", [_checksums(result)]),
        ("replicas", _replicas(result)),
        ("steps", _steps(result)),
        ("base", [f"{base.reference} ({base.origin})" if base else "not found"]),
        ("missing", [", ".join(result.missing) or "nothing"]),
        ("output", [f"{counted(result.output_files, 'file')}, {format_size(result.output_bytes)}"]),
    ]


def _record(result: Inspection) -> list[str]:
    record = result.record
    if record is None:
        return []
    step = [] if record.step is None else [f"step {record.step:,}"]
    dtypes = f" in {', '.join(record.dtypes)}" if record.dtypes else ""
    digests = f"digests of {counted(record.tensors, 'tensor')}{dtypes}"
    fingerprint = "fingerprint" if record.has_fingerprint else "no fingerprint"
    trained = f"{counted(record.ranks, 'rank')} ({record.kind})"
    return [", ".join((*step, trained, digests, fingerprint, record.created))]


def _model(result: Inspection) -> str:
    guess, sizes = result.model, result.model.sizes
    facts = [
        counted(sizes.layers, "layer") if sizes.layers else "",
        f"hidden {sizes.hidden:,}" if sizes.hidden else "",
        f"vocabulary {sizes.vocabulary:,}" if sizes.vocabulary else "",
        f"the sizes of {guess.nearest}" if guess.nearest else "",
    ]
    return ", ".join(filter(None, [guess.family or "no known family", *facts]))


def _storage(*, one: bool) -> str:
    return " (one storage)" if one else " by name; two storages, compared when it is converted"


def _checksums(result: Inspection) -> str:
    if not result.checksummed_bytes:
        return "none: damage cannot be told from data"
    return f"CRC-32 of {format_size(result.checksummed_bytes)}, checked when it is converted"


def _replicas(result: Inspection) -> list[str]:
    if not result.replicas:
        return []
    parts = f"{counted(result.replicas, 'part')} of tensors are there more than once"
    return [f"{parts}, and read from one place (convert --compare-replicas reads all)"]


def _left_out(result: Inspection) -> list[str]:
    """Return what is there only for training; small values together on one line."""
    values = [f"{e.name}={e.value}" for e in result.extras if e.value is not None]
    large = [f"{e.name}: {e.kind}, {format_size(e.size)}" for e in result.extras if e.value is None]
    rest = [f"and {len(large) - _SHOWN} more"] if len(large) > _SHOWN else []
    return [*large[:_SHOWN], *rest, ", ".join(values[:_SHOWN])]


def _steps(result: Inspection) -> list[str]:
    if len(result.steps) < 2:
        return []
    taken = next((str(s.number) for s in result.steps if s.path == result.path), "?")
    others = ", ".join(str(s.number) for s in result.steps if s.path != result.path)
    return [f"{taken} is shown; also there: {others} (--step)"]
