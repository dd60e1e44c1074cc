"""The entry point: one group, exit codes, and the one place where errors become words.

0    done
1    an error a person can mend, named on stderr
2    a command line that cannot be understood
3    verification found a difference, or what --fail-on or --exit-code asks for
130  interrupted, 143 terminated; nothing that looks finished is left behind
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path
from types import FrameType

import click

from unshard import __version__
from unshard.cli.check import check
from unshard.cli.convert import convert
from unshard.cli.demo import demo
from unshard.cli.diff import diff
from unshard.cli.env import env
from unshard.cli.explain import explain
from unshard.cli.inspect import inspect
from unshard.cli.mend import mend
from unshard.cli.printing import echo_error, note
from unshard.cli.run import run
from unshard.cli.verify import verify
from unshard.errors import UnshardError

_CHECKPOINT_ENDINGS = (".pt", ".pth", ".bin", ".ckpt")


class _InOrder(click.Group):
    """A group that lists its commands in the order a person uses them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", message="unshard %(version)s")
def commands() -> None:
    """Turn what training left into a model that can be served.

    Any training checkpoint in; a complete, verified model out. No torch, no GPU and no training
    code is needed to inspect, convert or verify.

    \b
    unshard inspect RUN                     what is this?
    unshard check RUN                       what is wrong with it?
    unshard convert RUN OUT --base BASE     a complete, verified model folder
    unshard run OUT --prompt "Hello"        ask it something
    unshard env RUN                         this machine beside the one that trained
    """  # noqa: D301 - click reads the backspace


for _command in (inspect, check, convert, verify, diff, mend, run, env, explain, demo):
    commands.add_command(_command)


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM, handled as an interruption so that nothing is left half-written."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    words = [_as_path(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    # Describing a checkpoint makes very many small objects and hardly a cycle: looking for them after
    # every 700 objects takes a tenth of the time.
    gc.set_threshold(100_000, 20, 20)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = commands.main(words, prog_name="unshard", standalone_mode=False)
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except UnshardError as error:
        echo_error(error, as_json="--json" in words)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort) as error:
        note("interrupted; nothing that looks finished was left behind")
        # Click turns the one into the other.
        terminated = isinstance(error, _TerminatedError) or isinstance(error.__cause__, _TerminatedError)
        code = 143 if terminated else 130
    except BrokenPipeError:
        # The reader of our output went away, as `head` does; what it has read is all it wanted.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code if isinstance(code, int) else 0)


def _as_path(word: str) -> str:
    """Return a checkpoint whose name begins with dashes as a path that cannot be taken for an option.

    llama-recipes names the file of a model at an absolute path `--path--model-0.pt`.
    """
    is_checkpoint = word.startswith("-") and word.endswith(_CHECKPOINT_ENDINGS) and Path(word).exists()
    return f"./{word}" if is_checkpoint else word


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise _TerminatedError
