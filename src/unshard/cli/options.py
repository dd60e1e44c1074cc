"""Options that several commands share, each worded once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])

path_argument = click.argument("path", type=click.Path(path_type=Path))
# The folders of several nodes are one checkpoint.
paths_argument = click.argument(
    "paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path)
)

base_option = click.option(
    "--base",
    metavar="DIR|HUB_ID",
    help="The model training started from: a folder, or a name on the hub. "
    "Without it, it is looked for in and beside the checkpoint.",
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["base", "keep", "float32", "bfloat16", "float16"]),
    default="base",
    show_default=True,
    help="`base`: as the base has it, tensor by tensor. `keep`: as the checkpoint has it.",
)
adapter_option = click.option(
    "--adapter",
    type=click.Choice(["merge", "keep", "both"]),
    default="merge",
    show_default=True,
    help="An adapter (LoRA): merged into the weights, kept by itself as PEFT has it, or both, the adapter in "
    "OUT/adapter.",
)
lora_alpha_option = click.option(
    "--lora-alpha",
    type=float,
    metavar="FLOAT",
    help="The numerator of an adapter's scale, where no file tells it.",
)
inferred_shapes_option = click.option(
    "--accept-inferred-shapes",
    is_flag=True,
    help="Where neither a file nor the base tells how large tensors are, take the parts that are there "
    "for all of them.",
)
offline_option = click.option("--offline", is_flag=True, help="Never fetch a base from the hub.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
quiet_option = click.option("--quiet", "-q", is_flag=True, help="No progress bar, and no mere facts.")
report_option = click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="Also write one page to look at. Where a command has not read every tensor, as `convert` and "
    "`verify`, they are read once more for it, and the base's beside them.",
)
workers_option = click.option(
    "--workers", type=click.IntRange(1, 64), help="Threads; by default one per core, at most four."
)


def which_checkpoint(command: _Command) -> _Command:
    """Add the options that choose one checkpoint, and one model in it."""
    step = click.option(
        "--step", type=int, metavar="N", help="Which of several epochs or steps; the newest without it."
    )
    select = click.option(
        "--select",
        metavar="PREFIX",
        help="Which of several models in one file: its container, or the prefix of its names.",
    )
    return step(select(command))
