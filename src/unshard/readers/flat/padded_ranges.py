"""Vectors cut into ranges of one length, the last ones padded: rank `r` begins at `r` times the length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unshard.errors import IncompleteCheckpointError, UnsafeFileError
from unshard.findings import Finding, finding
from unshard.readers.flat.vectors import Stretch, Vector
from unshard.readers.rendering import cut, listed
from unshard.readers.torch_save.torch_objects import StoredTensor
from unshard.tensors import element_count
from unshard.tensors.coverage import check_ranges

_MISSING = "Copy the files of all ranks into the folder, or give the folders of all nodes."
_MOST_RANKS = 1 << 17


@dataclass(frozen=True, slots=True)
class PaddedRange:
    """What one rank holds of a vector.

    Attributes:
        file: The name of its file.
        rank: Which range it is.
        stored: The range.
        padding: How many elements at its end belong to nothing.
    """

    file: str
    rank: int
    stored: StoredTensor
    padding: int

    @property
    def length(self) -> int:
        """Elements with the padding."""
        return element_count(self.stored.tensor)

    @property
    def bounds(self) -> tuple[int, int]:
        """Where in the vector it begins and stops."""
        start = self.rank * self.length
        return start, start + self.length - self.padding


def unite_padded_ranges(
    vectors: Mapping[str, tuple[int, Sequence[PaddedRange]]], *, subject: Path
) -> dict[str, Vector]:
    """Return vectors whole.

    Args:
        vectors: By name, the length without padding, and the ranges that are there.
        subject: The folder.

    Raises:
        IncompleteCheckpointError: Ranges are missing.
        UnsafeFileError: Ranges have different lengths or dtypes, or are not where their rank says.
    """
    gaps: list[Finding] = []
    absent: set[int] = set()
    found = {}
    for name, (count, ranges) in vectors.items():
        _require_alike(name, count, ranges, subject)
        solid = [r for r in ranges if r.padding < r.length]
        coverage = check_ranges(count, [r.bounds for r in solid])
        for hole in coverage.holes:
            saw = f"no file holds elements {hole.start[0]:,} to {hole.stop[0]:,} of {count:,}"
            gaps.append(finding("U112", subject=cut(name), saw=saw, remedy=_MISSING))
        if coverage.holes:
            absent |= _absent_ranks(count, ranges)
        stretches = (
            Stretch(*r.bounds, r.stored.tensor.pieces[0].source)
            for r in (solid[number] for number in coverage.kept)
        )
        found[name] = Vector(ranges[0].stored.tensor.dtype, tuple(stretches))
    if gaps:
        raise _incomplete(subject, gaps, sorted(absent))
    return found


def _absent_ranks(count: int, ranges: Sequence[PaddedRange]) -> set[int]:
    """Return the ranks that must have been there; nothing where their number means nothing."""
    length = ranges[0].length
    number = -(-count // length) if length else 0
    return set(range(number)) - {r.rank for r in ranges} if number <= _MOST_RANKS else set()


def _require_alike(name: str, count: int, ranges: Sequence[PaddedRange], subject: Path) -> None:
    first = ranges[0]
    for each in ranges:
        start, stop = each.bounds
        same = each.length == first.length and each.stored.tensor.dtype == first.stored.tensor.dtype
        inside = 0 <= each.padding <= each.length and (stop <= count or start == stop)
        # Only ranges that reach the end of the vector are padded.
        if not same or not inside or (each.padding and stop < min(count, start + each.length)):
            raise UnsafeFileError(
                subject,
                f"holds ranges of `{cut(name)}` that cannot be of one save",
                saw=f"elements {start:,} to {stop:,} in {each.file}, of {each.stored.tensor.dtype}",
                expected=f"{first.length:,} elements each of {count:,}, padding at the end only",
                hint="Files of two saves lie together, or their names were exchanged.",
            )


def _incomplete(subject: Path, gaps: list[Finding], absent: list[int]) -> IncompleteCheckpointError:
    ranks = listed([f"rank {rank}" for rank in absent], at_most=8)
    files = [
        finding("U110", subject=f"shard{rank}.pt", saw=f"no file of rank {rank}", remedy=_MISSING)
        for rank in absent
    ]
    return IncompleteCheckpointError(
        subject,
        f"lacks parts of {len({gap.subject for gap in gaps})} flat parameters",
        saw=f"{gaps[0].saw} of `{gaps[0].subject}`" + (f"; no files of {ranks}" if absent else ""),
        hint=_MISSING,
        gaps=[*files, *gaps],
    )
