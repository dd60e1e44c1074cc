"""Quantised folders: each disagreement of tensors and config.json is told, and whole folders give nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from unshard.checks.evidence import Evidence
from unshard.checks.quantised import CHECKS
from unshard.findings import Finding
from unshard.model_folder import read_model_folder
from unshard.pages import page_of

UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"
State = dict[str, torch.Tensor]
FP8: dict[str, object] = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def float8(name: str = UP) -> State:
    return {name: torch.ones(8, 8).to(torch.float8_e4m3fn), f"{name}_scale_inv": torch.ones(1, 1)}


def four_bit(name: str = UP) -> State:
    said = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [8, 8]}
    return {
        name: torch.zeros(32, 1, dtype=torch.uint8),
        f"{name}.absmax": torch.ones(1),
        f"{name}.quant_map": torch.ones(16),
        f"{name}.quant_state.bitsandbytes__nf4": torch.tensor(
            list(json.dumps(said).encode()), dtype=torch.uint8
        ),
    }


def found(
    folder: Path, state: Mapping[str, torch.Tensor], settings: Mapping[str, object] | None
) -> list[Finding]:
    config: dict[str, object] = {"model_type": "llama"}
    if settings is not None:
        config["quantization_config"] = settings
    save_file(dict(state), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    evidence = Evidence(folder, folder=read_model_folder(folder), config=config)
    return [each for check in CHECKS for each in check.find(evidence)]


@pytest.mark.parametrize(
    ("state", "settings"),
    [
        (float8() | {DOWN: torch.ones(8, 8)}, FP8 | {"modules_to_not_convert": ["lm_head", "down_proj"]}),
        (four_bit(), {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}),
        ({UP: torch.ones(8, 8), "model.scale": torch.ones(1)}, None),
        ({UP: torch.ones(8, 8)}, {"quant_method": "of another kind"}),
    ],
    ids=["float8", "four-bit", "plain", "unknown"],
)
def test_whole_folders_give_nothing(state: State, settings: dict[str, object] | None, tmp_path: Path) -> None:
    assert found(tmp_path, state, settings) == []


@pytest.mark.parametrize(
    ("code", "state", "settings", "saw"),
    [
        ("U411", {UP: float8()[UP], **float8(DOWN)}, FP8, f"`{UP}: its scale` is missing"),
        ("U411", {UP: torch.ones(8, 8), f"{UP}_scale_inv": torch.ones(1, 1), **float8(DOWN)}, FP8, "float32"),
        ("U411", {f"{UP}.absmax": torch.ones(1)}, {"quant_method": "bitsandbytes"}, f"`{UP}` is missing"),
        ("U412", float8(), None, "1 weight quantised as FP8 with scales"),
        ("U413", {UP: torch.ones(8, 8)}, FP8, "none of 1 tensor is quantised"),
        ("U414", four_bit(), FP8, "1 weight quantised as bitsandbytes 4-bit"),
        ("U414", four_bit(), {"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes 4-bit"),
        ("U415", float8(), FP8 | {"modules_to_not_convert": ["mlp.up_proj"]}, "1 weight quantised"),
        ("U415", float8(), {"quant_method": "compressed-tensors", "ignore": ["model.layers.0"]}, "1 weight"),
    ],
)
def test_disagreements_are_told(
    code: str, state: State, settings: dict[str, object] | None, saw: str, tmp_path: Path
) -> None:
    (told,) = found(tmp_path, state, settings)
    assert told.code == code
    assert saw in told.saw


def test_settings_beside_config_json_tell_as_well(tmp_path: Path) -> None:
    (tmp_path / "quantize_config.json").write_text('{"bits": 4}')
    assert found(tmp_path, float8(), None) == []


def test_a_module_that_only_begins_alike_is_not_excluded(tmp_path: Path) -> None:
    settings = FP8 | {"modules_to_not_convert": ["up", "re:.*up_proj.*", "layers.0.mlp.up"]}
    assert found(tmp_path, float8(), settings) == []


@pytest.mark.parametrize("code", ["U410", *(code for check in CHECKS for code in check.codes)])
def test_every_finding_has_a_page(code: str) -> None:
    assert "## What to do" in page_of(code)
