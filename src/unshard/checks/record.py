"""The record of training that lies with a checkpoint or a model: whether it is that of its tensors."""

from __future__ import annotations

from collections.abc import Iterator

from unshard.checks.evidence import Check, Evidence
from unshard.findings import Finding
from unshard.match.adapter_parts import LAYOUT as ADAPTER_LAYOUT
from unshard.record.comparing import check_record


def _check_record(evidence: Evidence) -> Iterator[Finding]:
    """Yield that names or shapes are not those of the record.

    A run says so only where its tensors have the names that the model has.
    """
    checkpoint = evidence.checkpoint
    if checkpoint is None or checkpoint.record is None or checkpoint.layout.name == ADAPTER_LAYOUT:
        return
    if evidence.folder is not None or (evidence.base is not None and evidence.outline is not None):
        yield from check_record(checkpoint.record, evidence.shapes)


CHECKS = (Check("record.of_another", ("U723",), _check_record),)
