"""PyTorch Distributed Checkpoint (DCP): what `torch.distributed.checkpoint.save` leaves.

    .metadata               a pickle: names, shapes, dtypes, and where every chunk of every tensor lies
    __<rank>_<i>.distcp     blobs, one after the other; each is a file of torch.save of one chunk or value
    __<rank>.metadata       instead of it, where ranks saved without collectives: each tells of its own chunks
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
from itertools import islice
from pathlib import Path

from unshard.checkpoint import Checkpoint, Extra
from unshard.errors import InputError, TrainingStateError, UnknownLayoutError, UnshardError
from unshard.findings import Finding, finding
from unshard.readers.dcp.chunks import Chunks
from unshard.readers.dcp.gaps import find_silent_ranks, find_stale, find_unfinished
from unshard.readers.dcp.groups import Groups, find_groups
from unshard.readers.dcp.items import read_items
from unshard.readers.dcp.metadata_file import read_metadata, read_metadata_of_ranks
from unshard.readers.dcp.model import describe_chunks, incomplete
from unshard.readers.dcp.provenance import describe_layout, traces_of
from unshard.readers.dcp.tables import Tables, TensorRow
from unshard.readers.folders import Folder, size_of
from unshard.readers.protocol import Candidate
from unshard.readers.rendering import cut, listed
from unshard.readers.selection import Selected, select_model
from unshard.readers.torch_save.contents import value_kind
from unshard.readers.torch_save.torch_state import foreign_classes
from unshard.readers.training_files import training_kind
from unshard.sizes import format_size
from unshard.storage.checksums import Checksums
from unshard.storage.files import InputFile

METADATA = ".metadata"
_MOST_NUMBERS = 32
_MODEL = re.compile(r".+\.(safetensors|bin|gguf)")
_OF_RANK = re.compile(r"__\d+\.metadata")
_FILES = re.compile(r"\.metadata(\.tmp)?|__\d+\.metadata(\.tmp)?|.*__\d+_\d+\.distcp")
# Lightning's and Megatron's other state, which is no model of its own; Megatron's word about the format.
_COMPANIONS = frozenset(("meta.pt", "common.pt", "metadata.json"))


def find_candidates(folder: Folder) -> Iterator[Candidate]:
    """Yield the checkpoint that lies in a folder, if there is one."""
    files = tuple(name for name in folder.files if _FILES.fullmatch(name))
    # Other tools write a `.metadata` of their own beside whole models.
    is_dcp = any(name.endswith(".distcp") for name in files) or not any(map(_MODEL.fullmatch, folder.files))
    if files and is_dcp:
        files += tuple(name for name in folder.files if name in _COMPANIONS)
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
    chunks, replicas = describe_chunks(tables, chosen.tensors, folder)
    tensors = chunks.tensors()
    items = read_items(tables, groups.items, folder)
    return Checkpoint(
        path=candidate.path,
        root=candidate.path,
        layout=describe_layout(tables, folder),
        tensors=tensors,
        container=chosen.container,
        selected=chosen.prefix,
        storages={name: (METADATA, row.name) for name, row in chosen.tensors.items()},
        files=tuple(file for file in chunks.files if file is not None),
        checksums=Checksums(chunks.checked_bytes, chunks.checksums),
        replicas=replicas,
        extras=(*groups.extras(), *_numbers(tables, groups, folder), *items.extras, *_beside(candidate)),
        classes=foreign_classes(tuple(tables.classes)),
        traces=traces_of(tables),
        embedded=items.files,
        scratch_bytes=chunks.scratch_bytes,
        findings=tuple(_findings(tables, groups, chosen, select, chunks, folder)),
    )


def _numbers(tables: Tables, groups: Groups, folder: Folder) -> Iterator[Extra]:
    """Yield tensors of one number that are no part of a model, such as a step, with their values."""
    for name, row in islice(groups.numbers.items(), _MOST_NUMBERS):
        try:
            chunks, _ = describe_chunks(tables, {name: row}, folder)
            value = str(chunks.tensors()[name].numpy().reshape(-1)[0])
        except InputError:  # which keeps nobody from the model
            value = "a number"
        yield Extra(cut(name), value_kind(name.rpartition(".")[2]), int(tables.rows(row)[:, -2].sum()), value)


def _beside(candidate: Candidate) -> Iterator[Extra]:
    """Yield what lies beside the tensors and is not told as training state anyway."""
    for name in candidate.files:
        if name in _COMPANIONS and training_kind(name) is None:
            yield Extra(name, "file", size_of(candidate.folder.at(name)))


def _findings(
    tables: Tables,
    groups: Groups,
    chosen: Selected[TensorRow],
    select: str | None,
    chunks: Chunks,
    folder: Folder,
) -> Iterator[Finding]:
    """Yield what a person should know of the checkpoint besides its tensors."""
    yield from find_stale(folder, tables.files)
    if chosen.container:
        yield finding("U105", subject=METADATA, saw=f"container `{cut('.'.join(chosen.container))}`")
    if select is not None:
        others = [cut(".".join(c)) or "the top level" for c in groups.models if c != chosen.container]
        saw = f"--select {cut(select)}" + (f"; the others are {listed(others)}" if others else "")
        yield finding("U205", subject=METADATA, saw=saw)
    if training := [extra for extra in groups.extras() if extra.size]:
        parts = [f"{extra.name} ({format_size(extra.size)})" for extra in training]
        yield finding("U102", subject=folder.path.name, saw=listed(parts))
    if not chunks.has_checksums():
        remedy = "Compare it with a digest of the original."
        yield finding("U103", subject=folder.path.name, saw="the first blob has none", remedy=remedy)
    if classes := foreign_classes(tuple(tables.classes)):
        yield finding("U104", subject=METADATA, saw=listed([cut(c) for c in classes], at_most=5))


def _read_tables(folder: Folder) -> Tables:
    """Return what the metadata in a folder says.

    Raises:
        IncompleteCheckpointError: There is none.
    """
    if METADATA in folder.files:
        return read_metadata(InputFile.describe(folder.at(METADATA)))
    if names := [name for name in folder.files if _OF_RANK.fullmatch(name)]:
        if gaps := list(find_silent_ranks(folder, names)):
            raise incomplete(folder, gaps)
        return read_metadata_of_ranks([InputFile.describe(folder.at(name)) for name in names])
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
