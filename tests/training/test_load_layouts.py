"""Checkpoints that real trainers left, loaded into models in training: other ranks, other wrappers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from trainers.catalogue import RUNS, TrainedCheckpoint
from trainers.loading_runs import Scene, load_scenes
from trainers.ranks import run_ranks
from trainers.run import Wrapping
from trainers.sharded_runs import (
    FSDP1,
    FSDP1_CHECKPOINTED,
    FSDP1_HYBRID,
    FSDP1_ORIGINAL,
    HYBRID,
    TENSOR_PARALLEL,
)

FSDP2 = Wrapping()
MIXED = Wrapping(fsdp=1, mixed_precision=True, use_orig_params=True)

# What is loaded into what, on how many ranks; the checkpoint is of two ranks unless its name says four.
TWO: dict[str, tuple[str, Wrapping, dict[str, Any]]] = {
    "full state dict of llama-recipes into FSDP2": ("recipes-two-epochs", FSDP2, {}),
    "tied full state dict into FSDP1, in another dtype": ("recipes-tied-bf16", FSDP1, {"dtype": "float32"}),
    "DCP of FSDP2 into FSDP1 with original parameters": ("dcp-fsdp2", FSDP1_ORIGINAL, {}),
    "DCP of FSDP1 into FSDP2": ("dcp-fsdp1", FSDP2, {}),
    "DCP of FSDP1 into FSDP1 under mixed precision": ("dcp-fsdp1", MIXED, {}),
    "DCP of four ranks into FSDP1 and activation checkpoints": ("dcp-hybrid", FSDP1_CHECKPOINTED, {}),
    "DCP of tensor parallelism into DDP": ("dcp-tensor-parallel", Wrapping(fsdp=0), {"ddp": True}),
    "DCP into a compiled module": ("dcp-fsdp2", Wrapping(fsdp=0), {"compiled": True}),
    "odd buffers into FSDP1": ("dcp-awkward", FSDP1, {}),
    "odd buffers of four ranks into FSDP2": ("dcp-awkward-four", FSDP2, {}),
    "experts in one tensor into FSDP1": ("dcp-mixtral", FSDP1, {}),
    "flat vectors of FSDP1 into FSDP2": ("flat-four", FSDP2, {}),
}
FOUR: dict[str, tuple[str, Wrapping, dict[str, Any]]] = {
    "DCP of two ranks into HSDP": ("dcp-fsdp1", HYBRID, {}),
    "DCP of two ranks into HSDP of FSDP1": ("dcp-fsdp2-tied", FSDP1_HYBRID, {}),
    "full state dict into FSDP over tensor parallelism": ("recipes-two-epochs", TENSOR_PARALLEL, {}),
    "odd buffers into ranks without rows": ("dcp-awkward", FSDP2, {}),
}


@pytest.fixture(scope="module")
def seen(
    trained_checkpoints: Mapping[str, TrainedCheckpoint], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return what every rank saw of every scene."""
    folder = tmp_path_factory.mktemp("loaded")
    for size, cases in ((2, TWO), (4, FOUR)):
        scenes = [scene_of(name, trained_checkpoints[case[0]], *case[1:]) for name, case in cases.items()]
        run_ranks(size, load_scenes, scenes, folder, timeout_seconds=300)
    return folder


def scene_of(name: str, trained: TrainedCheckpoint, wrapping: Wrapping, options: dict[str, Any]) -> Scene:
    run = trained.run
    given: dict[str, Any] = {"model": run.model, "tied": run.tied, "dtype": run.dtype, **options}
    return Scene(name, trained.path, trained.truth, wrapping=wrapping, **given)


@pytest.mark.parametrize("name", [*TWO, *FOUR])
def test_every_rank_has_every_number_bit_for_bit(name: str, seen: Path) -> None:
    told = [json.loads(file.read_text()) for file in sorted((seen / name).glob("*.json"))]
    assert len(told) == (2 if name in TWO else 4)
    for facts in told:
        assert facts["wrong"] == []
        assert facts["names"] == []
        assert facts["tensors"] > 0
        assert facts["logits"] in (True, None)
        assert facts["codes"] == told[0]["codes"]


def test_a_cast_is_told(seen: Path) -> None:
    facts = json.loads((seen / "tied full state dict into FSDP1, in another dtype" / "0.json").read_text())
    assert "U163" in facts["codes"]


def test_the_scenes_name_runs_that_there_are() -> None:
    names = {run.name for run in RUNS}
    assert {run for run, *_ in (*TWO.values(), *FOUR.values())} <= names
