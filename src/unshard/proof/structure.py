"""Proof by headers: names, shapes and dtypes of a model folder, its index, and its config.json.

Every check looks at one thing. Tensor bytes are read for one question only: whether an output head
that the configuration ties to the embedding is equal to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from unshard.base import ExpectedTensor
from unshard.base.configuration import TIE_FLAG, Config, lookup, read_config, tie_flag
from unshard.errors import BaseModelError, InputError
from unshard.findings import Finding, finding
from unshard.match.dtype_policy import main_dtype
from unshard.match.questions import EqualQuestion, answer_questions
from unshard.match.ties import find_ties
from unshard.match.vocabulary import vocabulary_size
from unshard.readers import open_checkpoint
from unshard.readers.weights.safetensors_file import describe_safetensors_file
from unshard.recipes.ties import has_row_per_token, is_output_head, shared_pairs
from unshard.storage.files import InputFile
from unshard.tensors import DescribedTensor

_INDEX = "model.safetensors.index.json"
_SHOWN = 3

Files = Mapping[str, Mapping[str, DescribedTensor]]


def verify_structure(
    folder: Path, *, expected: Mapping[str, ExpectedTensor] | None = None
) -> tuple[Finding, ...]:
    """Return what is wrong with the structure of a model folder; nothing where it is sound.

    Args:
        folder: A folder in Hugging Face's format, ours or anybody's.
        expected: What the model needs, from a manifest, the base's headers or the model class; a
            shape or dtype that is None is not compared. Without it, the folder is only compared with
            itself.

    Raises:
        InputError: There are no weights in the folder that can be read.
    """
    findings: list[Finding] = []
    files = _read_headers(folder, findings)
    findings += _check_index(folder, files)
    tensors = {name: tensor for held in files.values() for name, tensor in held.items()}
    try:
        config = read_config(folder / "config.json")[1] if (folder / "config.json").exists() else None
    except BaseModelError as error:
        findings.append(_wrong("config.json", error.message, "a configuration"))
        config = None
    if expected is not None:
        findings += _check_expected(tensors, expected, config)
    if config is not None:
        findings += [*_check_vocabulary(tensors, config), *_check_dtype(tensors, config)]
        findings += _check_ties(tensors, config)
    return tuple(findings)


def _wrong(subject: str, saw: str, expected: str, remedy: str | None = None) -> Finding:
    return finding("U704", subject=subject, saw=saw, expected=expected, remedy=remedy)


def _read_headers(folder: Path, findings: list[Finding]) -> Files:
    """Return the tensors of every file of weights; a damaged one becomes a finding."""
    paths = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter_"))
    if not paths:
        return {"": open_checkpoint(folder, step=None, select=None).tensors}
    files: dict[str, Mapping[str, DescribedTensor]] = {}
    for path in paths:
        try:
            files[path.name] = describe_safetensors_file(InputFile.describe(path))
        except InputError as error:
            findings.append(_wrong(path.name, error.message, "a safetensors file", error.hint))
    return files


def _check_index(folder: Path, files: Files) -> Iterator[Finding]:
    """Yield where the index and the files disagree, and tensors that lie in two files."""
    seen: dict[str, str] = {}
    for file, held in files.items():
        for name in held:
            if name in seen:
                yield _wrong(name, f"in {seen[name]} and in {file}", "one file")
            seen[name] = file
    if not (folder / _INDEX).exists():
        if len(files) > 1:
            yield _wrong(_INDEX, f"missing, beside {len(files)} files of weights", "an index")
        return
    try:
        listed = {str(k): str(v) for k, v in json.loads((folder / _INDEX).read_bytes())["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield _wrong(_INDEX, f"{type(error).__name__}: {error}", "an index with a weight_map")
        return
    absent = sorted({file for file in listed.values() if not (folder / file).is_file()})
    if absent:
        yield _wrong(_INDEX, f"it names {_some(absent)}, missing here", "every file it names")
    misplaced = [name for name, file in listed.items() if file not in absent and seen.get(name) != file]
    if misplaced:
        yield _wrong(_INDEX, f"{_some(misplaced)} not in the file it says", "every tensor where it says")
    unlisted = [name for name in seen if name not in listed]
    if unlisted:
        yield _wrong(_INDEX, f"{_some(unlisted)} not listed", f"all {len(seen)} tensors of the files")


def _some(names: Sequence[str]) -> str:
    """Return the first names and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"`{name}`" for name in names[:_SHOWN]) + more


