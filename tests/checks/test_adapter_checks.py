"""Adapters that were left, doubled, without effect, or merged at another scale are named by a check."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import unshard
from peft_models import Scene, write_scene
from unshard.findings import Finding

OURS = {f"U{number}" for number in range(250, 270)}


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def made(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Scene:
    folder = tmp_path_factory.mktemp("checked")
    return write_scene(folder, "llama", dtype=request.param, target_modules=["q_proj", "v_proj"])


def found(path: Path, **settings: Any) -> list[Finding]:
    """Return what is told of adapters."""
    return [item for item in unshard.check(path, **settings).findings if item.code in OURS]


@pytest.mark.parametrize("place", ["full/model.pt", "adapter"])
def test_a_sound_run_is_told_as_a_fact(made: Scene, place: str) -> None:
    told = found(made.base.parent / place, base=made.base, deep=True)
    assert {item.code for item in told} == {"U250", "U251"}


def test_a_merged_model_with_its_adapter_in_a_folder_is_sound(made: Scene, tmp_path: Path) -> None:
    unshard.convert(made.full, tmp_path / "out", base=made.base, adapter="both")
    assert found(tmp_path / "out", base=made.base, deep=True) == []


@pytest.mark.parametrize("wrong", [1.0, 2.1, 4.0])
@pytest.mark.parametrize("inside", ["", "adapter"])
def test_another_scale_is_measured(made: Scene, tmp_path: Path, wrong: float, inside: str) -> None:
    out = tmp_path / "out"
    unshard.convert(made.full, out, base=made.base, lora_alpha=wrong * 4)
    (out / inside).mkdir(exist_ok=True)
    for file in made.adapter.glob("adapter_*"):
        shutil.copy(file, out / inside)
    told = [item for item in found(out, base=made.base, deep=True) if item.code == "U255"]
    assert len(told) == 1
    found_scale = float(told[0].saw.removeprefix("merged with scale ").partition(",")[0])
    assert found_scale == pytest.approx(wrong, rel=0.02)
    assert told[0].expected == "2: alpha 8 / rank 4, as adapter_config.json says"
    assert not [item for item in found(out, base=made.base) if item.code == "U255"]


def test_an_adapter_beside_the_weights_would_be_applied_again(made: Scene, tmp_path: Path) -> None:
    unshard.convert(made.full, tmp_path / "out", base=made.base)
    shutil.copy(made.adapter / "adapter_config.json", tmp_path / "out")
    (told,) = found(tmp_path / "out")
    assert (told.code, told.subject) == ("U257", "adapter_config.json")


def test_tensors_of_an_adapter_among_the_weights_are_named_and_can_be_merged(
    made: Scene, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(made.base, folder)
    state = torch.load(made.full / "model.pt", weights_only=True)
    save_file({name: tensor.clone() for name, tensor in state.items()}, folder / "model.safetensors")
    (told,) = [item for item in found(folder) if item.code == "U256"]
    assert told.saw.startswith("12 tensors of 29:")
    unshard.convert(folder, tmp_path / "out", base=made.base, lora_alpha=8)  # the remedy
    assert found(tmp_path / "out") == []


def test_an_adapter_of_zeros_changes_nothing(made: Scene, tmp_path: Path) -> None:
    tensors = load_file(made.adapter / "adapter_model.safetensors")
    zeros = {name: t * 0 if "lora_B" in name else t for name, t in tensors.items()}
    shutil.copy(made.adapter / "adapter_config.json", tmp_path)
    save_file(zeros, tmp_path / "adapter_model.safetensors")
    (told,) = [item for item in found(tmp_path, base=made.base, deep=True) if item.code == "U254"]
    assert told.saw == "nothing but zeros, as in all 4 modules"
    assert "U254" not in [item.code for item in found(tmp_path, base=made.base)]


def test_what_keeps_an_adapter_from_being_merged_is_an_error(made: Scene, tmp_path: Path) -> None:
    shutil.copy(made.full / "model.pt", tmp_path)
    assert [item.code for item in found(tmp_path, base=made.base)][:1] == ["U252"]
