"""The doctor: whether a run can become a correct model, or a model folder is one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from unshard.base.side_files import is_side_file
from unshard.checks.table import CHECKS, run_checks
from unshard.diagnosis.description import Diagnosis, JudgedTensor
from unshard.diagnosis.examining import examine_model, examine_run, measured
from unshard.diagnosis.running import JudgedSteps, judge_steps
from unshard.engines.workers import default_workers
from unshard.errors import UnknownLayoutError
from unshard.findings import Finding
from unshard.match import Choices
from unshard.model_folder import ModelFolder, read_model_folder
from unshard.model_folder.listing import list_model_folder
from unshard.model_folder.weight_files import choose_weights
from unshard.progress import Progress, Silence
from unshard.readers import Places, as_paths
from unshard.sizes import counted, format_size
from unshard.tensors import CastTensor, Tensor, byte_count

# The names under which transformers looks for weights.
_WEIGHTS = re.compile(r"(pytorch_)?model(-\d+-of-\d+)?\.(bin|safetensors)(\.index\.json)?")

# What commands in remedies call the things that a person gave.
_PLACEHOLDER = re.compile(r"(?<=[ \"'`])(FOLDER|RUN|BASE)(?![\w./-])")


def check(
    path: Places,
    *,
    base: str | Path | None = None,
    step: int | None = None,
    select: str | None = None,
    lora_alpha: float | None = None,
    deep: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Return everything that is wrong with the run or the model folder at `path`, and what it will lack.

    Of a run, every expected rank, file, chunk and range of bytes is held against what is there, and names
    and shapes against the base. Of a model folder, every file is held against the others.

    Args:
        path: A run folder, a checkpoint folder, a file, or a model folder of Hugging Face's kind, broken or
            not; or the folders of several nodes, whose ranks wrote one checkpoint together.
        base: The model training started from. Without it, that of a run is looked for on this machine; a
            model folder is then compared with itself alone.
        step: Which of several steps to check; the newest without it. The others get a verdict.
        select: The container or prefix of the model, where a file holds several.
        lora_alpha: The numerator of an adapter's scale, where no file tells it.
        deep: Whether to read the bytes of tensors: once, and those of the base beside them. Otherwise only
            headers and small files are read.
        workers: Threads; by default one per core, at most four.
        progress: Told how far reading is.

    Memory:
        Metadata; with `deep` a few MiB for every worker.

    Raises:
        InputError: Nothing that can be checked lies there.
        BaseModelError: The base that was named is missing or unreadable.
    """
    paths, reference = as_paths(path), None if base is None else str(base)
    choices = Choices(lora_alpha=lora_alpha)
    folder = _model_folder(paths) if step is None and select is None else None
    if folder is None:
        try:
            judged = judge_steps(paths, reference=reference, step=step, select=select)
        except UnknownLayoutError:
            folder = _bare_model_folder(paths)
            if folder is None:
                raise
    if folder is None:
        examined = examine_run(judged.taken, reference, asked=judged.path, deep=deep, choices=choices)
    else:
        judged = JudgedSteps(folder.path, _in_words(folder), (), None, ())
        examined = examine_model(folder, reference, deep=deep, choices=choices)
    read = measured(examined.evidence, workers=workers or default_workers(), progress=progress or Silence())
    evidence = read.evidence
    return Diagnosis(
        path=evidence.path,
        kind="run" if folder is None else "model",
        layout=judged.layout,
        steps=judged.steps,
        taken=None if judged.taken is None else judged.taken.path,
        base=examined.base_reference,
        findings=_once(
            _addressed(found, paths, examined.base_reference)
            for found in (*judged.findings, *examined.findings, *read.findings, *run_checks(evidence))
        ),
        checks=len(CHECKS),
        is_deep=deep,
        sound_bytes=read.sound_bytes,
        tensors={name: _judged(tensor) for name, tensor in evidence.tensors.items()},
        measured=evidence.measured,
    )


def _model_folder(paths: list[Path]) -> ModelFolder | None:
    """Return the model folder that was given, or None where weights do not lie at the top of one.

    Weights alone are a checkpoint that a base completes; a model has a configuration, or lacks it beside
    other files that belong to a model.
    """
    if len(paths) != 1 or not paths[0].is_dir():
        return None
    names = list_model_folder(paths[0]).names
    configured = "config.json" in names
    if any(map(_WEIGHTS.fullmatch, names)):
        is_model = configured or any(map(is_side_file, names))
    else:
        is_model = configured and any(name.endswith(".safetensors") for name in choose_weights(names)[0])
    return read_model_folder(paths[0]) if is_model else None


def _bare_model_folder(paths: list[Path]) -> ModelFolder | None:
    """Return the folder of a model whose weights are missing, or None where it is not one."""
    if len(paths) != 1 or not (paths[0] / "config.json").is_file():
        return None
    return read_model_folder(paths[0])


def _in_words(folder: ModelFolder) -> str:
    size = format_size(sum(file.size for file in folder.weights))
    files, tensors = counted(len(folder.weights), "file"), counted(len(folder.tensors), "tensor")
    return f"Hugging Face folder: {tensors} in {files} of weights ({size})"


def _judged(tensor: Tensor) -> JudgedTensor:
    stored = tensor.source if isinstance(tensor, CastTensor) else tensor
    return JudgedTensor(stored.shape, stored.dtype.name, byte_count(stored), stored.origin)


def _addressed(found: Finding, paths: list[Path], base: str | None) -> Finding:
    """Return a finding whose remedy names what was given, so that its commands can be pasted."""
    if found.remedy is None:
        return found
    places = " ".join(shlex.quote(str(path)) for path in paths)
    words = {"FOLDER": places, "RUN": places, **({"BASE": shlex.quote(base)} if base else {})}
    return replace(found, remedy=_PLACEHOLDER.sub(lambda word: words.get(word[0], word[0]), found.remedy))


def _once(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return findings without repetitions: what a reader tells, matching may tell again."""
    return tuple(dict.fromkeys(findings))
