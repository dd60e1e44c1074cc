"""The record of the training, carried from a checkpoint into the model that is made of it, byte for byte."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unshard.base.side_files import outside_links
from unshard.checkpoint import Checkpoint
from unshard.findings import Finding
from unshard.match.model import Model
from unshard.plan import SideFile
from unshard.record.comparing import check_record
from unshard.record.description import RECORD_NAME
from unshard.writers.torch_file import is_torch_file_name

_ORIGIN = "the record of training, unchanged"
_CONFIG_ORIGIN = "the training configuration, unchanged"


def with_fitting_record(
    checkpoint: Checkpoint, model: Model, *, is_whole: bool
) -> tuple[Checkpoint, tuple[Finding, ...]]:
    """Return the checkpoint without a record that is not that of its tensors, and what a person should know.

    Args:
        checkpoint: The checkpoint.
        model: The tensors of the result.
        is_whole: Whether these are a whole model under its published names; where others do not fit, that is
            nothing to tell.
    """
    if checkpoint.record is None:
        return checkpoint, ()
    shapes = {name: tensor.shape for name, tensor in model.tensors.items()}
    misfits = tuple(check_record(checkpoint.record, shapes))
    if not misfits:
        return checkpoint, ()
    return replace(checkpoint, record=None, record_path=None), misfits if is_whole else ()


def plan_record_files(checkpoint: Checkpoint, target: Path) -> tuple[SideFile, ...]:
    """Return the record and the training configuration beside it as files of a model folder.

    A single file has no place for them.
    """
    record, path = checkpoint.record, checkpoint.record_path
    if record is None or path is None or is_torch_file_name(target):
        return ()
    names = record.training.files if record.training else ()
    beside = {name: place for name in names if (place := path.with_name(name)).is_file()}
    unsafe = outside_links(beside)
    return (
        SideFile(RECORD_NAME, None, path, _ORIGIN),
        *(
            SideFile(name, None, place, _CONFIG_ORIGIN)
            for name, place in beside.items()
            if name not in unsafe
        ),
    )
