"""Inputs of the benchmarks of sharded layouts: made once by eight real processes, kept in a folder.

    python benchmarks/sharded_inputs.py [--work DIR]

    sharded-bfloat16/dcp/pytorch_model_fsdp_0/   DCP of TinyLlama-1.1B's shapes, sharded by rows, 2.2 GB
    sharded-bfloat16/columns/                    the same, matrices sharded by columns (tensor parallel)
    sharded-bfloat16/verl/actor/                 one file of DTensors per rank, and its base beside them
    sharded-bfloat16/hf/                         safetensors of torch's HuggingFaceStorageWriter
    dcp-405b-<ranks>/                            DCP of Llama-3.1-405B: all of its metadata, and holes

The state dicts are made of DTensors on a mesh of eight gloo ranks, which is what FSDP2 and tensor
parallelism leave; every file is written by torch's own writers.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inputs import DEFAULT_WORK, LLAMA_405B, TINYLLAMA, Llama, tinyllama_base

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Placement

RANKS = 8
_OVERHEAD_BYTES = 1_500  # of the archive around every chunk


def sharded(work: Path) -> Path:
    """Return the folder of the checkpoints of eight ranks, made if it is not there."""
    folder = work / "sharded-bfloat16"
    if not folder.exists():
        half = folder.with_name(f"{folder.name}.half")
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        _write_with_ranks(half, tinyllama_base(work))
        half.rename(folder)
    return folder


def dcp_405b(work: Path, ranks: int) -> Path:
    """Return the checkpoint of Llama-3.1-405B over many ranks, whose data are holes."""
    folder = work / f"dcp-405b-{ranks}"
    if not folder.exists():
        half = folder.with_name(f"{folder.name}.half")
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        _write_hole(LLAMA_405B, ranks, half)
        half.rename(folder)
    return folder


def _write_with_ranks(folder: Path, base: Path) -> None:
    import torch.multiprocessing

    huggingface = folder / "verl" / "actor" / "huggingface"
    huggingface.mkdir(parents=True)
    shutil.copy(base / "config.json", huggingface)
    _write_tokenizer(huggingface)
    settings = {"FSDP_version": 2, "world_size": RANKS}
    (huggingface.parent / "fsdp_config.json").write_text(json.dumps(settings))
    torch.multiprocessing.spawn(_rank, (str(folder),), nprocs=RANKS)


def _write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of one word; verl's merger wants one."""
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}\n')


def _rank(rank: int, folder: str) -> None:
    """Write what one rank writes of every layout."""
    import torch
    import torch.distributed
    from torch.distributed import checkpoint
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(f"{folder}/store", RANKS), rank=rank, world_size=RANKS
    )
    mesh = init_device_mesh("cpu", (RANKS,), mesh_dim_names=("fsdp",))
    rows = _state(mesh, rank, lambda shape: Shard(0))
    top = Path(folder)
    checkpoint.save({"model": rows}, checkpoint_id=top / "dcp" / "pytorch_model_fsdp_0")
    torch.save(rows, top / "verl" / "actor" / f"model_world_size_{RANKS}_rank_{rank}.pt")
    writer = checkpoint.HuggingFaceStorageWriter(
        str(top / "hf"), fqn_to_index_mapping=dict.fromkeys(rows, 1), save_distributed=True
    )
    checkpoint.save(rows, storage_writer=writer)
    del rows
    columns = _state(mesh, rank, lambda shape: Shard(1) if len(shape) > 1 else Replicate())
    checkpoint.save({"model": columns}, checkpoint_id=top / "columns")
    torch.distributed.destroy_process_group()


def _state(
    mesh: DeviceMesh, rank: int, placement: Callable[[tuple[int, ...]], Placement]
) -> dict[str, DTensor]:
    """Return this rank's part of random weights."""
    import torch
    from torch.distributed.tensor import DTensor, Shard

    generator = torch.Generator().manual_seed(rank)
    state = {}
    for name, shape in TINYLLAMA.shapes():
        place = placement(shape)
        part = list(shape)
        if isinstance(place, Shard):
            part[place.dim] //= RANKS
            chosen = generator
        else:
            chosen = torch.Generator().manual_seed(0)
        local = torch.empty(part, dtype=torch.bfloat16).normal_(0, 0.02, generator=chosen)
        state[name] = DTensor.from_local(local, mesh, [place], run_check=False)
    return state


def _write_hole(model: Llama, ranks: int, folder: Path) -> None:
    """Write the metadata of a model sharded by rows, and files of the right size without data."""
    import torch
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

    tensors: dict[str, Any] = {}
    stored: dict[Any, Any] = {}
    sizes = [0] * ranks
    for name, shape in model.shapes():
        chunks = []
        for rank, start, stop in _rows(shape[0], ranks):
            size = torch.Size((stop - start, *shape[1:]))
            chunk = ChunkStorageMetadata(torch.Size((start, *(0 for _ in shape[1:]))), size)
            chunks.append(chunk)
            length = 2 * math.prod(size) + _OVERHEAD_BYTES
            index = MetadataIndex(f"model.{name}", chunk.offsets, rank)
            stored[index] = _StorageInfo(f"__{rank}_0.distcp", sizes[rank], length)
            sizes[rank] += length
        properties = TensorProperties(dtype=torch.bfloat16)
        tensors[f"model.{name}"] = TensorStorageMetadata(properties, torch.Size(shape), chunks)
    planned = {name: ("model", name.removeprefix("model.")) for name in tensors}
    metadata = Metadata(tensors, planned, stored)
    with (folder / ".metadata").open("wb") as file:
        pickle.dump(metadata, file, protocol=4)
    for rank, size in enumerate(sizes):
        with (folder / f"__{rank}_0.distcp").open("wb") as file:
            file.truncate(size)
    (folder / "config.json").write_text(json.dumps(model.config(), indent=2) + "\n")


def _rows(count: int, ranks: int) -> Iterator[tuple[int, int, int]]:
    """Yield (rank, start, stop) of the rows that every rank holds, as `torch.chunk` deals them out."""
    step = -(-count // ranks)
    for rank in range(ranks):
        start, stop = min(count, rank * step), min(count, (rank + 1) * step)
        if start < stop:
            yield rank, start, stop


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="where they are kept")
    work = parser.parse_args().work
    for path in (sharded(work), dcp_405b(work, 8), dcp_405b(work, 1024)):
        print(path)


if __name__ == "__main__":
    main()
