"""What the checks look at, gathered: of a run as it would be converted, of a model folder as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from unshard.base import Base, find_base
from unshard.base.weights import describe_base_weights
from unshard.checkpoint import Checkpoint, Layout
from unshard.checks.evidence import Evidence
from unshard.checks.inference_files import check_inference_files
from unshard.errors import InputError, UnshardError
from unshard.findings import Finding, finding
from unshard.match import (
    Answer,
    Answers,
    Choices,
    Outline,
    answer_questions,
    match_model,
    outline_of,
    questions_for,
)
from unshard.model_folder import ModelFolder
from unshard.progress import Progress
from unshard.proof.bytes import verify_bytes
from unshard.proof.coverage import used_checksums
from unshard.readers.record_files import FoundRecord, read_found
from unshard.record.description import RECORD_NAME
from unshard.tensors import DescribedTensor, Tensor

# What these tell comes of reading tensors.
_READ = frozenset(("U202", "U203", "U212", "U301", "U302"))


@dataclass(frozen=True, slots=True)
class Examined:
    """What checks will look at, and what was seen on the way there.

    Attributes:
        evidence: Without measurements.
        base_reference: The base, as it was named or found.
        findings: What a person should know.
    """

    evidence: Evidence
    base_reference: str | None
    findings: tuple[Finding, ...]


def examine_model(
    folder: ModelFolder, reference: str | None, *, deep: bool, choices: Choices | None = None
) -> Examined:
    """Return what checks look at of a model folder, held against a base where one was named.

    Raises:
        BaseModelError: The base that was named is missing or unreadable.
    """
    layout = Layout("hugging-face", "Hugging Face folder", None, ())
    small = {name: folder.path / name for name in folder.json_files}  # what tells an adapter's scale
    record = read_found(folder.path / RECORD_NAME) if RECORD_NAME in folder.names else FoundRecord()
    checkpoint = Checkpoint(
        folder.path,
        folder.path,
        layout,
        folder.tensors,
        side_files=small,
        record=record.record,
        record_path=record.path,
    )
    base, told = (
        (None, ())
        if reference is None
        else find_base(checkpoint, reference=reference, download=False, model_class=deep)
    )
    outline, more = _outline(checkpoint, base, choices)
    base_tensors = {} if base is None else describe_base_weights(base)
    evidence = Evidence(
        path=folder.path,
        folder=folder,
        checkpoint=checkpoint,
        outline=outline if base is not None else None,
        tensors=folder.tensors if outline is None or base is None else _by_model_name(outline),
        config=folder.json("config.json"),
        base=base,
        base_tensors=base_tensors,
        is_deep=deep,
        read_model_class=deep and not base_tensors,  # the base's own headers tell as much, at once
    )
    return Examined(evidence, None if base is None else base.reference, (*record.findings, *told, *more))


def examine_run(
    checkpoint: Checkpoint | None,
    reference: str | None,
    *,
    asked: Path,
    deep: bool,
    choices: Choices | None = None,
) -> Examined:
    """Return what checks look at of a step of a run, named and cast as a conversion would have it.

    Args:
        checkpoint: The step that a conversion takes, or None where none is whole.
        reference: The base that was named, or None to look for it.
        asked: The path of the step that was asked for.
        deep: Whether tensors may be read to answer what only they tell.
        choices: What a person decides of the conversion.

    Raises:
        BaseModelError: The base that was named is missing or unreadable.
    """
    if checkpoint is None:
        return Examined(Evidence(asked, is_deep=deep), reference, ())
    base, told = find_base(checkpoint, reference=reference, download=False, model_class=deep)
    names = {"config.json", *base.side_files, *base.embedded} if base else set(checkpoint.side_files)
    lacking = check_inference_files(names, has_base=base is not None)
    outline, more = _outline(checkpoint, base, choices)
    tensors: Mapping[str, Tensor] = checkpoint.tensors
    if outline is not None:
        tensors, fit = _as_converted(outline, deep=deep)
        more = (*more, *fit)
    evidence = Evidence(
        path=asked,
        checkpoint=checkpoint,
        outline=outline,
        tensors=tensors,
        config=None if base is None else base.config,
        base=base,
        base_tensors={} if base is None else _own_weights(base, checkpoint),
        is_deep=deep,
    )
    return Examined(evidence, None if base is None else base.reference, (*told, *lacking, *more))


@dataclass(frozen=True, slots=True)
class Measured:
    """What reading the tensors told.

    Attributes:
        evidence: With measurements, as far as everything could be read.
        sound_bytes: Bytes that agree with the checksums their writer left.
        findings: Why something could not be read, or disagrees.
    """

    evidence: Evidence
    sound_bytes: int = 0
    findings: tuple[Finding, ...] = ()


def measured(evidence: Evidence, *, workers: int, progress: Progress) -> Measured:
    """Return the evidence with everything measured, where tensor bytes were asked for."""
    if not evidence.is_deep or not evidence.tensors:
        return Measured(evidence)
    from unshard.measures.passes import measure

    try:
        sound_bytes = _verify_checksums(evidence, workers=workers, progress=progress)
        found = measure(evidence.tensors, against=evidence.base_tensors, workers=workers, progress=progress)
    except InputError as error:
        return Measured(evidence, findings=(_unreadable(error),))
    return Measured(replace(evidence, measured=found), sound_bytes)


def _verify_checksums(evidence: Evidence, *, workers: int, progress: Progress) -> int:
    """Return how many bytes agree with the checksums that their writer left.

    Raises:
        DamagedFileError: Some disagree, or a file is shorter than it should be.
    """
    if evidence.checkpoint is None:
        return 0
    checksums = used_checksums(evidence.checkpoint.checksums, evidence.checkpoint.tensors.values())
    proof = verify_bytes({}, {}, checksums=checksums, workers=workers, digests=False, progress=progress)
    return proof.checked_bytes


def _outline(
    checkpoint: Checkpoint, base: Base | None, choices: Choices | None
) -> tuple[Outline | None, tuple[Finding, ...]]:
    """Return names, ties and shapes held against the base, or why that cannot be."""
    try:
        return outline_of(checkpoint, base, choices), ()
    except UnshardError as error:
        return None, (_misfit(error),)


def _by_model_name(outline: Outline) -> dict[str, DescribedTensor]:
    return {target: outline.tensors[source] for target, source in outline.sources.items()}


def _as_converted(outline: Outline, *, deep: bool) -> tuple[Mapping[str, Tensor], tuple[Finding, ...]]:
    """Return the tensors of the result, or as they are where they do not make a model, and why."""
    questions = questions_for(outline)
    try:
        if deep:
            model = match_model(outline, dtype="base", answers=answer_questions(questions))
            return model.tensors, model.findings
        unread: Answers = {question.names: Answer(holds=True, evidence="not read") for question in questions}
        model = match_model(outline, dtype="base", answers=unread)
        return model.tensors, tuple(item for item in model.findings if item.code not in _READ)
    except InputError as error:
        return _by_model_name(outline), (_unreadable(error),)
    except UnshardError as error:
        return _by_model_name(outline), (_misfit(error),)


def _own_weights(base: Base, checkpoint: Checkpoint) -> Mapping[str, DescribedTensor]:
    """Return the weights of a base that is not the checkpoint itself."""
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    return {} if base.path == folder else describe_base_weights(base)


def _misfit(error: UnshardError) -> Finding:
    saw = error.problem + (f": {error.saw}" if error.saw else "")
    code = error.code or "U290"
    return finding(code, subject=error.subject, saw=saw, expected=error.expected, remedy=error.hint)


def _unreadable(error: InputError) -> Finding:
    saw = error.problem + (f": saw {error.saw}" if error.saw else "")
    return finding("U119", subject=error.subject, saw=saw, expected=error.expected, remedy=error.hint)
