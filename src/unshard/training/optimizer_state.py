"""The state of an optimizer beside a model, as DCP: written by torch, read without running a pickle.

    optimizer/.metadata, optimizer/__<rank>_<i>.distcp
        state.<parameter>.exp_avg        tensors in the parameter's shape, by its name in the module
        param_groups.<parameter>.lr      numbers, each a small pickle of its own

torch lists what belongs to which parameter, and puts it back; the bytes are read by this package's own
reader, straight into the memory that the optimizer holds them in.

Source:
    torch/distributed/checkpoint/state_dict.py (`get_optimizer_state_dict`, `_flatten_optim_state_dict`,
    `_init_optim_state`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from unshard.errors import MatchError, Mismatch, TrainingStateError, UnsafeFileError
from unshard.findings import Finding, finding
from unshard.readers.dcp.metadata_file import read_metadata
from unshard.readers.dcp.model import describe_chunks
from unshard.readers.dcp.tables import NOWHERE, ItemRow, Tables
from unshard.readers.folders import Folder, Tree
from unshard.readers.layouts.dcp import METADATA
from unshard.readers.torch_save.torch_zip import describe_torch_zip
from unshard.storage.files import InputFile
from unshard.tensors import Box, DescribedTensor
from unshard.training.filling.parts import Filler
from unshard.training.live.dtensor_parts import dtensor_parts
from unshard.training.live.local_parts import LocalPart
from unshard.training.live.resharding import let_go_of_copies
from unshard.training.ranks.protocol import Ranks
from unshard.training.writing.sharded import quiet_torch, write_state

FOLDER = "optimizer"

_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
_LARGEST_VALUE = 1 << 20


@dataclass(frozen=True, slots=True)
class SavedState:
    """The state of an optimizer on disk.

    Attributes:
        path: Its folder.
        tensors: Tensors by name.
        values: Plain values by name.
    """

    path: Path
    tensors: Mapping[str, DescribedTensor]
    values: Mapping[str, object]


def has_state(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer has made a step, and remembers it."""
    return bool(optimizer.state)


def write_optimizer(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, folder: Path, ranks: Ranks
) -> tuple[Finding, ...]:
    """Write the state of an optimizer into `folder/optimizer`; every rank calls it.

    Memory:
        FSDP2, DDP: what torch's writer copies, one part at a time. FSDP1: torch gathers the state of one
        unit after the other.
    """
    if not has_state(optimizer):  # torch would make a step to have one
        saw = "it has made no step, or keeps nothing from one step to the next"
        return (finding("U165", subject=type(optimizer).__name__, saw=saw),)
    states: list[Mapping[str, Any]] = []

    def read() -> None:
        # torch looks for the optimizer's parameters among the model's, which must be no gathered copies.
        let_go_of_copies(model)
        with quiet_torch():
            states.append(get_optimizer_state_dict(model, optimizer, options=_FLAT))

    ranks.together("reading the optimizer", read)
    write_state(states[0], folder / FOLDER, ranks)
    return ()


def describe_optimizer(checkpoint: Path) -> SavedState:
    """Return the state of the optimizer that was saved with a checkpoint; its tensors are not read.

    Raises:
        TrainingStateError: None was.
        InputError: It cannot be read, or is not whole.
    """
    path = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / FOLDER
    if not (path / METADATA).is_file():
        raise TrainingStateError(
            checkpoint,
            "was saved without the state of an optimizer",
            saw=f"no {FOLDER}/{METADATA} in {path.parent}",
            hint="Load without optimizer=, and training begins with a fresh one; or name a checkpoint that "
            "save_full or save_sharded wrote with optimizer=.",
        )
    folder = Tree((path,)).look_into(path)
    tables = read_metadata(InputFile.describe(folder.at(METADATA)))
    chunks, _ = describe_chunks(tables, {row.name: row for row in tables.tensors}, folder)
    values = {item.name: _value(tables, item, folder) for item in tables.items}
    return SavedState(path, chunks.tensors(), values)


