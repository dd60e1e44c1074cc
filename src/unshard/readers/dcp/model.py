"""From the tables to the tensors of the model that is meant; everything that is missing is told at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from unshard.checkpoint import Replica
from unshard.errors import IncompleteCheckpointError, UnsafeFileError, UnsupportedLayoutError
from unshard.findings import Finding
from unshard.readers.dcp.blobs import look_into
from unshard.readers.dcp.chunks import Chunks, dtype_of
from unshard.readers.dcp.compressed import Scratch, require_known
from unshard.readers.dcp.gaps import find_missing, find_short, held_by_file
from unshard.readers.dcp.geometry import (
    cover,
    find_holes,
    find_unplaced,
    require_blobs,
    require_members,
    require_sizes,
)
from unshard.readers.dcp.tables import Tables, TensorRow
from unshard.readers.folders import Folder
from unshard.readers.rendering import cut, listed
from unshard.storage.files import InputFile

_FREE_SCRATCH_BYTES = 64 << 20  # every blob takes some more than its chunk


def describe_chunks(
    tables: Tables, tensors: Mapping[str, TensorRow], folder: Folder
) -> tuple[Chunks, list[Replica]]:
    """Return the chunks of a model, and those that repeat others.

    They are checked: they cover its tensors, and lie in files that are there.

    Raises:
        IncompleteCheckpointError: Files, ends of files, or parts of tensors are missing.
        UnsafeFileError: The metadata contradicts itself, or names files outside of the folder.
        UnsupportedLayoutError: Tensors are of dtypes that are not read.
    """
    keys = [row.name for row in tensors.values()]
    rows = [replace(row, name=name) for name, row in tensors.items()]
    if unread := [f"`{cut(row.name)}` ({cut(row.dtype)})" for row in rows if dtype_of(row) is None]:
        raise UnsupportedLayoutError(
            folder.path, "has tensors of dtypes that are not read", saw=listed(unread)
        )
    dtypes = [dtype for row in rows if (dtype := dtype_of(row)) is not None]
    numbers = [tables.rows(row) for row in rows]
    require_sizes(rows, dtypes, folder.path)
    coverages = [cover(row, one, folder.path) for row, one in zip(rows, numbers, strict=True)]
    shared = require_blobs(rows, dtypes, numbers, tables.files, folder.path)
    require_known((tables.transforms[n] for one in numbers for n in set(one[:, -1].tolist())), folder.path)
    held = held_by_file(rows, numbers)
    for file in held:
        require_plain_name(tables.files[file], folder)
    there = set(folder.files)
    missing = {file for file in held if tables.files[file] not in there}
    files = {file: InputFile.describe(folder.at(tables.files[file])) for file in held if file not in missing}
    require_members(shared, files, folder.path)
    by_name = dict(zip((row.name for row in rows), numbers, strict=True))
    gaps = [
        *find_missing(held, tables.files, missing),
        *find_short(held, files, by_name),
        *find_holes(rows, coverages, by_ranks="ranks" in tables.facts),
        *find_unplaced(rows, numbers),
    ]
    if gaps:
        raise incomplete(folder, gaps)
    everything = [files.get(file) for file in range(len(tables.files))]
    kept = [coverage.kept for coverage in coverages]
    sizes = (math.prod(row.shape) * dtype.itemsize for row, dtype in zip(rows, dtypes, strict=True))
    scratch = Scratch(2 * max(sizes, default=0) + _FREE_SCRATCH_BYTES, look_into)
    chunks = Chunks(keys, rows, dtypes, numbers, kept, everything, scratch)
    return chunks, chunks.replicas([coverage.replicas for coverage in coverages])


def require_plain_name(name: str, folder: Folder) -> None:
    """Raise unless a file that the metadata names can only be one of the folder."""
    if name in folder.outside:
        raise UnsafeFileError(
            folder.path,
            "has a link that leads out of it among its files",
            saw=f"`{cut(name)}`",
            hint="Copy the file that it leads to into the folder, if you trust it.",
        )
    if "/" in name or "\\" in name or name in ("", ".", "..") or not name.isprintable():
        raise UnsafeFileError(
            folder.path,
            "has metadata that names a file outside of the folder",
            saw=f"`{cut(name)}`",
            expected="names of files in the folder, such as `__0_0.distcp`",
            hint="torch does not write such metadata. Ask whoever made it.",
        )


def incomplete(folder: Folder, gaps: list[Finding]) -> IncompleteCheckpointError:
    """Return the error that tells everything that is missing, the first of it in its sentence."""
    first = gaps[0]
    more = f" (and {len(gaps) - 1} more gaps: unshard check lists them)" if len(gaps) > 1 else ""
    problem = {
        "U110": "lacks files that hold parts of the model",
        "U111": "has a file that ends too early",
        "U112": "lacks parts of tensors",
        "U118": "was never finished, or lies in several places",
    }[first.code]
    return IncompleteCheckpointError(
        folder.path, problem, saw=f"`{first.subject}`: {first.saw}{more}", hint=first.remedy, gaps=gaps
    )
