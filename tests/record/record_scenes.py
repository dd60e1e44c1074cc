"""Records of tiny models, made with torch and hashlib alone, and folders that have one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from unshard.record.description import (
    BaseOfTraining,
    BoxDigest,
    Code,
    Device,
    Distribution,
    Environment,
    Fingerprint,
    ModelOfTraining,
    Precision,
    Record,
    RecordTensor,
    SequencePrint,
    TokenizerOfTraining,
    TrainingConfig,
)
from unshard.record.writing import record_to_bytes

DIGEST = "0123456789abcdef" * 4


def digests_of(tensor: torch.Tensor, ranks: int = 2) -> tuple[BoxDigest, ...]:
    """Return the digests of a tensor dealt out by rows, as FSDP2 does it."""
    if not tensor.dim():
        return (BoxDigest((), (), sha256_of(tensor)),)
    found, start = [], 0
    for rows in tensor.chunk(ranks):
        low, high = (0,) * tensor.dim(), tuple(rows.shape)
        found.append(BoxDigest((start, *low[1:]), (start + high[0], *high[1:]), sha256_of(rows.contiguous())))
        start += high[0]
    return tuple(found)


def sha256_of(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def tensors_of(
    state: Mapping[str, torch.Tensor], dtypes: Sequence[torch.dtype] = ()
) -> dict[str, RecordTensor]:
    """Return the tensors of a record: in the dtype that they have, and cast to others."""
    found = {}
    for name, tensor in state.items():
        wanted = dict.fromkeys((tensor.dtype, *dtypes))
        found[name] = RecordTensor(
            tuple(tensor.shape),
            dtype_name(tensor.dtype),
            {dtype_name(dtype): digests_of(tensor.to(dtype)) for dtype in wanted},
        )
    return found


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def record_of(tensors: Mapping[str, RecordTensor], **others: object) -> Record:
    """Return a record that has everything, apart from what is given."""
    whole = Record(
        unshard="0.1.0",
        created="2026-11-24T12:00:00+00:00",
        step=400,
        seed=(1 << 64) - 1,
        data="two thousand dialogues",
        training=TrainingConfig(
            "dataclass",
            {"lr": 1e-5, "clip": float("inf"), "nested": {"betas": [0.9, 0.95]}, "name": None},
            (),
        ),
        base=BaseOfTraining("org/model", "a" * 40),
        model=ModelOfTraining("models.Llama", {"model_type": "llama"}, "sdpa", 1000, 900, {}, {}),
        tokenizer=TokenizerOfTraining("LlamaTokenizer", 515, {"tokenizer.json": DIGEST}),
        code=Code(("train.py", "--token", "***"), "b" * 40, dirty=True),
        environment=Environment(
            "3.11.9",
            "Linux 6.1 x86_64",
            {"torch": "2.13.0"},
            devices=(Device("NVIDIA H100", "9.0", 80 << 30, 8),),
        ),
        distribution=Distribution(
            "fsdp2", 2, "gloo", mesh={"dp": 2}, precision=Precision(parameters="bfloat16")
        ),
        tensors=tensors,
        fingerprint=Fingerprint(
            "float32",
            "bfloat16",
            "sdpa",
            "cpu",
            515,
            2,
            4,
            (
                SequencePrint(
                    "english", "Ä", (1, 2), (float("nan"),), (3, 4), (0.5, 1e-7), (3,), (1.25,), DIGEST
                ),
            ),
        ),
    )
    return dataclasses.replace(whole, **others)  # type: ignore[arg-type]


def write_with_record(model: Path, folder: Path, *dtypes: torch.dtype, **others: object) -> Path:
    """Copy a model folder and put the record of its weights into it."""
    shutil.copytree(model, folder)
    state = load_file(folder / "model.safetensors")
    (folder / "unshard.record.json").write_bytes(
        record_to_bytes(record_of(tensors_of(state, dtypes), **others))
    )
    return folder


def flip_bit(folder: Path, name: str, element: int) -> None:
    """Flip the lowest bit of one element of a tensor in `model.safetensors`."""
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    header = int.from_bytes(content[:8], "little")
    entry = json.loads(content[8 : 8 + header])[name]
    size = {"F32": 4, "BF16": 2}[entry["dtype"]]
    content[8 + header + entry["data_offsets"][0] + element * size] ^= 1
    path.write_bytes(content)


def rewrite(folder: Path, change: Mapping[str, torch.Tensor]) -> None:
    """Write the weights again with some tensors replaced."""
    state = load_file(folder / "model.safetensors")
    save_file({**state, **change}, folder / "model.safetensors", metadata={"format": "pt"})