def _value(tables: Tables, item: ItemRow, folder: Folder) -> object:
    """Return a plain value, read as data.

    Raises:
        UnsafeFileError: It is none, or lies outside of its file.
    """
    name = "" if item.file == NOWHERE else tables.files[item.file]
    if name in folder.files and item.start >= 0 and item.length <= _LARGEST_VALUE:
        file = InputFile.describe(folder.at(name))
        value = describe_torch_zip(file, item.start, item.start + item.length).value
        if _is_plain(value):
            return value
    raise UnsafeFileError(
        folder.path,
        "holds a value of an optimizer that is none",
        saw=f"`{item.name}`",
        expected="a number, a text, a truth value, or several of them",
        hint="torch does not write such values. Copy the folder again, or load without optimizer=.",
    )


def _is_plain(value: object) -> bool:
    if type(value) in (list, tuple):
        assert isinstance(value, list | tuple)
        return all(type(one) in (int, float, bool, str, type(None)) for one in value)
    return type(value) in (int, float, bool, str, type(None))


def fill_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer, saved: SavedState) -> int:
    """Put a saved state into an optimizer of a model; return the bytes read. Every rank calls it.

    Raises:
        MatchError: It is the state of other parameters, or of another kind of optimizer; the optimizer is
            as it was.
        DamagedFileError: A file is shorter than it should be, or has changed.
    """
    fresh = not has_state(optimizer)
    try:
        with quiet_torch():
            state = get_optimizer_state_dict(model, optimizer, options=_FLAT)
            _require_same(optimizer, state, saved)
            filler, read = Filler(), 0
            for name, value in state.items():
                for part in _parts(name, value):
                    read += filler.fill(part, saved.tensors[name])
            set_optimizer_state_dict(model, optimizer, {**state, **saved.values}, options=_FLAT)
        filler.require_unchanged()
    except BaseException:
        if fresh:  # torch made a step without gradients, to have a state to fill
            optimizer.state.clear()
        raise
    return read


def _parts(name: str, value: object) -> list[LocalPart]:
    """Return what this rank holds of an entry; nothing of what is no tensor."""
    if isinstance(value, DTensor):
        return dtensor_parts(name, value, by_fsdp=True)
    if isinstance(value, ShardedTensor):
        shards = [(shard, shard.metadata) for shard in value.local_shards()]
        return [LocalPart(_box(at.shard_offsets, at.shard_sizes), shard.tensor) for shard, at in shards]
    return [LocalPart(Box.whole(value.shape), value)] if isinstance(value, torch.Tensor) else []


def _box(start: Sequence[int], sizes: Sequence[int]) -> Box:
    """Return the box that begins at `start` and has these sizes."""
    return Box(tuple(start), tuple(a + n for a, n in zip(start, sizes, strict=True)))


def _require_same(optimizer: torch.optim.Optimizer, state: Mapping[str, Any], saved: SavedState) -> None:
    """Raise unless a saved state has the entries, shapes and dtypes that an optimizer has."""
    wrong: list[Mismatch] = []
    for name, value in state.items():
        is_tensor = isinstance(value, torch.Tensor | ShardedTensor)
        if name not in (saved.tensors if is_tensor else saved.values):
            wrong.append(Mismatch("missing", name))
        elif is_tensor:
            tensor = saved.tensors[name]
            ours = tuple(value.size()), str(value.dtype).removeprefix("torch.")
            theirs = tensor.shape, tensor.dtype.name
            if ours != theirs:
                wrong.append(Mismatch("shape", name, " ".join(map(str, theirs)), " ".join(map(str, ours))))
    unexpected = [name for name in (*saved.tensors, *saved.values) if name not in state]
    wrong += [Mismatch("unexpected", name) for name in unexpected]
    if wrong:
        first = ", ".join(f"`{each.name}` is {each.kind}" for each in wrong[:3])
        raise MatchError(
            saved.path,
            f"is not the state of this {type(optimizer).__name__}: {len(wrong)} entries differ ({first})",
            mismatches=wrong,
            hint="Make the optimizer as it was when the checkpoint was saved: of the same class, with the "
            "same options and parameters; or load without optimizer=.",
        )
