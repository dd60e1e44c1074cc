"""Whether a record is that of some tensors, by names and shapes alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from unshard.findings import Finding, finding
from unshard.record.description import RECORD_NAME, Record

Shape = tuple[int, ...]


def repeats_another(name: str, record: Record, present: Collection[str]) -> bool:
    """Return whether a name of the record is one parameter with a name that is present."""
    ties = record.model.ties
    kept = ties.get(name, name)
    alike = {kept, *(repeated for repeated, other in ties.items() if other == kept)} if ties else {kept}
    return any(other in present for other in alike)


def find_disagreement(record: Record, shapes: Mapping[str, Shape]) -> str | None:
    """Return in words how tensors show that a record is not theirs, or None where nothing does.

    Tensors that the record does not have show nothing: a base may add some that training left alone.

    Args:
        record: The record.
        shapes: The shapes of the tensors by their published names.
    """
    told = record.tensors
    unlike = [name for name in told if name in shapes and told[name].shape != shapes[name]]
    if unlike:
        first = unlike[0]
        saw = f"`{first}` has shape {list(told[first].shape)} there and {list(shapes[first])} here"
        return saw + (f"; {len(unlike) - 1:,} more differ" if len(unlike) > 1 else "")
    missing = [name for name in told if name not in shapes and not repeats_another(name, record, shapes)]
    if missing:
        return f"{len(missing):,} of its {len(told):,} tensors are not here, `{missing[0]}` for one"
    return None


def check_record(record: Record, shapes: Mapping[str, Shape]) -> Iterator[Finding]:
    """Yield that a record is not that of tensors of these shapes, where that can be seen."""
    disagreement = find_disagreement(record, shapes)
    if disagreement is not None:
        yield finding(
            "U723",
            subject=RECORD_NAME,
            saw=disagreement,
            expected="the names and shapes of these tensors",
            remedy="Put the record of this training in its place, or remove it.",
        )
