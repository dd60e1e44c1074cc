"""Proof by headers: names, shapes and dtypes of a model folder, its index, and its config.json.

What a folder says of itself is judged by the checks that `unshard check` runs; here are those that make a
folder wrong whoever reads it, and what it is held against. Tensor bytes are read for one question only:
whether an output head that the configuration ties to the embedding is equal to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from unshard.base import ExpectedTensor
from unshard.base.configuration import Config, tie_flag
from unshard.checks import configuration, tied_weights, weight_files
from unshard.checks.evidence import Evidence
from unshard.checks.words import named
from unshard.findings import Finding, Severity, finding
from unshard.model_folder import ModelFolder, read_model_folder
from unshard.readers import open_checkpoint
from unshard.recipes.ties import shared_pairs
from unshard.tensors import DescribedTensor

_CHECKS = (*weight_files.CHECKS, *configuration.CHECKS, *tied_weights.CHECKS)
# Of warnings, those that make most engines compute in another precision than the tensors have.
_PROVEN_WARNINGS = frozenset(("U430",))


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
    read = read_model_folder(folder)
    tensors, config = _tensors(read), read.json("config.json")
    evidence = Evidence(folder, folder=read, tensors=tensors, config=config, is_deep=True)
    findings = [item for check in _CHECKS for item in check.find(evidence) if _is_proven(item, read)]
    if expected is not None:
        findings += _check_expected(tensors, expected, config)
    return tuple(findings)


def _tensors(folder: ModelFolder) -> Mapping[str, DescribedTensor]:
    """Return the tensors of a folder; what raises where there are no weights is opening them."""
    if folder.weights or folder.unreadable:
        return folder.tensors
    return open_checkpoint(folder.path, step=None, select=None).tensors


def _is_proven(item: Finding, folder: ModelFolder) -> bool:
    """Return whether a finding makes the folder wrong; a folder of weights alone needs no configuration."""
    if item.subject == "config.json" and "config.json" not in folder.names:
        return False
    return item.severity is Severity.ERROR or item.code in _PROVEN_WARNINGS


def _wrong(subject: str, saw: str, expected: str) -> Finding:
    return finding("U704", subject=subject, saw=saw, expected=expected)


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
            named(missing), f"{len(missing)} of {len(expected)} tensors missing", "every one of them"
        )
    if unexpected:
        yield _wrong(named(unexpected), f"{len(unexpected)} tensors that the model does not have", "none")
    for name, wanted in expected.items():
        tensor = tensors.get(name)
        if tensor is not None and wanted.shape not in (None, tensor.shape):
            yield _wrong(name, f"shape {tensor.shape}", f"shape {wanted.shape}")
        if tensor is not None and wanted.dtype not in (None, tensor.dtype):
            yield _wrong(name, f"dtype {tensor.dtype}", f"dtype {wanted.dtype}")
