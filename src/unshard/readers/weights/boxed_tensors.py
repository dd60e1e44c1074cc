"""Tensors in boxes whose files do not say how large the whole tensors are.

What the boxes reach to is the least that a shape can be. Up to there they are checked when they are
opened; the base then says whether that was all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unshard.checkpoint import KnownShapes, Replica, Shaped
from unshard.dtypes import DType
from unshard.errors import BaseModelError, IncompleteCheckpointError, UnsafeFileError
from unshard.findings import Finding, finding
from unshard.readers.rendering import cut, listed
from unshard.tensors import Box, DescribedTensor, FileSource, Piece
from unshard.tensors.coverage import Coverage, check_coverage, described_box

Shape = tuple[int, ...]

_MISSING = "Copy the files that are missing into the folder; every rank wrote some, maybe to its own node."
_MOST_LISTED = 8


@dataclass(frozen=True, slots=True)
class Absent:
    """Names of files that are not there, and may be missing: a rank that holds nothing writes none.

    Attributes:
        between: Those of ranks of which other files are there, or of ranks before the last.
        after: Those of the rank after the last.
    """

    between: tuple[str, ...]
    after: tuple[str, ...]

    @property
    def likely(self) -> tuple[str, ...]:
        """What to look for first."""
        return self.between or self.after


@dataclass(frozen=True, slots=True)
class BoxedTensors:
    """Tensors whose shapes only the base tells.

    Attributes:
        subject: The folder they are in.
        found: Them, as large as their boxes reach; the boxes cover that exactly once.
        replicas: Boxes that lie in a second file.
        absent: Files that may be missing.
    """

    subject: Path
    found: Mapping[str, DescribedTensor]
    replicas: Sequence[Replica]
    absent: Absent

    def selected(self, before: str) -> BoxedTensors:
        """Return those whose names begin with `before`, without it."""
        found = {n[len(before) :]: t for n, t in self.found.items() if n.startswith(before)}
        replicas = [
            Replica(r.name[len(before) :], r.box, r.kept, r.other)
            for r in self.replicas
            if r.name.startswith(before)
        ]
        return BoxedTensors(self.subject, found, replicas, self.absent)

    def shaped(self, known: KnownShapes) -> Shaped:
        """Return the tensors in the shapes of the base; those it does not know as large as they reach.

        Raises:
            IncompleteCheckpointError: Boxes of them are missing.
            BaseModelError: They reach beyond the base's shapes, or have other dimensions.
        """
        shapes = known.named({name: tensor.shape for name, tensor in self.found.items()})
        unlike = {name: shape for name, shape in shapes.items() if shape != self.found[name].shape}
        if misfits := {n: shape for n, shape in unlike.items() if not _may_be(self.found[n].shape, shape)}:
            raise self._misfit(misfits, known.said_by)
        gaps = [
            *_beyond(unlike, self.found),
            *(self._lacking(known) if unlike or self.absent.between else ()),
        ]
        if gaps:
            raise incomplete(self.subject, gaps, self.absent)
        return Shaped(self.found, self.replicas)

    def inferred(self) -> Shaped:
        """Return the tensors as large as their boxes reach."""
        return Shaped(self.found, self.replicas)

    def as_found(self) -> Mapping[str, DescribedTensor]:
        """Return the tensors as large as their boxes reach."""
        return self.found

    def _lacking(self, known: KnownShapes) -> Iterator[Finding]:
        """Yield tensors of the base of which no file holds anything, as files that are missing may have."""
        for name in known.lacking(self.found):
            yield finding("U112", subject=cut(name), saw="no file holds any of it", remedy=_MISSING)

    def _misfit(self, misfits: Mapping[str, Shape], said_by: str) -> BaseModelError:
        reach = ((name, self.found[name].shape, shape) for name, shape in misfits.items())
        saw = [f"`{cut(name)}` reaches to {list(ours)}, not {list(theirs)}" for name, ours, theirs in reach]
        return BaseModelError(
            said_by,
            f"has other shapes than {len(misfits)} of the {len(self.found)} tensors in {self.subject.name}",
            saw=listed(saw),
            hint="Name the model that training started from with --base, or, if training made the tensors"
            " larger, its configuration saved afterwards. --accept-inferred-shapes takes what is there.",
        )


def unite_boxes(boxes: Mapping[str, Mapping[str, Piece]], *, subject: Path, absent: Absent) -> BoxedTensors:
    """Return the tensors that boxes in many files make up, as large as they reach.

    Args:
        boxes: By file, the box of every tensor that the file holds part of.
        subject: The folder.
        absent: Files that may be missing.

    Raises:
        IncompleteCheckpointError: There are holes between boxes.
        UnsafeFileError: Boxes overlap, or those of one tensor have different dtypes or dimensions.
    """
    pieces: dict[str, list[tuple[str, Piece]]] = {}
    for file, held in boxes.items():
        for name, piece in held.items():
            pieces.setdefault(name, []).append((file, piece))
    faults = _Faults(subject)
    found: dict[str, DescribedTensor] = {}
    replicas: list[Replica] = []
    for name, placed in pieces.items():
        found[name], twice = _unite(name, placed, faults)
        replicas += twice
    if faults.contradictions:
        raise UnsafeFileError(
            subject,
            "holds shards that contradict one another",
            saw=listed(faults.contradictions),
            hint="Files of two saves lie together; keep those of one. Their times of change tell: ls -l",
        )
    if faults.gaps:
        raise incomplete(subject, faults.gaps, absent)
    return BoxedTensors(subject, found, replicas, absent)


@dataclass(slots=True)
class _Faults:
    subject: Path
    contradictions: list[str] = field(default_factory=list)
    gaps: list[Finding] = field(default_factory=list)


def _unite(
    name: str, placed: Sequence[tuple[str, Piece]], faults: _Faults
) -> tuple[DescribedTensor, list[Replica]]:
    """Return a tensor as large as its boxes reach, and the boxes it has twice; note what is wrong."""
    first_file, first = placed[0]
    dtype, dimensions = _dtype(first), len(first.box.start)
    for file, piece in placed:
        if _dtype(piece) != dtype or len(piece.box.start) != dimensions:
            faults.contradictions.append(
                f"`{cut(name)}` is {dtype} of {dimensions} dimensions in {first_file}"
                f" and {_dtype(piece)} of {len(piece.box.start)} in {file}"
            )
            return DescribedTensor(first.box.shape, dtype, (first,)), []
    # A rank without rows writes an empty box, wherever it likes.
    held = [piece.box for _, piece in placed if piece.box.volume] or [piece.box for _, piece in placed]
    shape = tuple(max(stops) for stops in zip(*(box.stop for box in held), strict=True))
    coverage = check_coverage(shape, held)
    solid = [item for item in placed if item[1].box.volume]
    _note_faults(name, coverage, [file for file, _ in solid], faults)
    kept = tuple(solid[number][1] for number in coverage.kept)
    twice = [
        Replica(name, solid[number][1].box, solid[group[0]][1].source, solid[number][1].source)
        for group in coverage.replicas
        for number in group[1:]
    ]
    return DescribedTensor(shape, dtype, kept), twice


def _dtype(piece: Piece) -> DType:
    assert isinstance(piece.source, FileSource)
    return piece.source.dtype


def _note_faults(name: str, coverage: Coverage, files: Sequence[str], faults: _Faults) -> None:
    for overlap in coverage.overlaps:
        among = " and ".join(files[number] for number in overlap.among[:2])
        part = described_box(coverage.shape, overlap.box)
        faults.contradictions.append(f"`{cut(name)}`, {part}, is in {among}, which share other parts not")
    if coverage.irregular:
        faults.contradictions.append(f"`{cut(name)}` is cut into boxes that are no grid")
    faults.gaps += [_gap(name, coverage.shape, hole) for hole in coverage.holes]


def _may_be(reach: Shape, shape: Shape) -> bool:
    """Return whether a tensor of `shape` may have lost the boxes beyond `reach`.

    A file that is missing takes boxes along one dimension with it, so that a tensor which is short in
    two is one of another model.
    """
    if len(reach) != len(shape):
        return False
    short = [ours < theirs for ours, theirs in zip(reach, shape, strict=True)]
    return sum(short) == 1 and not any(a > b for a, b in zip(reach, shape, strict=True))


def _beyond(unlike: Mapping[str, Shape], found: Mapping[str, DescribedTensor]) -> Iterator[Finding]:
    """Yield what lies between the reach of boxes and the shapes that the base has."""
    for name, shape in unlike.items():
        reach = found[name].shape
        start = tuple(a if a < b else 0 for a, b in zip(reach, shape, strict=True))
        yield _gap(name, shape, Box(start, shape))


def _gap(name: str, shape: Shape, hole: Box) -> Finding:
    part = described_box(shape, hole)
    return finding("U112", subject=cut(name), saw=f"no file holds {part}", remedy=_MISSING)


def incomplete(subject: Path, missing: Sequence[Finding], absent: Absent) -> IncompleteCheckpointError:
    """Return the error that names every missing part, and the files that may have held them."""
    files = [
        finding("U110", subject=file, saw="not there; what is missing may be in it", remedy=_MISSING)
        for file in absent.likely
    ]
    names = list(dict.fromkeys(gap.subject for gap in missing))
    look_for = listed(list(absent.likely), at_most=_MOST_LISTED)
    return IncompleteCheckpointError(
        subject,
        f"lacks parts of {len(names)} tensors: {listed([f'`{name}`' for name in names])}",
        saw=f"{missing[0].saw} of `{missing[0].subject}`" + (f"; not there: {look_for}" if look_for else ""),
        hint=_MISSING,
        gaps=[*files, *missing],
    )
