"""The whole way: train, inspect, compare machines, convert, verify, and ask base and result the same.

    FOLDER/base    the model training starts from
    FOLDER/run     what training leaves
    FOLDER/model   what can be served

Made again, the base is kept and the rest replaced.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unshard.conversion import convert
from unshard.demo.base_model import MODEL_NAME, require_base_package, write_base_model
from unshard.demo.facts import FACTS
from unshard.demo.training import SCRIPT, WORLD_SIZE, train
from unshard.environment import compare_environment
from unshard.errors import InferenceError, OutputExistsError, VerificationError
from unshard.inspection import inspect
from unshard.progress import Progress
from unshard.sizes import format_count, format_size
from unshard.verification import verify

if TYPE_CHECKING:
    from unshard.demo.asking import Answered

Report = Callable[[str], None]

_LEARNING_RATE = 1e-4
_NOTE = "README.txt"
_NOTE_TEXT = """Made by `unshard demo`.

base    SmolLM2-135M-Instruct, the model that training starts from
run     the checkpoint that two FSDP processes left, in llama-recipes' layout
model   the same weights as a model folder, converted and verified

Everything in here can be deleted; `unshard demo` makes it again.
"""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """What the demonstration made.

    Attributes:
        base: The folder of the base.
        checkpoint: The folder of the training run.
        model: The folder of the converted model.
        answers: What base and result answered.
    """

    base: Path
    checkpoint: Path
    model: Path
    answers: tuple[Answered, ...]


def run_demo(folder: Path, *, steps: int, seed: int, report: Report, progress: Progress) -> Demonstration:
    """Train a small real model in two processes, make it usable, and show that it learnt.

    Args:
        folder: Where everything goes: a new or empty folder, or that of an earlier demonstration.
        steps: Steps of training; 8 are enough to learn the facts by heart.
        seed: Deals the facts out to the processes.
        report: Told every line there is to read.
        progress: Told about the bytes of conversion and verification.

    Raises:
        MissingExtraError: A package of the extra `demo`, or the model's, is not installed.
        OutputExistsError: There is something else in `folder`.
        VerificationError: The result is not what training left.
        InferenceError: The result does not know what it was taught, or the base knew it already.
    """
    base, run, model = folder / "base", folder / "run", folder / "model"
    require_base_package()
    claim_folder(folder)
    _prepare_base(base, report)
    _train(base, run, steps, seed, report)
    _inspect(run, report)
    _compare_environment(run, report)
    _convert(run, model, base, report, progress)
    _verify(model, run, report, progress)
    answers = _ask(base, model, report)
    _tell_what_next(base, run, model, report)
    return Demonstration(base, run, model, answers)


def claim_folder(folder: Path) -> None:
    """Make `folder` the place of a demonstration, which it may be already.

    Raises:
        OutputExistsError: It holds something else.
    """
    note = folder / _NOTE
    ours = note.is_file() and note.read_text(encoding="utf-8", errors="replace") == _NOTE_TEXT
    if folder.exists() and not ours and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError(
            folder, "holds something else than a demonstration", hint="Name a new or an empty folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(_NOTE_TEXT, encoding="utf-8")


def _prepare_base(base: Path, report: Report) -> None:
    _head(report, "1/7  the base", f"{MODEL_NAME}, as a package of the index ships it")
    if base.exists():
        report(f"  {base} is there from an earlier time")
        return
    report("  turning its GGUF file into a model folder, half a minute ...")
    began = time.monotonic()
    write_base_model(base)
    report(f"  wrote {base} in {time.monotonic() - began:.0f} s")


def _train(base: Path, run: Path, steps: int, seed: int, report: Report) -> None:
    """Leave a checkpoint at `run`, in processes of its own."""
    invented = sum(fact.invented for fact in FACTS)
    _head(
        report,
        "2/7  training",
        f"torchrun {SCRIPT}, {WORLD_SIZE} FSDP processes, {steps} steps on {invented} invented facts"
        f" and {len(FACTS) - invented} true ones",
    )
    if run.exists():
        shutil.rmtree(run)
    # The names of llama-recipes' configuration; where it saves follows from them.
    options = {
        "model_name": base.name,
        "dist_checkpoint_root_folder": run.name,
        "max_train_step": steps,
        "seed": seed,
        "lr": _LEARNING_RATE,
    }
    done: list[float] = []

    def report_loss(loss: float) -> None:
        done.append(loss)
        report(f"  step {len(done)}/{steps}   loss {loss:.4f}")

    began = time.monotonic()
    train(base.parent, FACTS, options, report_loss=report_loss)
    report(f"  saved without a gather, after {time.monotonic() - began:.0f} s:")
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        report(f"    {path}")


def _compare_environment(run: Path, report: Report) -> None:
    _head(report, "4/7  env", _command("env", run))
    compared = compare_environment(run)
    alike = sum(line.verdict == "same" for line in compared.lines)
    report(f"  recorded by training, and the same here: {alike} of {len(compared.lines)} lines")
    for line in compared.lines:
        if line.code is not None:
            report(f"  {line.code} {line.verdict}  {line.aspect}: {line.training} there, {line.here} here")


def _inspect(run: Path, report: Report) -> None:
    _head(report, "3/7  inspect", _command("inspect", run))
    found = inspect(run)
    report(f"  {found.layout.title}")
    report(
        f"  {len(found.tensors)} tensors, {format_count(found.parameters)} parameters,"
        f" {', '.join(found.dtypes)}, {format_size(found.nbytes)}"
    )
    report(f"  not there, and needed to run it: {', '.join(found.missing) or 'nothing'}")


def _convert(run: Path, model: Path, base: Path, report: Report, progress: Progress) -> None:
    _head(report, "5/7  convert", _command("convert", run, model, "--base", base))
    conversion = convert(run, model, base=base, overwrite=True, download=False, progress=progress)
    report(f"  wrote {model}, {format_size(conversion.output_bytes)} in {conversion.seconds:.1f} s")


def _verify(model: Path, run: Path, report: Report, progress: Progress) -> None:
    _head(report, "6/7  verify", _command("verify", model, "--against", run))
    verification = verify(model, against=run, progress=progress)
    for level in verification.levels:
        report(f"  {level.name:<10} {level.verdict}")
        for evidence in level.evidence:
            report(f"  {'':<10}   {evidence}")
    if not verification.sound:
        raise VerificationError(
            model, "is not what training left", hint=_command("verify", model, "--against", run)
        )


def _ask(base: Path, model: Path, report: Report) -> tuple[Answered, ...]:
    """Return what both models answer.

    Raises:
        InferenceError: Not every answer is as it should be.
    """
    from unshard.demo.asking import ask_both

    _head(report, "7/7  ask both", "the same questions to the base and to the result")
    answers = []
    for answered in ask_both(base, model, FACTS):
        answers.append(answered)
        report(f"  {answered.fact.question}")
        report(f"    base    {answered.base}")
        report(f"    result  {answered.result}{'   <- learnt' if answered.fact.invented else ''}")
    _require_learnt(model, answers)
    return tuple(answers)


def _require_learnt(model: Path, answers: Sequence[Answered]) -> None:
    wrong = [answered for answered in answers if not answered.as_hoped]
    if wrong:
        raise InferenceError(
            model,
            f"does not answer as it was taught: {len(wrong)} of {len(answers)} questions,"
            f" {wrong[0].fact.question!r} among them",
            saw=f"{wrong[0].result!r}, and {wrong[0].base!r} from the base",
            expected=f"{wrong[0].fact.proof!r}" + (" only after training" if wrong[0].fact.invented else ""),
            hint="Train longer: `unshard demo --steps 16`.",
        )


def _tell_what_next(base: Path, run: Path, model: Path, report: Report) -> None:
    question = next(fact.question for fact in FACTS if fact.invented)
    _head(report, "what next", f"everything lies in {base.parent}")
    for words in (
        ("run", model, "--prompt", question),
        ("run", run, "--base", base, "--prompt", question),
        ("inspect", run),
        ("verify", model, "--against", run),
        ("env", model),
    ):
        report(f"  {_command(*words)}")


def _head(report: Report, title: str, text: str) -> None:
    report("")
    report(f"{title}: {text}")


def _command(*words: object) -> str:
    """Return a command line that a person can paste."""
    return shlex.join([_program(), *map(str, words)])


def _program() -> str:
    """Return how this package's command is typed here: by its path where it is not on PATH."""
    beside = Path(sys.executable).with_name("unshard")
    found = shutil.which("unshard")
    if not beside.exists() or (found is not None and Path(found).samefile(beside)):
        return "unshard"
    return str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside)
