"""Boxes of tensors written as DCP by torch's own writer, without state dicts that gather.

FSDP1's SHARDED_STATE_DICT gathers every unit before it cuts it up again. What DCP writes are boxes, and
the boxes that every rank holds are known: each is a chunk of its own, so one plan serves every flavour.

Source:
    torch/distributed/checkpoint/planner.py (`SavePlanner`, `WriteItem`), planner_helpers.py
    (`_create_write_item_for_tensor`), default_planner.py (`create_default_global_save_plan`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import FileSystemWriter, save
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from unshard.training.filling import Part


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part that this rank writes, and the shape of the tensor that it is a part of."""

    part: Part
    shape: tuple[int, ...]

    @property
    def key(self) -> tuple[str, tuple[int, ...]]:
        """The tensor, and where in it the part begins."""
        return self.part.name, self.part.box.start


class BoxPlanner(DefaultSavePlanner):  # type: ignore[misc]  # torch's types are not read
    """Plans one chunk for every part that a rank writes; every part is written by one rank."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        super().__init__()
        self.chunks = {chunk.key: chunk for chunk in chunks}

    def create_local_plan(self) -> SavePlan:
        """Return what this rank writes; names were never joined, so each is its own path."""
        paths = {name: (name,) for name, _ in self.chunks}
        self.plan = SavePlan([_write_item(chunk) for chunk in self.chunks.values()], planner_data=paths)
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        """Return the elements of a chunk."""
        assert index.offset is not None
        return self.chunks[index.fqn, tuple(index.offset)].part.memory.detach()


def write_chunks(folder: Path, chunks: Iterable[Chunk], group: dist.ProcessGroup | None) -> None:
    """Write the chunks of all ranks into `folder`; every rank of `group` calls it.

    Memory:
        One chunk at a time where it lies on a device or is part of a larger storage.
    """
    write_state({}, folder, group, planner=BoxPlanner(chunks))


def write_state(
    state: Mapping[str, Any],
    folder: Path,
    group: dist.ProcessGroup | None,
    *,
    planner: DefaultSavePlanner | None = None,
) -> None:
    """Write a state dict as DCP, as torch does."""
    with quiet_torch():
        save(dict(state), storage_writer=FileSystemWriter(folder), planner=planner, process_group=group)


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Keep what torch says of its own deprecated parts from the user, who did not call them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\.")
        yield


def _write_item(chunk: Chunk) -> WriteItem:
    box, memory = chunk.part.box, chunk.part.memory
    return WriteItem(
        index=MetadataIndex(chunk.part.name, torch.Size(box.start)),
        type=WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            chunk=ChunkStorageMetadata(offsets=torch.Size(box.start), sizes=torch.Size(box.shape)),
            properties=TensorProperties(dtype=memory.dtype),
            size=torch.Size(chunk.shape),
        ),
    )
