"""`unshard run`: ask a model something, straight from the training checkpoint if need be."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unshard.cli.options import (
    base_option,
    dtype_option,
    inferred_shapes_option,
    json_option,
    lora_alpha_option,
    offline_option,
    paths_argument,
    quiet_option,
    which_checkpoint,
)
from unshard.cli.printing import echo_json_line, note, note_findings
from unshard.errors import InferenceError, OptionError

if TYPE_CHECKING:
    from unshard.inference.loading import LoadedModel


@click.command(short_help="Ask a model something; no conversion needed.")
@paths_argument
@click.option(
    "--prompt", "-p", "prompts", multiple=True, metavar="TEXT", help="What to ask; may be repeated."
)
@click.option(
    "--prompts",
    "prompt_file",
    type=click.File(encoding="utf-8"),
    metavar="FILE",
    help="A file with one prompt per line; `-` for stdin.",
)
@base_option
@dtype_option
@click.option(
    "--device", default="auto", show_default=True, metavar="auto|cpu|cuda:N", help="Where the model runs."
)
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=256, show_default=True, help="Longest answer."
)
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="0 takes the likeliest token every time.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same answer.")
@click.option(
    "--chat/--no-chat", default=None, help="Use the chat template; by default where the model has one."
)
@click.option(
    "--no-fingerprint",
    is_flag=True,
    help="Run a model that does not behave as the record of its training says.",
)
@which_checkpoint
@lora_alpha_option
@inferred_shapes_option
@offline_option
@quiet_option
@json_option
def run(
    paths: tuple[Path, ...],
    prompts: tuple[str, ...],
    prompt_file: Iterable[str] | None,
    base: str | None,
    dtype: str,
    device: str,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    chat: bool | None,
    no_fingerprint: bool,
    step: int | None,
    select: str | None,
    lora_alpha: float | None,
    accept_inferred_shapes: bool,
    offline: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Load the model at PATH, a converted folder or a training checkpoint, and answer prompts.

    Nothing is written: tensors of a checkpoint become the model in memory, without a second copy.
    The model is in eval mode, and has given finite logits before the first answer; where training left
    a fingerprint, those of training. Without a prompt, prompts are read from stdin: the whole of it
    from a pipe, line by line from a terminal.
    """
    from unshard.inference import require_packages

    require_packages("run")
    from unshard.inference.generating import generate_answer
    from unshard.inference.opening import open_model

    loaded = open_model(
        paths,
        base=base,
        dtype=dtype,
        device=device,
        device_map=None,
        step=step,
        select=select,
        lora_alpha=lora_alpha,
        accept_inferred_shapes=accept_inferred_shapes,
        download=not offline,
        fingerprint=not no_fingerprint,
    )
    tokenizer = loaded.tokenizer
    note_findings(loaded.findings)
    if tokenizer is None:
        raise InferenceError(
            paths[0], "has no tokenizer, so it cannot be asked anything", hint="Name its base with --base."
        )
    if not quiet:
        note(_loaded(loaded))
        if loaded.reproduction is not None:
            note(loaded.reproduction)
    for prompt in _prompts(prompts, prompt_file):
        answer = generate_answer(
            loaded.model,
            tokenizer,
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            chat=chat,
            on_text=_ignore if as_json else _stream,
        )
        if as_json:
            echo_json_line({"prompt": prompt, "answer": answer})
            continue
        _stream("\n")
        if not quiet:
            note(f"{answer.tokens} tokens, {answer.tokens / max(answer.seconds, 1e-9):.1f} per second")


def _loaded(loaded: LoadedModel) -> str:
    seconds = f"{loaded.load_seconds:.1f} s, forward pass in {loaded.check_seconds:.1f} s"
    return f"{type(loaded.model).__name__} on {loaded.model.device}: loaded in {seconds}"


def _prompts(given: tuple[str, ...], file: Iterable[str] | None) -> Iterator[str]:
    """Yield what to ask: the options, a file, or stdin."""
    yield from given
    if file is not None:
        yield from (line.strip() for line in file if line.strip())
    elif not given:
        yield from _prompts_from_stdin()


def _prompts_from_stdin() -> Iterator[str]:
    if not sys.stdin.isatty():
        text = sys.stdin.read().strip()
        if not text:
            raise OptionError("prompt", "is missing", hint='Give one with --prompt "...", or pipe it in.')
        yield text
        return
    note("One prompt per line; end with Ctrl-D.")
    while True:
        click.echo("> ", err=True, nl=False)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _stream(text: str) -> None:
    click.echo(text, nl=False)
    sys.stdout.flush()


def _ignore(_text: str) -> None:
    """Take no piece: the whole answer is printed as JSON."""
