"""The order of registration, held to the classes of transformers."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers

from unshard.recipes.registration_order import registration_order

SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 11,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}

MODELS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("LlamaForCausalLM", "LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    ("LlamaForCausalLM", "LlamaConfig", {"tie_word_embeddings": True}),
    ("MistralForCausalLM", "MistralConfig", {}),
    ("Qwen2ForCausalLM", "Qwen2Config", {}),
    ("Qwen3ForCausalLM", "Qwen3Config", {}),
    ("GemmaForCausalLM", "GemmaConfig", {}),
    ("Gemma2ForCausalLM", "Gemma2Config", {}),
    ("Gemma3ForCausalLM", "Gemma3TextConfig", {}),
    ("Olmo2ForCausalLM", "Olmo2Config", {}),
    ("GraniteForCausalLM", "GraniteConfig", {}),
    ("SmolLM3ForCausalLM", "SmolLM3Config", {}),
    ("StableLmForCausalLM", "StableLmConfig", {}),
    ("Phi3ForCausalLM", "Phi3Config", {}),
    ("PhiForCausalLM", "PhiConfig", {}),
    ("Starcoder2ForCausalLM", "Starcoder2Config", {}),
    ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 32, "n_layer": 11, "n_head": 4}),
    ("GPTNeoXForCausalLM", "GPTNeoXConfig", {}),
)


@pytest.mark.parametrize(("model", "config", "sizes"), MODELS)
def test_the_order_is_that_of_the_class(model: str, config: str, sizes: dict[str, Any]) -> None:
    with torch.device("meta"):
        built = getattr(transformers, model)(getattr(transformers, config)(**{**SIZES, **sizes}))
    registered = [name for name, _ in built.named_parameters()]
    shuffled = random.Random(3).sample(registered, len(registered))
    assert registration_order(shuffled) == registered


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.experts.gate_up_proj",
        "model.layers.0.mlp.experts.3.gate_proj.weight",
        "model.layers.x.mlp.gate_proj.weight",
        "model.layers.0.weight",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "model.layers.9999999999999999999999.mlp.gate_proj.weight",
        "model.embed_tokens",
    ],
)
def test_a_parameter_that_no_family_has_leaves_the_order_unknown(name: str) -> None:
    known = ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"]
    assert registration_order(known) is not None
    assert registration_order([*known, name]) is None


def test_no_parameters_have_no_order() -> None:
    assert registration_order([]) is None
