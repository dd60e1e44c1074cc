"""PyTorch Distributed Checkpoint (DCP): what `torch.distributed.checkpoint.save` leaves.

    .metadata               a pickle: names, shapes, dtypes, and where every chunk of every tensor lies
    __<rank>_<i>.distcp     blobs, one after the other; each is a file of torch.save of one chunk or value
    .metadata.tmp           a save that was not finished

A chunk is a box of its tensor. What lies in the folder and is not named in `.metadata` is of another save.
Refused by name: `.distcp` files without `.metadata`, since blobs have no names; ByteCheckpoint.

Memory:
    Some sixty bytes per chunk.

Source:
    torch/distributed/checkpoint/filesystem.py, metadata.py and planner_helpers.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from unshard.checkpoint import Checkpoint, Layout
from unshard.errors import InputError, TrainingStateError, UnknownLayoutError, UnshardError
from unshard.readers.dcp.gaps import find_stale, find_unfinished
from unshard.readers.dcp.groups import Groups, find_groups
from unshard.readers.dcp.metadata_file import read_metadata
from unshard.readers.dcp.model import describe_chunks, incomplete
from unshard.readers.dcp.tables import Tables
from unshard.readers.folders import Folder
from unshard.readers.protocol import Candidate
from unshard.readers.selection import select_model
from unshard.storage.checksums import Checksums
from unshard.storage.files import InputFile

METADATA = ".metadata"
_FILES = re.compile(r"\.metadata(\.tmp)?|__\d+\.metadata(\.tmp)?|.*__\d+_\d+\.distcp")


def find_candidates(folder: Folder) -> Iterator[Candidate]:
    """Yield the checkpoint that lies in a folder, if there is one."""
    files = tuple(name for name in folder.files if _FILES.fullmatch(name))
    if files:
        yield Candidate(folder.path, folder, files, "PyTorch Distributed Checkpoint (DCP)")


def open_candidate(candidate: Candidate, *, select: str | None) -> Checkpoint:
    """Return the model in a checkpoint of DCP; no tensor is read.

    Raises:
        TrainingStateError: It holds only training state.
        AmbiguousModelError: It holds several models, and `select` does not name one.
        InputError: It cannot be read.
    """
    folder = candidate.folder
    tables = _read_tables(folder)
    groups = find_groups(tables)
    if not groups.models:
        raise _no_model(candidate, groups)
    chosen = select_model(groups.models, select, candidate.path)
    chunks = describe_chunks(tables, chosen.tensors, folder)
    tensors = chunks.tensors()
    return Checkpoint(
        path=candidate.path,
        root=candidate.path,
        layout=Layout("dcp", candidate.title, None, ()),
        tensors=tensors,
        container=chosen.container,
        selected=chosen.prefix,
        storages={name: (METADATA, row.name) for name, row in chosen.tensors.items()},
        files=tuple(file for file in chunks.files if file is not None),
        checksums=Checksums(sum(t.nbytes for t in tensors.values()), chunks.checksums),
        extras=tuple(groups.extras()),
        findings=tuple(find_stale(folder, tables.files)),
    )


def _read_tables(folder: Folder) -> Tables:
    """Return what the metadata in a folder says.

    Raises:
        IncompleteCheckpointError: There is none.
    """
    if METADATA in folder.files:
        return read_metadata(InputFile.describe(folder.at(METADATA)))
    leftover = next((name for name in folder.files if name.endswith(".metadata.tmp")), None)
    whole = leftover is not None and _is_whole(folder.at(leftover))
    raise incomplete(folder, [find_unfinished(folder, leftover=leftover, is_whole=whole)])


def _is_whole(path: Path) -> bool:
    try:
        read_metadata(InputFile.describe(path))
    except InputError:
        return False
    return True


def _no_model(candidate: Candidate, groups: Groups) -> UnshardError:
    if groups.state:
        kinds = ", ".join(sorted({kind for _, kind in groups.state}))
        return TrainingStateError(candidate.path, f"holds training state and no model: {kinds}")
    return UnknownLayoutError(candidate.path, "holds no tensors", expected="a state dict")
