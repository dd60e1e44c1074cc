"""`unshard demo`: the whole way, from two training processes to a model that answers."""

from __future__ import annotations

from pathlib import Path

import click

from unshard.cli.printing import echo
from unshard.cli.progress_bar import progress_bar


@click.command(short_help="Train a small real model and go the whole way.")
@click.argument("folder", type=click.Path(path_type=Path), default="unshard-demo")
@click.option("--steps", type=click.IntRange(1, 100), default=8, show_default=True, help="Steps of training.")
@click.option("--seed", type=int, default=0, show_default=True, help="Deals out the facts.")
def demo(folder: Path, steps: int, seed: int) -> None:
    """Train, inspect, convert, verify and ask, in FOLDER (by default `unshard-demo`).

    Two FSDP processes teach a small real model a few invented facts and leave a FULL_STATE_DICT
    checkpoint in llama-recipes' layout. It is made usable, and the model before and after answer the
    same questions. Takes a few minutes on two cores, and needs the extra `demo`.
    """
    from unshard.demo import run_demo

    with progress_bar(shown=True) as progress:
        run_demo(folder, steps=steps, seed=seed, report=echo, progress=progress)
