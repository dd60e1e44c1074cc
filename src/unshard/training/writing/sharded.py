"""Boxes of tensors written as DCP by torch's own writer, without state dicts that gather.

FSDP1's SHARDED_STATE_DICT gathers every unit before it cuts it up again. What DCP writes are boxes, and
the boxes that every rank holds are known: each is a chunk of its own, so one plan serves every flavour.

Source:
    torch/distributed/checkpoint/planner.py (`SavePlanner`, `WriteItem`), planner_helpers.py
    (`_create_write_item_for_tensor`), default_planner.py (`create_default_global_save_plan`),
    state_dict_saver.py (`_save_state_dict`: who calls what, in which order).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from unshard.training.live.local_parts import LocalPart
from unshard.training.ranks.protocol import Ranks


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part that this rank writes.

    Attributes:
        name: The tensor.
        shape: Its whole shape.
        part: The part.
    """

    name: str
    shape: tuple[int, ...]
    part: LocalPart

    @property
    def key(self) -> tuple[str, tuple[int, ...]]:
        """The tensor, and where in it the part begins."""
        return self.name, self.part.box.start


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
        return self.chunks[index.fqn, tuple(index.offset)].part.elements


def write_chunks(folder: Path, chunks: Iterable[Chunk], ranks: Ranks) -> None:
    """Write the chunks of all ranks into `folder`; every rank calls it.

    Memory:
        One chunk at a time where it lies on a device, or is part of a larger storage.
    """
    write_state({}, folder, ranks, planner=BoxPlanner(chunks))


def write_state(
    state: Mapping[str, Any], folder: Path, ranks: Ranks, *, planner: DefaultSavePlanner | None = None
) -> None:
    """Write a state dict as DCP: torch's planner and writer, and our ranks between them."""
    writer, planner = FileSystemWriter(folder), planner or DefaultSavePlanner()
    is_first = ranks.rank == 0

    def plan() -> SavePlan:
        writer.set_up_storage_writer(is_first)
        planner.set_up_planner(dict(state), writer.storage_meta(), is_first)
        return writer.prepare_local_plan(planner.create_local_plan())

    plans = ranks.together("planning what each writes", plan)
    plans, metadata = planner.create_global_plan(plans)
    own = planner.finish_plan(writer.prepare_global_plan(plans)[ranks.rank])
    written = ranks.together("writing", lambda: writer.write_data(own, planner).wait())
    ranks.together("writing", lambda: writer.finish(metadata, written) if is_first else None)


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Keep what torch says of its own deprecated parts from the user, who did not call them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\.")
        # Whoever touches what FSDP1 gives is told so, at the place where it is touched.
        warnings.filterwarnings("ignore", message="Please use DTensor instead", category=FutureWarning)
        yield


def _write_item(chunk: Chunk) -> WriteItem:
    box, elements = chunk.part.box, chunk.part.elements
    return WriteItem(
        index=MetadataIndex(chunk.name, torch.Size(box.start)),
        type=WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            chunk=ChunkStorageMetadata(offsets=torch.Size(box.start), sizes=torch.Size(box.shape)),
            properties=TensorProperties(dtype=elements.dtype),
            size=torch.Size(chunk.shape),
        ),
    )
