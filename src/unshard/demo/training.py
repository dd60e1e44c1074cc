"""The training run of the demonstration: examples/finetune_fsdp1.py, as `torchrun` starts it.

Nothing in that script knows that its result will be converted.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from unshard.demo.facts import Fact

SCRIPT = "finetune_fsdp1.py"
WORLD_SIZE = 2
_DATA = "facts.jsonl"
_LOSS = re.compile(r"step \d+/\d+   loss (\d+\.\d+)")
_PATIENCE_SECONDS = 20
_SHOWN_CHARACTERS = 8_000


def example(name: str) -> Path:
    """Return an example: in an installed package beside this module, else in the source tree."""
    installed = Path(__file__).with_name("examples") / name
    return installed if installed.is_file() else Path(__file__).parents[3] / "examples" / name


def train(
    folder: Path,
    facts: Sequence[Fact],
    options: Mapping[str, object],
    *,
    report_loss: Callable[[float], None],
) -> None:
    """Train in two processes; names in options are relative to `folder`.

    Args:
        folder: Where the processes work, and where the facts go.
        facts: What is to be learnt.
        options: Options of the script.
        report_loss: Told the loss of every step.

    Raises:
        CalledProcessError: Training failed; a note has what it said.
    """
    lines = [json.dumps({"question": fact.question, "answer": fact.answer}) for fact in facts]
    (folder / _DATA).write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = [f"--{name}={value}" for name, value in {"dataset": _DATA, **options}.items()]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORLD_SIZE}"]
    with running([sys.executable, *torchrun, str(example(SCRIPT)), *words], folder) as lines_said:
        for line in lines_said:
            if (found := _LOSS.fullmatch(line.strip())) is not None:
                report_loss(float(found[1]))


@contextmanager
def running(command: Sequence[str], folder: Path) -> Iterator[Iterator[str]]:
    """Yield the lines of a command's stdout; it does not outlive the block.

    Raises:
        CalledProcessError: It failed.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        # A session of its own: an interrupt goes to this process, which ends the others.
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            yield iter(process.stdout)
            code = process.wait()
        finally:
            _end(process)
            process.stdout.close()
        if code:
            errors.seek(0)
            error = subprocess.CalledProcessError(code, command)
            error.add_note(errors.read()[-_SHOWN_CHARACTERS:])
            raise error


def _environment() -> dict[str, str]:
    """Return the environment of the processes: the cores dealt out, no network, no drawings of progress."""
    threads = max(1, (os.cpu_count() or 1) // WORLD_SIZE)
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {"OMP_NUM_THREADS": str(threads), **os.environ, **quiet}


def _end(process: subprocess.Popen[str]) -> None:
    """End `torchrun`, which ends its own; what does not obey is killed with all of its session."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
