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

from unshard.checkpoint import Checkpoint, Layout
from unshard.errors import TrainingStateError, UnknownLayoutError, UnshardError, UnsupportedLayoutError
from unshard.readers.dcp.chunks import Chunks, dtype_of
from unshard.readers.dcp.groups import Groups, find_groups
from unshard.readers.dcp.metadata_file import read_metadata
from unshard.readers.dcp.tables import Tables, TensorRow
from unshard.readers.folders import Folder
from unshard.readers.protocol import Candidate
from unshard.readers.rendering import cut, listed
from unshard.readers.selection import Selected, select_model
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
    tables = read_metadata(InputFile.describe(folder.at(METADATA)))
    groups = find_groups(tables)
    if not groups.models:
        raise _no_model(candidate, groups)
    chosen = select_model(groups.models, select, candidate.path)
    chunks = _chunks(candidate, tables, chosen)
    tensors = chunks.tensors(list(chosen.tensors))
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
        findings=(),
    )


def _chunks(candidate: Candidate, tables: Tables, chosen: Selected[TensorRow]) -> Chunks:
    rows = list(chosen.tensors.values())
    unread = [f"`{cut(row.name)}` ({cut(row.dtype)})" for row in rows if dtype_of(row) is None]
    if unread:
        raise UnsupportedLayoutError(
            candidate.path, "has tensors of dtypes that are not read", saw=listed(unread)
        )
    numbers = [tables.rows(row) for row in rows]
    used = {int(file) for one in numbers for file in set(one[:, -4].tolist())}
    files = [
        InputFile.describe(candidate.folder.at(name)) if i in used else None
        for i, name in enumerate(tables.files)
    ]
    return Chunks(rows, [dtype for row in rows if (dtype := dtype_of(row))], numbers, files)


def _no_model(candidate: Candidate, groups: Groups) -> UnshardError:
    if groups.state:
        kinds = ", ".join(sorted({kind for _, kind in groups.state}))
        return TrainingStateError(candidate.path, f"holds training state and no model: {kinds}")
    return UnknownLayoutError(candidate.path, "holds no tensors", expected="a state dict")
