"""The report of `unshard check`."""

from __future__ import annotations

from collections.abc import Iterator

from unshard.diagnosis import Diagnosis
from unshard.findings import Severity
from unshard.report.contents import Fact, Provenance, Report, ReportedTensor, Verdict
from unshard.report.software import software_of
from unshard.report.words import known_as, now, problems, sentence, size_facts
from unshard.sizes import counted


def report_of_diagnosis(result: Diagnosis) -> Report:
    """Return what checking found; with numbers of tensors where it read them."""
    tensors = tuple(_tensors(result))
    base = None if result.base is None else known_as(result.base)
    return Report(
        command="check",
        subject=result.path.name,
        verdict=_verdict(result),
        created=now(),
        facts=(*size_facts(tensors), Fact("Base", (base or "none",))),
        findings=result.findings,
        tensors=tensors,
        compared_with=base,
        software=software_of(result.path) if result.kind == "model" else (),
        provenance=Provenance(
            (
                Fact("Layout", (result.layout,)),
                *(Fact(_step(one.step.number), (f"{one.verdict}: {one.evidence}",)) for one in result.steps),
            )
        ),
    )


def _tensors(result: Diagnosis) -> Iterator[ReportedTensor]:
    for name, tensor in result.tensors.items():
        measured = result.measured.get(name)
        yield ReportedTensor(
            name=name,
            shape=tensor.shape,
            dtype=tensor.dtype,
            nbytes=tensor.nbytes,
            file=tensor.origin,
            statistics=measured.statistics if measured else None,
            delta=measured.delta if measured else None,
        )


def _verdict(result: Diagnosis) -> Verdict:
    looked = f"{counted(result.checks, 'check')} looked at " + (
        "every tensor" if result.is_deep else "headers and small files"
    )
    found = problems(result.findings)
    if not found:
        return Verdict("good", "Nothing wrong", sentence(f"{looked} and found nothing wrong"))
    if result.count(Severity.ERROR):
        broken = "Not a working model" if result.kind == "model" else "Cannot become a model"
        return Verdict("bad", broken, sentence(f"{looked} and found {found}"))
    return Verdict("attention", "Needs a look", sentence(f"{looked} and found {found}"))


def _step(number: int | None) -> str:
    return "Verdict" if number is None else f"Step {number}"
