"""Tiny models with experts, of every family whose recipe is built in."""

from __future__ import annotations

from typing import Any

import torch
import transformers

_SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 40,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LATENT: dict[str, Any] = {
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
_FULL_ATTENTION = ["full_attention"] * 2

# By model type: the first part of the names of its classes, and what its configuration needs.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "minimax": ("MiniMax", {"num_local_experts": 4, "layer_types": _FULL_ATTENTION}),
    "phimoe": ("Phimoe", {"num_local_experts": 4}),
    "qwen2_moe": ("Qwen2Moe", {"num_experts": 4, "shared_expert_intermediate_size": 16}),
    "qwen3_moe": ("Qwen3Moe", {"num_experts": 4}),
    "qwen3_next": ("Qwen3Next", {"num_experts": 4, "layer_types": _FULL_ATTENTION}),
    "olmoe": ("Olmoe", {"num_experts": 4}),
    "deepseek_v2": ("DeepseekV2", _LATENT),
    "deepseek_v3": ("DeepseekV3", _LATENT),
    "glm4_moe": (
        "Glm4Moe",
        {"n_routed_experts": 4, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    ),
    "ernie4_5_moe": ("Ernie4_5_Moe", {"moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1}),
    "lfm2_moe": ("Lfm2Moe", {"num_experts": 4, "layer_types": _FULL_ATTENTION, "num_dense_layers": 1}),
    "granitemoe": ("GraniteMoe", {"num_local_experts": 4}),
    "gpt_oss": ("GptOss", {"num_local_experts": 4, "layer_types": _FULL_ATTENTION}),
}


def tiny_experts(family: str, dtype: torch.dtype = torch.float32, **settings: object) -> Any:
    """Return a model whose weights are random and never equal by accident."""
    name, needed = FAMILIES[family]
    torch.manual_seed(5)
    config = getattr(transformers, f"{name}Config")(**{**_SIZES, **needed, **settings})
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.to(dtype).eval()