def _check_expected(
    tensors: Mapping[str, DescribedTensor], expected: Mapping[str, ExpectedTensor], config: Config | None
) -> Iterator[Finding]:
    """Yield missing, unexpected, mis-shaped and mis-typed tensors, all of a kind in one finding."""
    partners: dict[str, set[str]] = {}
    for kept, repeated in shared_pairs({*tensors, *expected}):
        partners.setdefault(kept, set()).add(repeated)
        partners.setdefault(repeated, set()).add(kept)
    tied = config is not None and tie_flag(config) is not False
    missing = [
        name
        for name in expected
        if name not in tensors and not (tied and partners.get(name, set()) & tensors.keys())
    ]
    unexpected = [n for n in tensors if n not in expected and not partners.get(n, set()) & expected.keys()]
    if missing:
        yield _wrong(
            _some(missing), f"{len(missing)} of {len(expected)} tensors missing", "every one of them"
        )
    if unexpected:
        yield _wrong(_some(unexpected), f"{len(unexpected)} tensors that the model does not have", "none")
    for name, wanted in expected.items():
        tensor = tensors.get(name)
        if tensor is not None and wanted.shape not in (None, tensor.shape):
            yield _wrong(name, f"shape {tensor.shape}", f"shape {wanted.shape}")
        if tensor is not None and wanted.dtype not in (None, tensor.dtype):
            yield _wrong(name, f"dtype {tensor.dtype}", f"dtype {wanted.dtype}")


def _check_vocabulary(tensors: Mapping[str, DescribedTensor], config: Config) -> Iterator[Finding]:
    """Yield where no embedding or output head has as many rows as the configuration says."""
    rows = {
        name: tensor.shape[0]
        for name, tensor in tensors.items()
        if has_row_per_token(name) and len(tensor.shape) == 2
    }
    declared = vocabulary_size(config)
    if rows and declared is not None and declared not in rows.values():
        name, count = next(iter(rows.items()))
        remedy = f"Set vocab_size to {count} in config.json."
        yield _wrong("vocab_size", f"{declared}, and `{name}` has {count} rows", "the number of rows", remedy)


def _check_dtype(tensors: Mapping[str, DescribedTensor], config: Config) -> Iterator[Finding]:
    """Yield where the configuration names another dtype than most of the tensors have."""
    named, actual = str(lookup(config, "dtype")).removeprefix("torch."), main_dtype(tensors)
    if named not in ("None", "auto") and actual is not None and named != actual.name:
        yield finding(
            "U707",
            subject="config.json",
            saw=f"{named}, and most of the tensors are {actual}",
            expected=actual.name,
        )


def _check_ties(tensors: Mapping[str, DescribedTensor], config: Config) -> Iterator[Finding]:
    """Yield where the tie flag would make an engine overwrite a head, or make one up."""
    ties = find_ties({name: tensor.shape for name, tensor in tensors.items()}, None, config)
    for name in ties.missing:
        remedy = f"If the weights are tied, set {TIE_FLAG} to true in config.json."
        yield _wrong(name, f"missing, and {TIE_FLAG} is false", "an output head of its own", remedy)
    for group in ties.groups:
        first, *others = group.present
        for name in others:
            question = EqualQuestion((first, name), (tensors[first], tensors[name]))
            answer = answer_questions([question])[first, name]
            if is_output_head(name) and not answer.holds:
                saw = f"{TIE_FLAG} is true, and it is not `{first}`: {answer.evidence}"
                yield _wrong(name, saw, "equal tensors, or false", f"Set {TIE_FLAG} to false in config.json.")
