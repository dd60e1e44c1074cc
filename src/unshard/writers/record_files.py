"""The record of the training, carried from a checkpoint into the model that is made of it, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from unshard.base.side_files import outside_links
from unshard.checkpoint import Checkpoint
from unshard.findings import Finding, finding
from unshard.match.model import Model
from unshard.plan import SideFile
from unshard.record.comparing import check_record
from unshard.record.description import RECORD_NAME, Record
from unshard.tensors import CastTensor
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
    misfits = (*check_record(checkpoint.record, shapes), *_check_widening(checkpoint.record, model))
    if not misfits:
        return checkpoint, ()
    return replace(checkpoint, record=None, record_path=None), misfits if is_whole else ()


def _check_widening(record: Record, model: Model) -> Iterator[Finding]:
    """Yield that tensors were rounded before, and get a dtype back in which training held other numbers."""
    wider = [
        name
        for name, tensor in model.tensors.items()
        if isinstance(tensor, CastTensor)
        and tensor.source.dtype.itemsize < tensor.dtype.itemsize
        and name in record.tensors
        and tensor.dtype.name in record.tensors[name].digests
    ]
    if wider:
        yield finding(
            "U726",
            subject=wider[0],
            saw=f"{len(wider)} tensors that were rounded before, and are widened here",
            expected="the numbers that training held, which the record has digests of",
            remedy="Convert the checkpoint of the training itself; this result has no record.",
        )


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
