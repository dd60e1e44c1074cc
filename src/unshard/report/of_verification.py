"""The report of `unshard verify`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from unshard.base import find_base
from unshard.manifest import Manifest, ManifestTensor, manifest_name, read_manifest
from unshard.progress import Progress
from unshard.readers import open_checkpoint
from unshard.report.contents import Fact, Provenance, Report, ReportedTensor, Verdict
from unshard.report.measuring import Measured, measured_for_report
from unshard.report.provenance import provenance_of
from unshard.report.software import software_of
from unshard.report.words import known_as, now, problems, sentence, size_facts
from unshard.tensors import DescribedTensor, byte_count
from unshard.verification import Verification


def report_of_verification(
    result: Verification, *, base: str | None, workers: int | None, progress: Progress
) -> Report:
    """Return what verification found; tensors are read once more, and those of the base beside them.

    Args:
        result: What was found of a model that could be opened.
        base: The base that was named, or None.
        workers: Threads; by default one per core, at most four.
        progress: Told how far reading is.
    """
    written = open_checkpoint(result.path, step=None, select=None)
    folder = written.path if written.path.is_dir() else written.path.parent
    manifest = read_manifest(folder / manifest_name(written.path))
    found = None if base is None else find_base(written, reference=base, download=False, model_class=False)[0]
    measured = measured_for_report(
        written.tensors, found, model=written.path, workers=workers, progress=progress
    )
    tensors = tuple(_tensors(written.tensors, manifest, measured))
    return Report(
        command="verify",
        subject=result.path.absolute().name,
        verdict=_verdict(result),
        created=now(),
        facts=(*size_facts(tensors), *_base_fact(manifest, base)),
        levels=result.levels,
        findings=result.findings,
        tensors=tensors,
        compared_with=measured.against,
        software=software_of(folder, made_by=str(manifest.unshard) if manifest else None),
        provenance=Provenance() if manifest is None else provenance_of(manifest),
    )


def _tensors(
    written: Mapping[str, DescribedTensor], manifest: Manifest | None, measured: Measured
) -> Iterator[ReportedTensor]:
    for name, tensor in written.items():
        told = manifest.tensors.get(name) if manifest else None
        found = measured.by_name.get(name)
        yield ReportedTensor(
            name=name,
            shape=tensor.shape,
            dtype=tensor.dtype.name,
            nbytes=byte_count(tensor),
            file=next((place.file.path.name for place in tensor.places), None),
            sources=_sources(told),
            source_dtype=str(told.source_dtype) if told else None,
            sha256=str(told.sha256) if told and told.sha256 else None,
            statistics=found.statistics if found else None,
            delta=found.delta if found else None,
        )


def _sources(told: ManifestTensor | None) -> tuple[str, ...]:
    if told is None:
        return ()
    return (told.source,) if isinstance(told.source, str) else tuple(map(str, told.source))


def _base_fact(manifest: Manifest | None, base: str | None) -> tuple[Fact, ...]:
    if base is not None:
        return (Fact("Base", (known_as(base),)),)
    known = manifest.base.get("name") if manifest and isinstance(manifest.base, Mapping) else None
    return (Fact("Base", (str(known),)),) if known else ()


def _verdict(result: Verification) -> Verdict:
    by_verdict = {
        verdict: ", ".join(level.name for level in result.levels if level.verdict == verdict)
        for verdict in ("sound", "differs", "not checked")
    }
    parts = [f"{names} {verdict}" for verdict, names in by_verdict.items() if names]
    found = problems(result.findings)
    text = sentence("; ".join(parts) + (f". {found} to look at" if found else ""))
    if not result.sound:
        return Verdict("bad", "Differs", text)
    return Verdict("attention" if found else "good", "Verified", text)
