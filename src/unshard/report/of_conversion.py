"""The report of `unshard convert`."""

from __future__ import annotations

import math
from collections.abc import Iterator

from unshard.conversion import Conversion
from unshard.dtypes import DTYPES
from unshard.preparation import Preparation
from unshard.progress import Progress
from unshard.report.contents import Fact, Report, ReportedTensor, Verdict
from unshard.report.measuring import Measured, measured_for_report
from unshard.report.provenance import provenance_of
from unshard.report.software import software_of
from unshard.report.words import known_as, now, problems, sentence, size_facts


def report_of_conversion(
    ready: Preparation, done: Conversion, *, workers: int | None, progress: Progress
) -> Report:
    """Return what was written; its tensors are read once more, and those of the base beside them."""
    measured = measured_for_report(
        ready.model.tensors, ready.base, model=done.target, workers=workers, progress=progress
    )
    tensors = tuple(_tensors(done, measured))
    manifest = done.manifest
    return Report(
        command="convert",
        subject=done.target.name,
        verdict=_verdict(done),
        created=now(),
        facts=(
            *size_facts(tensors),
            Fact("Base", (known_as(ready.base.reference) if ready.base else "none",)),
        ),
        levels=done.proof,
        findings=done.findings,
        tensors=tensors,
        compared_with=measured.against,
        software=software_of(done.target, made_by=manifest.unshard),
        provenance=provenance_of(manifest),
    )


def _tensors(done: Conversion, measured: Measured) -> Iterator[ReportedTensor]:
    for name, tensor in done.manifest.tensors.items():
        found = measured.by_name.get(name)
        yield ReportedTensor(
            name=name,
            shape=tensor.shape,
            dtype=tensor.dtype,
            nbytes=math.prod(tensor.shape) * DTYPES[tensor.dtype].itemsize,
            file=tensor.file,
            sources=(tensor.source,) if isinstance(tensor.source, str) else tensor.source,
            source_dtype=tensor.source_dtype,
            sha256=tensor.sha256,
            statistics=found.statistics if found else None,
            delta=found.delta if found else None,
        )


def _verdict(done: Conversion) -> Verdict:
    """Return what the conversion comes to; one that differs from its source was not kept at all."""
    checked = [level.name for level in done.proof if level.verdict == "sound"]
    found = problems(done.findings)
    told = f"; {found} to look at" if found else ""
    if "bytes" not in checked:
        return Verdict("attention", "Written, not verified", sentence(f"nothing was read back{told}"))
    text = f"written, read back from the disk, and sound: {', '.join(checked)}{told}"
    return Verdict("attention" if found else "good", "Verified", sentence(text))
