"""The report of `unshard diff`."""

from __future__ import annotations

from collections.abc import Iterator

from unshard.comparison import Comparison, Side
from unshard.dtypes import DTYPES
from unshard.report.contents import Fact, Provenance, Report, ReportedTensor, Verdict
from unshard.report.numbers import percent, shape_text, share_of
from unshard.report.words import known_as, now, sentence, size_facts
from unshard.sizes import counted


def report_of_comparison(result: Comparison) -> Report:
    """Return what is different between two things; A is what B is compared with."""
    tensors = tuple(_tensors(result))
    old, new = known_as(str(result.old.path)), known_as(str(result.new.path))
    return Report(
        command="diff",
        subject=f"{old} and {new}",
        verdict=_verdict(result),
        created=now(),
        facts=size_facts(tensors),
        tensors=tensors,
        compared_with=f"A, {old}",
        unmatched=tuple(_unmatched(result)),
        provenance=Provenance(
            (
                Fact("A", _side(result.old, old, beside=result.new)),
                Fact("B", _side(result.new, new, beside=result.old)),
                *((Fact("Note", result.notes),) if result.notes else ()),
            )
        ),
    )


def _tensors(result: Comparison) -> Iterator[ReportedTensor]:
    for name, change in result.tensors.items():
        yield ReportedTensor(
            name=name,
            shape=change.shape,
            dtype=change.new_dtype,
            nbytes=change.statistics.count * DTYPES[change.new_dtype].itemsize,
            source_dtype=change.old_dtype,
            statistics=change.statistics,
            delta=change.delta,
        )


def _unmatched(result: Comparison) -> Iterator[Fact]:
    if result.removed:
        yield Fact("Only in A", result.removed)
    if result.added:
        yield Fact("Only in B", result.added)
    if result.reshaped:
        lines = (
            f"{name}: {shape_text(one.old_shape)} became {shape_text(one.new_shape)}"
            for name, one in result.reshaped.items()
        )
        yield Fact("Of another shape", tuple(lines))


def _side(side: Side, name: str, *, beside: Side) -> tuple[str, ...]:
    naming = f"names {side.naming}".replace(str(beside.path), known_as(str(beside.path)))
    return (name, f"{counted(side.tensors, 'tensor')}, {side.layout}", *((naming,) if side.naming else ()))


def _verdict(result: Comparison) -> Verdict:
    total = result.total
    told = [f"{total.changed_tensors:,} of {counted(total.tensors, 'tensor')} differ"]
    if total.changed_tensors:
        far = "from zero" if total.relative is None else f"by {percent(total.relative)} of A's norm"
        told.append(f"{share_of(total.changed, total.elements)} of their numbers, {far}")
    told += [
        f"{len(names.lines):,} {names.label[0].lower()}{names.label[1:]}" for names in _unmatched(result)
    ]
    if result.is_equal:
        return Verdict("good", "No difference", sentence("; ".join(told)))
    return Verdict("neutral", "Different", sentence("; ".join(told)))
