"""Safetensors sharded by torch's DCP: every rank wrote its boxes of the tensors into files of its own.

    shard-00001-model-00002-of-00003.safetensors    rank 1 (counted from 1), file 2 of 3 of the model
        __metadata__.DCP_SHARDING_INFO              where each box begins in its tensor
    sharded/shard-...                               the same, where the whole model was written above it
    .hf_metadata/config.json, ...                   NeMo Automodel's configuration and tokenizer

A tensor that every rank has whole is in the file of one of them. The shape of a whole tensor stands
nowhere: the last file may be missing, and nothing in the others tells. Shapes come from the base, never
from the boxes that happen to be there. A whole model beside the shards (model*.safetensors) goes before
them. Refused: boxes that overlap without being equal, and shards of two saves in one folder.

Memory:
    Headers only: a few hundred bytes per box.

Source:
    torch/distributed/checkpoint/hf_storage.py and _hf_utils.py; transformers 5.23
    distributed/checkpoint.py; NVIDIA-NeMo/Automodel nemo_automodel/components/checkpoint/addons.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from unshard.checkpoint import BaseHint, Checkpoint, Layout
from unshard.errors import UnsafeFileError
from unshard.readers.folders import Folder
from unshard.readers.protocol import Candidate
from unshard.readers.rendering import listed
from unshard.readers.selection import select_model
from unshard.readers.weights.boxed_tensors import Absent, unite_boxes
from unshard.readers.weights.sharding_info import describe_boxes
from unshard.sizes import counted
from unshard.storage.files import InputFile

_SHARD = re.compile(r"shard-(\d{5})-model-(\d{5})-of-(\d{5})\.safetensors")
_AUTOMODEL = ".hf_metadata"


def find_candidates(folder: Folder) -> Iterator[Candidate]:
    """Yield the shards in a folder, which are one model."""
    files = tuple(filter(_SHARD.fullmatch, folder.files))
    if files:
        yield Candidate(folder.path, folder, files, "safetensors sharded by PyTorch DCP")


def open_candidate(candidate: Candidate, *, select: str | None) -> Checkpoint:
    """Return the model in shards of safetensors, its shapes unknown; no tensor is read.

    Raises:
        IncompleteCheckpointError: Parts are missing between those that are there.
        UnsafeFileError: The files contradict themselves or one another.
        InputError: They cannot be read.
    """
    folder = candidate.folder
    shards = _require_one_save(folder, candidate.files)
    files = {shard.name: InputFile.describe(folder.at(shard.name)) for shard in shards}
    boxes = {shard.name: describe_boxes(files[shard.name]) for shard in shards}
    united = unite_boxes(boxes, subject=folder.path, absent=_absent(shards))
    chosen = select_model({(): dict(united.found)}, select, folder.path)
    before = f"{chosen.prefix}." if chosen.prefix else ""
    return Checkpoint(
        path=candidate.path,
        root=folder.path,
        layout=_layout(folder, shards),
        tensors={},
        selected=chosen.prefix,
        storages={name: before + name for name in chosen.tensors},
        files=tuple(files.values()),
        unshaped=united.selected(before),
        base_hints=tuple(_base_hints(folder)),
    )


@dataclass(frozen=True, slots=True, order=True)
class _Shard:
    """What the name of a file says: which file of the model, of how many, and by which rank."""

    index: int
    rank: int
    total: int
    name: str


def _require_one_save(folder: Folder, names: Sequence[str]) -> list[_Shard]:
    """Return what the names say, file by file of the model.

    Raises:
        UnsafeFileError: They count the files of the model differently, or beyond their number.
    """
    matches = [match for name in names if (match := _SHARD.fullmatch(name))]
    shards = sorted(_Shard(int(m[2]), int(m[1]), int(m[3]), m[0]) for m in matches)
    totals = sorted({shard.total for shard in shards})
    if len(totals) > 1:
        raise UnsafeFileError(
            folder.path,
            "holds shards of several saves",
            saw=listed([f"shard-*-of-{total:05d}.safetensors" for total in totals]),
            expected="one number of files",
            hint="Remove the older ones; the time of change tells which they are: ls -l",
        )
    if wrong := [shard for shard in shards if not 1 <= shard.index <= shard.total or shard.rank < 1]:
        raise UnsafeFileError(folder.at(wrong[0].name), "has a name that counts wrongly")
    return shards


def _absent(shards: Sequence[_Shard]) -> Absent:
    """Return names of files that those of the others make likely, and that are not there."""
    there = {(shard.rank, shard.index) for shard in shards}
    ranks, total = max(shard.rank for shard in shards), shards[0].total
    if ranks * total > 16 * len(shards) + 1024:  # names that count to anything prove nothing
        return Absent((), ())
    between = [cell for cell in product(range(1, ranks + 1), range(1, total + 1)) if cell not in there]
    after = [(ranks + 1, index) for index in range(1, total + 1)]
    return Absent(
        *(
            tuple(f"shard-{rank:05d}-model-{index:05d}-of-{total:05d}.safetensors" for rank, index in cells)
            for cells in (between, after)
        )
    )


def _layout(folder: Folder, shards: Sequence[_Shard]) -> Layout:
    ranks = len({shard.rank for shard in shards})
    parts = f"{counted(len(shards), 'file')} of {counted(ranks, 'rank')}"
    evidence = [f"`{shards[0].name}` and its like: {parts}"]
    writer = None
    if (folder.path / _AUTOMODEL).is_dir():
        writer = "NeMo Automodel"
        evidence.append(f"`{_AUTOMODEL}/` lies beside it")
    elif "config.json" in folder.files:
        writer = "transformers"
        evidence.append("`config.json` lies beside it")
    title = f"safetensors sharded by PyTorch DCP: {parts}"
    return Layout("sharded-safetensors", title, writer, tuple(evidence))


def _base_hints(folder: Folder) -> Iterator[BaseHint]:
    place = folder.path / _AUTOMODEL
    if (place / "config.json").is_file():
        yield BaseHint(str(place), f"config.json in `{_AUTOMODEL}/` beside the shards")
