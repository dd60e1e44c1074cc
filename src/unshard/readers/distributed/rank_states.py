"""What one rank saved: its parts of distributed tensors, and tensors that it saved whole."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from unshard.checkpoint import Extra
from unshard.errors import UnsupportedLayoutError
from unshard.findings import Finding
from unshard.readers.distributed.dtensor import describe_dtensor
from unshard.readers.distributed.parts import DistributedTensor
from unshard.readers.distributed.reading import Reading
from unshard.readers.distributed.sharded_tensor import describe_sharded_tensor
from unshard.readers.rendering import cut, listed
from unshard.readers.torch_save.torch_file import describe_torch_file
from unshard.readers.torch_save.torch_objects import OtherTensor, StoredTensor, describe_tensor
from unshard.readers.torch_save.torch_state import (
    ChosenModel,
    choose_model,
    require_modest,
    told_of_choice,
)
from unshard.readers.torch_save.torch_storages import TorchFile
from unshard.readers.unpickling import Entries, Record
from unshard.storage.files import InputFile
from unshard.tensors import Box

RankTensor = DistributedTensor | StoredTensor


@dataclass(frozen=True, slots=True)
class RankState:
    """What one rank saved of the model that is meant.

    Attributes:
        file: The name of its file in the checkpoint's folder.
        rank: Which rank it is, from the file's name.
        saved: The file; its object (`value`) is dropped, since a thousand of them would not fit.
        container: Where in the file the model lies.
        selected: The prefix that `--select` removed from its names, or "".
        tensors: By name: parts of distributed tensors, and plain tensors. A plain tensor is whole, or a
            slice of a flat parameter.
        modules: Names of the model's modules in the order in which it registers them, from the state
            dict's `_metadata`; empty where the file does not tell.
        extras: What else is in the file.
        told: What a person should know of where in the file the model lies.
    """

    file: str
    rank: int
    saved: TorchFile
    container: tuple[str, ...]
    selected: str
    tensors: Mapping[str, RankTensor]
    modules: tuple[str, ...] = ()
    extras: tuple[Extra, ...] = ()
    told: tuple[Finding, ...] = ()

    @property
    def distributed(self) -> Mapping[str, DistributedTensor]:
        """The tensors of which the rank holds a part."""
        return {n: t for n, t in self.tensors.items() if isinstance(t, DistributedTensor)}

    def stored(self, names: Collection[str]) -> Iterator[tuple[str, StoredTensor]]:
        """Yield everything that the rank stored under some names, with its name."""
        for name, tensor in self.tensors.items():
            if name in names:
                pieces = tensor.pieces if isinstance(tensor, DistributedTensor) else ()
                yield from ((name, piece.stored) for piece in pieces)
                if isinstance(tensor, StoredTensor):
                    yield name, tensor

    @property
    def world_size(self) -> int | None:
        """How many ranks there were at least, as far as the tensors tell."""
        told = [t.world_size for t in self.tensors.values() if isinstance(t, DistributedTensor)]
        return max((size for size in told if size is not None), default=None)


@dataclass(frozen=True, slots=True)
class SharedLayouts:
    """What the files of many ranks say alike, kept once."""

    _known: dict[frozenset[Box], frozenset[Box]] = field(default_factory=dict)

    def of(self, boxes: frozenset[Box]) -> frozenset[Box]:
        """Return the boxes that are equal to these and were there first."""
        return self._known.setdefault(boxes, boxes)


def describe_rank_state(
    file: InputFile, rank: int, *, select: str | None, shared: SharedLayouts
) -> RankState:
    """Return what a rank saved into a file of torch.save; no tensor is read, but for its mesh.

    Raises:
        TrainingStateError: It holds only training state.
        AmbiguousModelError: It holds several models, and `select` does not name one.
        UnsupportedLayoutError: Its tensors are of a kind that is not read.
        InputError: It cannot be read.
    """
    saved = describe_torch_file(file)
    return rank_state_of(choose_model(saved, select), rank, shared=shared)


def rank_state_of(model: ChosenModel, rank: int | None, *, shared: SharedLayouts) -> RankState:
    """Return what a rank saved, from the model in its file; `describe_rank_state` says the rest.

    Args:
        model: The model.
        rank: Which rank it is by the name of the file, or None where only the file itself tells.
        shared: What files say alike.
    """
    saved = model.saved
    tensors = _describe_all(model, rank, shared)
    require_modest(saved, _stored(tensors))
    return RankState(
        saved.file.path.name,
        rank or 0,
        replace(saved, value=None),
        model.chosen.container,
        model.chosen.prefix,
        tensors,
        _modules(saved, model.chosen.container),
        model.contents.extras,
        tuple(told_of_choice(model, saved.file.path.name)),
    )


def _describe_all(model: ChosenModel, rank: int | None, shared: SharedLayouts) -> dict[str, RankTensor]:
    saved = model.saved
    reading = Reading(saved, rank)
    tensors: dict[str, RankTensor] = {}
    others: dict[str, OtherTensor] = {}
    for name, record in model.chosen.tensors.items():
        found = _describe(record, reading, name)
        if isinstance(found, OtherTensor):
            others[name] = found
        elif isinstance(found, DistributedTensor) and found.everything:
            tensors[name] = replace(found, everything=shared.of(found.everything))
        else:
            tensors[name] = found
    if others:
        raise UnsupportedLayoutError(
            saved.file.path,
            f"holds {len(others)} tensors of kinds that are not read",
            saw=listed([f"`{cut(name)}` is {other.kind}" for name, other in others.items()]),
            expected="plain tensors, DTensors that are sharded or replicated, ShardedTensors",
            hint="Save a full state dict instead, or name another model in the file with --select.",
        )
    return tensors


def _describe(record: Record, reading: Reading, name: str) -> RankTensor | OtherTensor:
    found = describe_tensor(record, reading.saved, name)
    if isinstance(found, StoredTensor) or found.part is None:
        return found
    if found.kind == "DTensor":
        return describe_dtensor(found.part, reading, name)
    return describe_sharded_tensor(found.part, reading, name)


def _stored(tensors: Mapping[str, RankTensor]) -> dict[str, StoredTensor]:
    """Return everything that is stored, under names for an error."""
    found: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, StoredTensor):
            found[name] = tensor
        else:
            found |= {f"{name}[{i}]": piece.stored for i, piece in enumerate(tensor.pieces)}
    return found


def _modules(saved: TorchFile, container: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names in the `_metadata` of the state dict in a container."""
    node = saved.value
    for key in container:
        node = node.get(key) if type(node) is Entries else None
    attached = node.state if type(node) is Entries else None
    metadata = attached.get("_metadata") if type(attached) is Entries else None
    return tuple(metadata) if type(metadata) is Entries else ()
