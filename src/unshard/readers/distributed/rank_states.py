"""What one rank saved: its parts of distributed tensors, and tensors that it saved whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unshard.checkpoint import Extra
from unshard.readers.distributed.parts import DistributedTensor
from unshard.readers.torch_save.torch_objects import StoredTensor
from unshard.readers.torch_save.torch_storages import TorchFile


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
    """

    file: str
    rank: int
    saved: TorchFile
    container: tuple[str, ...]
    selected: str
    tensors: Mapping[str, DistributedTensor | StoredTensor]
    modules: tuple[str, ...] = ()
    extras: tuple[Extra, ...] = ()
