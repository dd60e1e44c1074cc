"""One file per rank: what torch's own classes leave, whole, incomplete and damaged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from awkward import plain_tensors
from rank_writers import (
    hybrid,
    over_tensor_parallelism,
    write_dtensors,
    write_sharded_tensors,
)
from reader_suite import FolderSuite, ReaderSuite


def shared_tensors() -> dict[str, torch.Tensor]:
    """Return what ranks can share out: the plain tensors, uneven ones, and one under two names."""
    state = dict(plain_tensors())
    state["uneven"] = torch.arange(7 * 2, dtype=torch.int16).reshape(7, 2)
    state["wide"] = torch.arange(4 * 6, dtype=torch.float32).reshape(4, 6)
    state["deep"] = torch.arange(5 * 3 * 2, dtype=torch.float64).reshape(5, 3, 2)
    state["tied.embedding"] = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    state["tied.head"] = state["tied.embedding"]
    return state


class TestDTensors(FolderSuite):
    @classmethod
    def tensors(cls) -> Mapping[str, torch.Tensor]:
        return shared_tensors()

    @classmethod
    def write(cls, tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
        return write_dtensors(tensors, folder, mesh_shape=(3,))


class TestDTensorsOfMoreRanksThanRows(FolderSuite):
    @classmethod
    def tensors(cls) -> Mapping[str, torch.Tensor]:
        return {"one": torch.ones(1, 2), **shared_tensors()}

    @classmethod
    def write(cls, tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
        return write_dtensors(tensors, folder, mesh_shape=(4,))


class TestDTensorsOverTensorParallelism(FolderSuite):
    @classmethod
    def tensors(cls) -> Mapping[str, torch.Tensor]:
        return shared_tensors()

    @classmethod
    def write(cls, tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
        return write_dtensors(tensors, folder, mesh_shape=(2, 2), place=over_tensor_parallelism)


class TestDTensorsWithReplicas(ReaderSuite):
    @classmethod
    def tensors(cls) -> Mapping[str, torch.Tensor]:
        return shared_tensors()

    @classmethod
    def write(cls, tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
        return write_dtensors(tensors, folder, mesh_shape=(2, 2), place=hybrid)


class TestShardedTensors(FolderSuite):
    @classmethod
    def tensors(cls) -> Mapping[str, torch.Tensor]:
        return shared_tensors()

    @classmethod
    def write(cls, tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
        return write_sharded_tensors(tensors, folder, world_size=2)


class TestShardedTensorsOfManyShards(FolderSuite):
    @classmethod
    def tensors(cls) -> Mapping[str, torch.Tensor]:
        return shared_tensors()

    @classmethod
    def write(cls, tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
        return write_sharded_tensors(tensors, folder, world_size=2, parts=2)
