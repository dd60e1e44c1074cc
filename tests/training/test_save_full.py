"""`save_full` on real ranks: what it writes is the model, byte for byte what a conversion of it writes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from transformers import AutoModelForCausalLM

import unshard
from trainers.ranks import run_ranks
from trainers.run import Wrapping
from trainers.tiny_llama import tiny_llama, write_base
from trainers.wrapping import fsdp1, fsdp2
from unshard.training.saving import Saved, save_full

WAYS: Mapping[str, Wrapping] = {
    "fsdp1": Wrapping(1),
    "fsdp1-flat": Wrapping(1, use_orig_params=False),
    "hsdp1": Wrapping(1, mesh=("replicate", "shard")),
    "fsdp2": Wrapping(2),
    "hsdp2": Wrapping(2, mesh=("replicate", "shard")),
    "fsdp2-tp": Wrapping(2, mesh=("fsdp", "tp")),
}
PLAIN = ("ddp", "plain")
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "keep": {},
    "bf16": {"dtype": "bfloat16"},
    "small files": {"max_shard_size": "60KB"},
    "pt": {"format": "pt"},
}


def distributed(name: str, model: Any) -> nn.Module:
    if name in WAYS:
        return fsdp1(model, WAYS[name]) if WAYS[name].fsdp == 1 else fsdp2(model, WAYS[name])
    return nn.parallel.DistributedDataParallel(model) if name == "ddp" else model


def save_in_all_ways(folder: str) -> None:
    warnings.filterwarnings("ignore", category=FutureWarning)
    place = Path(folder)
    for name in (*WAYS, *PLAIN):
        model = distributed(name, tiny_llama(7, tied=False, dtype=torch.float32))
        for asked, options in OPTIONS.items() if name in ("fsdp1", "fsdp2-tp", "hsdp2") else [("keep", {})]:
            saved = save_full(
                model,
                place / name / asked,
                tokenizer=place / "base",
                base=place / "base",
                record=False,
                durable=False,
                timeout_seconds=60,
                **options,
            )
            keep(place / name / f"{asked}.json", saved)


def keep(path: Path, saved: Saved) -> None:
    if dist.get_rank() == 0:
        told = {"codes": [f.code for f in saved.findings], "bytes": saved.output_bytes}
        path.write_text(json.dumps(told))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saves")
    write_base(folder / "base", tied=False)
    whole = tiny_llama(7, tied=False, dtype=torch.float32)
    torch.save(whole.state_dict(), folder / "whole.pt")
    run_ranks(4, save_in_all_ways, str(folder), timeout_seconds=120)
    return folder


def converted(place: Path, out: Path, *, dtype: Any = "keep", **options: Any) -> Path:
    unshard.convert(place / "whole.pt", out, base=place / "base", dtype=dtype, durable=False, **options)
    return out


@pytest.mark.parametrize("name", [*WAYS, *PLAIN])
def test_the_saved_files_are_those_that_a_conversion_writes(place: Path, name: str, tmp_path: Path) -> None:
    expected = converted(place, tmp_path / "out") / "model.safetensors"
    saved = place / name / "keep" / "model.safetensors"
    assert saved.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("asked", list(OPTIONS))
@pytest.mark.parametrize("name", ["fsdp1", "fsdp2-tp", "hsdp2"])
def test_options_change_files_as_they_do_in_a_conversion(
    place: Path, name: str, asked: str, tmp_path: Path
) -> None:
    options = dict(OPTIONS[asked])
    if "format" in options:
        options["to"] = options.pop("format")
    expected = converted(place, tmp_path / "out", **options)
    files = {path.name for path in expected.iterdir() if path.suffix in (".safetensors", ".bin")}
    assert files
    for file in (*files, *(p.name for p in expected.glob("*.index.json"))):
        assert (place / name / asked / file).read_bytes() == (expected / file).read_bytes()


@pytest.mark.parametrize("name", [*WAYS, *PLAIN])
def test_transformers_loads_exactly_the_weights_of_training(place: Path, name: str) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(place / name / "keep", dtype=torch.float32)
    truth = torch.load(place / "whole.pt", weights_only=True)
    state = loaded.state_dict()
    assert state.keys() == truth.keys()
    assert all(torch.equal(state[key], truth[key]) for key in truth)
