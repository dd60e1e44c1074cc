"""Adapters of models in training: merged by the ranks together, and kept as PEFT keeps them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from peft_models import matched_in, values_of
from trainers.adapter_saves import KINDS, save_adapters
from trainers.ranks import run_ranks

NAMES = [kind.name for kind in KINDS]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    run_ranks(2, save_adapters, folder, timeout_seconds=180)
    for name in NAMES:
        shutil.copy(folder / name / "adapter" / "adapter_config.json", folder / name / "full")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_ranks_merge_to_the_bits_that_a_conversion_of_the_same_weights_has(saved: Path, name: str) -> None:
    place = saved / name
    ours = load_file(place / "merged.safetensors")
    theirs = matched_in(place / "full", place / "base", dtype="keep").tensors
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], values_of(tensor)), key
    base = load_file(place / "base" / "model.safetensors")
    assert any(not torch.equal(ours[key], base[key]) for key in base)  # something was merged


@pytest.mark.parametrize("name", NAMES)
def test_a_kept_adapter_is_what_peft_writes(saved: Path, name: str) -> None:
    place = saved / name
    ours = load_file(place / "kept.safetensors")
    theirs = load_file(place / "adapter" / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert json.loads((place / "adapter_config.json").read_bytes()) == json.loads(
        (place / "adapter" / "adapter_config.json").read_bytes()
    )
