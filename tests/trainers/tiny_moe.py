"""Tiny mixtures of experts, which transformers holds under other names than it publishes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from trainers.tiny_llama import BASE_DTYPE, BASE_SEED, VOCABULARY, tiny_tokenizer

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
    "use_cache": True,
}
_KINDS: dict[str, dict[str, Any]] = {
    "mixtral": {"model_type": "mixtral", "num_local_experts": 5, "intermediate_size": 40},
    "qwen3-moe": {
        "model_type": "qwen3_moe",
        "num_experts": 5,
        "moe_intermediate_size": 40,
        "intermediate_size": 75,
        "mlp_only_layers": [0],
    },
}


def tiny_moe(kind: str, seed: int, *, dtype: torch.dtype) -> Any:
    """Return a model with random weights; equal on every rank."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(**_COMMON, **_KINDS[kind])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.to(dtype)


def write_base(kind: str, folder: Path) -> None:
    """Write the model folder that training starts from, under the names that model hubs hold."""
    tiny_moe(kind, BASE_SEED, dtype=BASE_DTYPE).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"]
    tiny_tokenizer().save_pretrained(folder)
