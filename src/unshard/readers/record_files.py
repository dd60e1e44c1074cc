"""The record of a training that lies with what training left: in the folder of the tensors, or of the step.

unshard.record.json                  in the folder
<file>.unshard.record.json           beside a single file, whose record it alone is
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unshard.checkpoint import BaseHint, TrainingParameters
from unshard.errors import InputError
from unshard.findings import Finding, finding
from unshard.readers.folders import Folder
from unshard.record.description import RECORD_NAME, Record
from unshard.record.reading import read_record

_DEEPEST = 8


@dataclass(frozen=True, slots=True)
class FoundRecord:
    """A record and where it lies; or why the one that lies there cannot be read.

    Attributes:
        path: The file, or None where there is none.
        record: The record, or None.
        findings: What a person should know.
    """

    path: Path | None = None
    record: Record | None = None
    findings: tuple[Finding, ...] = ()


def record_name(place: Path, *, is_file: bool) -> str:
    """Return the name of the record of an output: inside a folder, or beside a single file."""
    return f"{place.name}.{RECORD_NAME}" if is_file else RECORD_NAME


def own_record(path: Path) -> Path:
    """Return where the record of a single file lies that is no other file's."""
    return path.with_name(record_name(path, is_file=True))


def find_record(path: Path, folders: Sequence[Folder]) -> FoundRecord:
    """Return the record of the checkpoint at `path`.

    Args:
        path: The file or folder of the tensors.
        folders: The folder of the tensors, and that of the step where it is another one.
    """
    own = record_name(path, is_file=True)
    if path != folders[0].path and own in folders[0].files:
        return read_found(folders[0].at(own))
    for folder in folders:
        if RECORD_NAME in folder.files:
            return read_found(folder.at(RECORD_NAME))
    return FoundRecord()


def read_found(path: Path) -> FoundRecord:
    """Return the record at `path`, or a finding that tells why it cannot be read."""
    try:
        record = read_record(path)
    except InputError as error:
        saw = error.problem + (f": {error.saw}" if error.saw else "")
        told = finding(
            "U724",
            subject=path.name,
            saw=saw,
            expected=error.expected,
            remedy=error.hint or "Fetch it again.",
        )
        return FoundRecord(findings=(told,))
    return FoundRecord(path if record else None, record)


def hints_of(found: FoundRecord) -> tuple[BaseHint, ...]:
    """Return where the base of the training is, as its record tells."""
    base = found.record.base if found.record else None
    if base is None or not base.reference:
        return ()
    return (BaseHint(base.reference, f"the record of training, {RECORD_NAME}", base.revision),)


def parameters_of(found: FoundRecord) -> TrainingParameters | None:
    """Return the training parameters that a record tells, by dotted key, or None where it tells none."""
    if found.path is None or found.record is None or found.record.training is None:
        return None
    training = found.record.training
    values: dict[str, str] = {}
    parts = list(training.values.values()) if training.kind == "several" else [training.values]
    for part in parts:
        for key, value in _flattened(part).items():
            values.setdefault(key, value)
    return TrainingParameters(found.path, values)


def _flattened(values: object) -> Mapping[str, str]:
    """Return what is no collection by dotted key, as text."""
    found: dict[str, str] = {}
    pending: list[tuple[str, object, int]] = [("", values, 0)]
    while pending:
        key, value, depth = pending.pop()
        if isinstance(value, Mapping) and depth < _DEEPEST:
            pending += [
                (f"{key}.{k}" if key else str(k), v, depth + 1) for k, v in reversed(list(value.items()))
            ]
        elif isinstance(value, str | int | float | bool):
            found[key] = str(value)
    return found
