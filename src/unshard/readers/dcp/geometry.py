"""Whether the chunks of a model can be what the metadata says: boxes in their tensors, blobs in their files.

Everything is arithmetic on the tables. What contradicts itself is refused, what is
merely absent is a gap.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from unshard.dtypes import DType
from unshard.errors import UnsafeFileError
from unshard.findings import Finding, finding
from unshard.readers.dcp.tables import NOWHERE, PLACE_FIELDS, TensorRow
from unshard.readers.rendering import cut, listed
from unshard.readers.weights.safetensors_file import is_safetensors
from unshard.storage.files import InputFile
from unshard.tensors.coverage import Coverage, check_coverage, described_box

if TYPE_CHECKING:
    import numpy as np

_HINT = "torch does not write such metadata. Copy the folder again, or ask whoever made it."
_HINT_OVERLAP = (
    "Where every rank writes its own metadata, those of an older save by more ranks may lie among them:"
    " delete them. Else torch does not write such metadata; copy the folder again."
)
_LARGEST_SIZE = 1 << 62
_MOST_NAMED = 3


def require_sizes(rows: Sequence[TensorRow], dtypes: Sequence[DType], subject: object) -> None:
    """Raise unless every declared shape is one a tensor can have."""
    for row, dtype in zip(rows, dtypes, strict=True):
        if min(row.shape, default=0) < 0 or math.prod(row.shape) * dtype.itemsize >= _LARGEST_SIZE:
            raise _impossible(subject, f"gives `{cut(row.name)}` a shape that cannot be", str(row.shape))


def cover(row: TensorRow, numbers: np.ndarray, subject: object) -> Coverage:
    """Return how the chunks of a tensor cover it; they are inside of it and do not overlap.

    Raises:
        UnsafeFileError: They are not, or do.
    """
    dimensions = len(row.shape)
    boxes = numbers[:, : 2 * dimensions].reshape(len(numbers), 2, dimensions).copy()
    boxes[:, 1] += boxes[:, 0]
    coverage = check_coverage(row.shape, boxes)
    if coverage.outside:
        start, size = numbers[coverage.outside[0]][: 2 * dimensions].reshape(2, -1).tolist()
        saw = f"{size} at {start} of {list(row.shape)}"
        raise _impossible(subject, f"has a chunk of `{cut(row.name)}` that is not inside of it", saw)
    if coverage.overlaps:
        where = described_box(row.shape, coverage.overlaps[0].box)
        raise _impossible(subject, f"has chunks of `{cut(row.name)}` that overlap", where, _HINT_OVERLAP)
    if coverage.irregular:
        raise _impossible(subject, f"cuts `{cut(row.name)}` in no order", f"{len(numbers)} chunks")
    return coverage


def find_holes(
    rows: Sequence[TensorRow], coverages: Sequence[Coverage], *, by_ranks: bool
) -> Iterator[Finding]:
    """Yield the parts of tensors that no chunk holds.

    Args:
        rows: The tensors.
        coverages: How their chunks cover them.
        by_ranks: Whether every rank told of its own chunks, so that others may have held these.
    """
    remedy = "No rank saved it. Take an earlier step."
    if by_ranks:
        remedy = "Copy the files of the missing ranks here, `__<rank>.metadata` and data, from their nodes."
    for row, coverage in zip(rows, coverages, strict=True):
        if coverage.holes:
            parts = [described_box(row.shape, hole) for hole in coverage.holes]
            yield finding(
                "U112",
                subject=cut(row.name),
                saw=listed(parts, at_most=_MOST_NAMED),
                expected=f"all of {list(row.shape)}",
                remedy=remedy,
            )


def find_unplaced(rows: Sequence[TensorRow], numbers: Sequence[np.ndarray]) -> Iterator[Finding]:
    """Yield the tensors of which a chunk is described, and nothing says where it lies."""
    for row, one in zip(rows, numbers, strict=True):
        lost = int((one[:, -PLACE_FIELDS] == NOWHERE).sum())
        if lost:
            yield finding(
                "U112",
                subject=cut(row.name),
                saw=f"{lost} of {len(one)} chunks without a place",
                expected="a file and an offset for each",
                remedy="Its save was not finished. Take an earlier step.",
            )


def require_blobs(
    rows: Sequence[TensorRow],
    dtypes: Sequence[DType],
    numbers: Sequence[np.ndarray],
    files: Sequence[str],
    subject: object,
) -> list[tuple[int, int]]:
    """Return places, as file and byte, that several chunks are said to lie at; `require_members` looks there.

    Raises:
        UnsafeFileError: Blobs cannot hold their chunks, or overlap.
    """
    import numpy as np

    for row, dtype, one in zip(rows, dtypes, numbers, strict=True):
        placed = one[one[:, -PLACE_FIELDS] != NOWHERE]
        dimensions = len(row.shape)
        needed = placed[:, dimensions : 2 * dimensions].prod(axis=1) * dtype.itemsize
        starts, lengths, plain = placed[:, -3], placed[:, -2], placed[:, -1] == 0
        wrong = (starts < 0) | (lengths <= 0) | (plain & (lengths < needed))
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            raise UnsafeFileError(
                subject,
                f"names a place for a chunk of `{cut(row.name)}` that cannot hold it",
                saw=f"{lengths[at]} bytes at byte {starts[at]} of `{cut(files[placed[at, -4]])}`",
                expected=f"at least {needed[at]} bytes",
                hint=_HINT,
            )
    places = np.concatenate([one[:, -PLACE_FIELDS:] for one in numbers]) if numbers else np.empty((0, 4))
    places = places[places[:, 0] != NOWHERE]
    places = places[np.lexsort((places[:, 2], places[:, 1], places[:, 0]))]
    before, after = places[:-1], places[1:]
    together = (before[:, :2] == after[:, :2]).all(axis=1)
    overlapping = (before[:, 0] == after[:, 0]) & ~together & (before[:, 1] + before[:, 2] > after[:, 1])
    if overlapping.any():
        at = int(np.flatnonzero(overlapping)[0])
        raise _impossible(
            subject,
            f"names chunks in `{cut(files[int(before[at, 0])])}` that overlap",
            f"bytes {before[at, 1]} to {before[at, 1] + before[at, 2]}, and bytes from {after[at, 1]}",
        )
    return sorted({(file, start) for file, start in before[together][:, :2].tolist()})


def require_members(
    shared: Sequence[tuple[int, int]], files: Mapping[int, InputFile], subject: object
) -> None:
    """Raise unless a safetensors file begins at every place that several chunks are said to lie at."""
    for number, start in shared:
        file = files.get(number)
        if file is None or start >= file.size:
            continue  # which is a gap of its own
        if not is_safetensors(file.read(start, min(start + 9, file.size))):
            problem = f"names one place in `{file.path.name}` for several chunks"
            raise _impossible(subject, problem, f"byte {start}, where no safetensors file begins")


def _impossible(subject: object, problem: str, saw: str, hint: str = _HINT) -> UnsafeFileError:
    return UnsafeFileError(subject, problem, saw=saw, hint=hint)
