"""Mistakes that people make with sharded checkpoints, for the file of all messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

import unshard
from dcp_folders import save
from rank_writers import write_dtensors
from step_folders import PARTS, write_step

State = dict[str, torch.Tensor]
Act = Callable[[Path, State], None]  # given the folder to make it in, and a sound state dict


def dcp(folder: Path, state: State) -> Path:
    """Return a checkpoint of DCP in one file."""
    return save({"model": state, "step": 3}, folder / "step-3")


def _without_metadata(folder: Path, state: State) -> None:
    (dcp(folder, state) / ".metadata").unlink()
    unshard.open(folder)


def _without_a_file(folder: Path, state: State) -> None:
    (dcp(folder, state) / "__0_0.distcp").unlink()
    unshard.open(folder)


def _cut_short(folder: Path, state: State) -> None:
    path = dcp(folder, state) / "__0_0.distcp"
    path.write_bytes(path.read_bytes()[:1000])
    unshard.open(folder)


def _damaged_metadata(folder: Path, state: State) -> None:
    path = dcp(folder, state) / ".metadata"
    path.write_bytes(path.read_bytes()[:4000])  # its size depends on the folder's name, which stands in it
    unshard.open(folder)


def _optimizer(folder: Path, state: State) -> None:
    moments = {f"{name}.exp_avg": tensor for name, tensor in state.items()}
    unshard.open(save({"optimizer": {"state": moments}}, folder / "optimizer_0"))


def _raw_bytes(folder: Path, state: State) -> None:
    path = dcp(folder, state) / "__0_0.distcp"
    path.write_bytes(b"\x07" * path.stat().st_size)
    unshard.convert(folder, folder.with_suffix(".out"))


def _without_a_rank(folder: Path, state: State) -> None:
    actor = write_dtensors(state, folder / "actor", mesh_shape=(4,))
    (actor / "model_world_size_4_rank_2.pt").unlink()
    unshard.open(folder)


def _one_rank_alone(folder: Path, state: State) -> None:
    actor = write_dtensors(state, folder / "actor", mesh_shape=(2,))
    (actor / "model_world_size_2_rank_1.pt").unlink()
    unshard.open(actor / "model_world_size_2_rank_0.pt")


def _shapes_that_nothing_tells(folder: Path, state: State) -> None:
    save_shard(folder / "shard-00001-model-00001-of-00001.safetensors", state)
    unshard.convert(folder, folder.with_suffix(".out"))


def save_shard(path: Path, state: State) -> None:
    """Write everything into one file of torch's sharded safetensors."""
    offsets = {name: {"saved_offsets": [0] * tensor.ndim} for name, tensor in state.items()}
    save_file(state, path, {"DCP_SHARDING_INFO": json.dumps(offsets), "DCP_VERSION": "1.0"})


def _newest_step_incomplete(folder: Path, _: State) -> None:
    for step in (100, 200):
        write_step(folder / f"checkpoint-{step}", step)
    (folder / "checkpoint-200" / PARTS[1]).unlink()
    unshard.open(folder, step=200)


def _different_copies(folder: Path, _: State) -> None:
    for node, value in (("node0", 1.0), ("node1", 2.0)):
        write_step(folder / node / "checkpoint-5", value)
    unshard.open([folder / "node0", folder / "node1"])


def _a_file_among_places(folder: Path, state: State) -> None:
    torch.save(state, folder / "model.pt")
    unshard.open([folder, folder / "model.pt"])


SHARDED_SCENES: dict[str, Act] = {
    "DCP without its metadata": _without_metadata,
    "DCP without a file": _without_a_file,
    "DCP whose file was cut short": _cut_short,
    "DCP whose metadata was cut short": _damaged_metadata,
    "DCP of an optimizer": _optimizer,
    "DCP whose blobs are no archives": _raw_bytes,
    "files of ranks, one of which is missing": _without_a_rank,
    "one file of several ranks": _one_rank_alone,
    "sharded safetensors without a base": _shapes_that_nothing_tells,
    "a step that was asked for and is incomplete": _newest_step_incomplete,
    "two nodes with different files of one name": _different_copies,
    "a file among the folders of nodes": _a_file_among_places,
}
