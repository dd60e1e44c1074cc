"""Models that load without a word and compute something else: the fingerprint of training finds each.

Digests are taken away, so that nothing but behaviour can tell.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from command_line import Unshard
from unshard import convert, load
from unshard.errors import InferenceError
from unshard.verification import Verification, verify

DTYPES = ("float32", "bfloat16")
Damage = Callable[[dict[str, Any], dict[str, torch.Tensor]], None]


def _theta(config: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
    config["rope_parameters"]["rope_theta"] = 500_000.0


def _llama3_scaling(config: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
    config["rope_parameters"] |= {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }


def _sliding_window(config: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 8}


def _attention_scaling(config: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
    config |= {"model_type": "granite", "architectures": ["GraniteForCausalLM"], "attention_multiplier": 0.5}


def _swapped_gate_and_up(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    gate, up = (f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up"))
    tensors[gate], tensors[up] = tensors[up], tensors[gate]


def _heads_in_metas_order(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    for name in tensors:
        if "q_proj" in name or "k_proj" in name:
            rows, columns = tensors[name].shape
            halves = tensors[name].view(rows // 16, 2, 8, columns)
            tensors[name] = halves.transpose(1, 2).reshape(rows, columns).contiguous()


def _norm_of_ones(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.input_layernorm.weight"].fill_(1.0)


def _norm_of_another_layer(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    name = "model.layers.{}.input_layernorm.weight"
    tensors[name.format(1)] = tensors[name.format(2)].clone()


def _vocabulary_in_another_order(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    order = torch.randperm(515, generator=torch.Generator().manual_seed(5))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][order].contiguous()


def _layer_twice(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.startswith("model.layers.1.")]:
        tensors[name] = tensors[name.replace(".1.", ".0.")].clone()


DAMAGES: dict[str, Damage] = {
    damage.__name__.strip("_"): damage
    for damage in (
        _theta,
        _llama3_scaling,
        _sliding_window,
        _attention_scaling,
        _swapped_gate_and_up,
        _heads_in_metas_order,
        _norm_of_ones,
        _norm_of_another_layer,
        _vocabulary_in_another_order,
        _layer_twice,
    )
}


@pytest.fixture(scope="module")
def converted(fingerprinted_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of FSDP2, converted, without the digests of the conversion."""
    root = tmp_path_factory.mktemp("converted")
    for dtype in DTYPES:
        run, base = (fingerprinted_runs / f"{kind}-{dtype}" for kind in ("run", "base"))
        convert(run, root / dtype, base=base)
        for manifest in (root / dtype).glob("unshard.manifest.json"):
            manifest.unlink()
    return {dtype: root / dtype for dtype in DTYPES}


def damaged(folder: Path, into: Path, damage: Damage) -> Path:
    shutil.copytree(folder, into)
    config, (file,) = json.loads((into / "config.json").read_text()), into.glob("*.safetensors")
    tensors = load_file(file)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    damage(config, tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    (into / "config.json").write_text(json.dumps(config))
    return into


def codes(found: Verification) -> set[str]:
    return {item.code for item in found.findings}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_healthy_model_reproduces_training(converted: dict[str, Path], dtype: str) -> None:
    found = verify(converted[dtype])
    level = found.levels[-1]
    assert (level.name, level.verdict) == ("fingerprint", "sound")
    assert level.evidence[0].startswith("this model reproduces training's logits")
    assert found.sound
    assert not codes(found) & {"U711", "U712", "U714"}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", DAMAGES)
def test_a_wrong_model_that_loads_is_told(
    converted: dict[str, Path], tmp_path: Path, name: str, dtype: str
) -> None:
    out = damaged(converted[dtype], tmp_path / "out", DAMAGES[name])
    _, report = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(report[fault] for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    found = verify(out)
    assert not found.sound
    assert [level.name for level in found.levels if level.verdict == "differs"] == ["fingerprint"]
    assert "U711" in codes(found)


def test_tokens_in_another_order_are_told(converted: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(converted["float32"], out)
    told = json.loads((out / "tokenizer.json").read_text())
    vocabulary = told["model"]["vocab"]
    first, second = (token for token, number in vocabulary.items() if number in (300, 301))
    plain = [token for token in vocabulary if vocabulary[token] > 5]
    numbers = [vocabulary[token] for token in plain]
    vocabulary |= dict(zip(plain, [*numbers[1:], numbers[0]], strict=True))
    assert first != second
    (out / "tokenizer.json").write_text(json.dumps(told))
    found = verify(out)
    (wrong,) = [item for item in found.findings if item.code == "U712"]
    assert "`english`" in wrong.saw
    assert "position 0" in wrong.saw
    assert not found.sound


def test_commands_exit_by_what_the_fingerprint_says(
    converted: dict[str, Path], fingerprinted_runs: Path, tmp_path: Path, unshard: Unshard
) -> None:
    wrong = damaged(converted["float32"], tmp_path / "out", _swapped_gate_and_up)
    assert unshard("verify", wrong).code == 3
    assert unshard("verify", wrong, "--no-forward").code == 0
    ask = ("--prompt", "class", "--max-new-tokens", "2", "--device", "cpu", "--offline", "--no-chat")
    refused = unshard("run", wrong, *ask)
    assert refused.code == 1
    assert "U711" in refused.words
    assert "--no-fingerprint" in refused.words
    assert unshard("run", wrong, *ask, "--no-fingerprint").code == 0
    run, base = (fingerprinted_runs / f"{kind}-bfloat16" for kind in ("run", "base"))
    healthy = unshard("run", run, "--base", base, *ask)
    assert healthy.code == 0
    assert "reproduces training's logits" in healthy.words
    with pytest.raises(InferenceError, match="does not behave as training recorded"):
        load(wrong, device="cpu", download=False)
