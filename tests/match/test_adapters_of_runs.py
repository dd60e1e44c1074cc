"""Adapters in checkpoints that FSDP2 left on two ranks become what PEFT merges on one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import unshard
from peft_models import furthest, matched_in
from trainers.ranks import run_ranks

_FLOAT32 = 16 * 8 * 2.0**-24  # as in test_match_adapters


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from trainers.peft_fsdp import leave_adapters

    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(2, leave_adapters, folder, timeout_seconds=300)
    return folder


@pytest.mark.parametrize(
    ("place", "alpha"),
    [("whole", 8), ("gathered", 8), ("alone", 8), ("ranks/actor", None), ("adapter", None)],
)
def test_merging_gives_what_peft_merges(left: Path, place: str, alpha: float | None) -> None:
    merged = load_file(left / "merged/model.safetensors")
    model = matched_in(left / place, left / "base", alpha=alpha)
    assert furthest(model.tensors, merged) < _FLOAT32
    told = next(f.saw for f in model.findings if f.code == "U251")
    origin = (
        "--lora-alpha" if alpha else {"adapter": "adapter_config.json"}.get(place, "lora_train_meta.json")
    )
    assert told == (f"LoRA of rank 4 on 4 modules, alpha 8 ({origin}), scale 2, 5 parameters trained whole")


@pytest.mark.parametrize("place", ["whole", "alone", "ranks/actor"])
def test_the_adapter_is_kept_from_all_ranks(left: Path, tmp_path: Path, place: str) -> None:
    unshard.convert(left / place, tmp_path / "out", base=left / "base", adapter="keep", lora_alpha=8)
    ours, theirs = (load_file(p / "adapter_model.safetensors") for p in (tmp_path / "out", left / "adapter"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_every_merged_element_is_proven(left: Path, tmp_path: Path) -> None:
    done = unshard.convert(left / "whole", tmp_path / "out", base=left / "base", lora_alpha=8)
    assert any("on 4 of 4 tensors" in line for level in done.proof for line in level.evidence)
