"""Files of one name in several places: they must be copies of each other.

Ranks of several nodes write files of different names; what lies twice was copied, or is of another
save. Their sizes are compared, and their first and last bytes: headers and directories, in which two
saves differ, lie there.
"""

from __future__ import annotations

from pathlib import Path

from unshard.errors import UnsafeFileError
from unshard.readers.protocol import Candidate
from unshard.storage.files import InputFile

_COMPARED_BYTES = 64 << 10


def require_equal_copies(candidate: Candidate) -> None:
    """Raise if a file of the candidate lies in several places, and is another one in each.

    Raises:
        UnsafeFileError: Two of them differ in size, or in their first or last 64 KiB.
    """
    for name in candidate.files:
        first, *others = candidate.folder.copies.get(name, (None,))
        for other in others:
            assert first is not None
            _require_equal(first, other)


def _require_equal(first: Path, other: Path) -> None:
    one, two = InputFile.describe(first), InputFile.describe(other)
    if one.size != two.size:
        raise _differ(first, other, f"{one.size:,} and {two.size:,} bytes")
    for start in {0, max(0, one.size - _COMPARED_BYTES)}:
        stop = min(one.size, start + _COMPARED_BYTES)
        if one.read(start, stop) != two.read(start, stop):
            raise _differ(first, other, f"other bytes between {start:,} and {stop:,}")


def _differ(first: Path, other: Path, saw: str) -> UnsafeFileError:
    return UnsafeFileError(
        first,
        f"lies in two places, which hold different files of that name: the other is `{other}`",
        saw=saw,
        hint="They are of different saves. Remove the one that does not belong to this checkpoint.",
    )
