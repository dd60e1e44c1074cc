"""Healthy models of many families, trained for a moment: nothing may find anything wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tiny_experts
import tiny_models
from tiny_models import SIZES
from trainers.tiny_llama import tiny_tokenizer

_STEPS = 4


def _causal(cls: str, **sizes: object) -> Callable[[], Any]:
    def make() -> Any:
        config = getattr(transformers, f"{cls}Config")(**{**SIZES, **sizes})
        return getattr(transformers, f"{cls}ForCausalLM")(config)

    return make


def _with_experts(model_type: str) -> Callable[[], Any]:
    cls, sizes = tiny_experts.FAMILIES[model_type]
    return _causal(cls, **{**tiny_experts._SIZES, **sizes, "vocab_size": SIZES["vocab_size"]})


def _gemma3() -> Any:
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.Gemma3Config(
        text_config=dict(SIZES),
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        boi_token_index=5,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def _qwen2_vl() -> Any:
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6}
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": SIZES["hidden_size"], "num_heads": 2}
    text = {**SIZES, "rope_parameters": rope}
    return transformers.Qwen2VLForConditionalGeneration(
        transformers.Qwen2VLConfig(text_config=text, vision_config=vision)
    )


MAKERS: dict[str, Callable[[], Any]] = {
    **tiny_models.FAMILIES,
    "qwen3": _causal("Qwen3"),
    "mistral": _causal("Mistral"),
    "gemma3": _gemma3,
    "phi3": _causal("Phi3", num_key_value_heads=3),
    "gpt-neox": _causal("GPTNeoX"),
    "qwen3-moe": _with_experts("qwen3_moe"),
    "deepseek-v3": _with_experts("deepseek_v3"),
    "mamba": _causal("Mamba", state_size=4),
    "qwen2-vl": _qwen2_vl,
}
FAMILIES = tuple(MAKERS)


def train(model: Any, *, steps: int = _STEPS, learning_rate: float = 1e-2, seed: int = 11) -> Any:
    """Move every parameter a few steps of AdamW, along gradients of a loss on random tokens."""
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    for _ in range(steps):
        for parameter in model.parameters():
            # Not only what a text would reach: vision towers and experts are trained, too.
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return model.eval()


def healthy_model(family: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Return a model that was initialised as transformers does it and then trained for a moment."""
    torch.manual_seed(5)
    model = train(MAKERS[family]())
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model


def write_model(model: Any, folder: Path) -> Path:
    """Write a model as hubs hold it: weights, configuration, tokenizer, generation configuration."""
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    if hasattr(model, "visual") or "vision_config" in json.loads((folder / "config.json").read_text()):
        (folder / "preprocessor_config.json").write_text(
            json.dumps({"image_processor_type": "CLIPImageProcessor"})
        )
    return folder


@pytest.fixture(scope="session")
def healthy_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the folder of a healthy model; tests copy what they break."""
    root = tmp_path_factory.mktemp("healthy")
    return cache(lambda family: write_model(healthy_model(family), root / family))


@pytest.fixture(scope="session")
def fine_tuned_folder(
    healthy_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Return a function that gives a healthy model after some more training, as a fine-tune is."""
    root = tmp_path_factory.mktemp("fine-tuned")

    def make(family: str) -> Path:
        model = healthy_model(family, torch.float32)
        state = {
            name: tensor.bfloat16().float()
            for name, tensor in model.state_dict().items()
            if tensor.is_floating_point()
        }
        model.load_state_dict(state, strict=False)
        train(model, steps=3, learning_rate=1e-3, seed=12)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
        model.config.dtype = torch.bfloat16
        return write_model(model, root / family)

    return cache(make)
