"""Settings of a configuration that change what is computed, and what it means where they are not there.

Source:
    transformers 5.23: the configuration classes, and modeling_rope_utils.py (`rope_parameters`; before
    version 5 `rope_theta` and `rope_scaling`).
"""

from __future__ import annotations

from collections.abc import Mapping

_COMPUTING_KEYS = """
    rope_theta rope_local_base_freq partial_rotary_factor rope_interleave
    mrope_section num_attention_heads num_key_value_heads head_dim n_head num_heads
    qk_nope_head_dim qk_rope_head_dim v_head_dim
    rms_norm_eps layer_norm_eps layer_norm_epsilon layernorm_epsilon norm_epsilon norm_eps
    hidden_act activation_function projector_hidden_act
    sliding_window use_sliding_window max_window_layers layer_types sliding_window_pattern
    attention_chunk_size attn_logit_softcapping final_logit_softcapping query_pre_attn_scalar
    attention_multiplier
    embedding_multiplier residual_multiplier logits_scaling logit_scale scale_attn_weights
    scale_attn_by_inverse_layer_idx use_parallel_residual attn_temperature_tuning
    num_experts_per_tok norm_topk_prob routed_scaling_factor scoring_func topk_method topk_group n_group
    first_k_dense_replace decoder_sparse_step mlp_only_layers no_rope_layers use_qk_norm attention_bias
    mlp_bias time_step_limit time_step_rank vision_feature_layer vision_feature_select_strategy
"""
# What describes the tensors or the run; other checks hold it against what is there.
_OTHER_KEYS = """
    architectures dtype torch_dtype transformers_version _name_or_path use_cache vocab_size
    tie_word_embeddings bos_token_id pad_token_id quantization_config rope_parameters
    rope_scaling model_type auto_map _attn_implementation id2label label2id task_specific_params
"""
# What the class assumes, the same in every family that has the key. None: it is switched off.
_DEFAULTS: Mapping[str, object] = {
    "rope_theta": 10000.0,
    "rope_local_base_freq": 10000.0,
    "partial_rotary_factor": 1.0,
    "rope scaling type": "default",
    "rope scaling factor": 1.0,
    "sliding_window": None,
    "attention_chunk_size": None,
    "use_sliding_window": False,
    "attention_bias": False,
    "mlp_bias": False,
    "use_qk_norm": False,
    "norm_topk_prob": False,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "use_parallel_residual": True,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
    "routed_scaling_factor": 1.0,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "time_step_limit": [0.0, float("inf")],
}
# Where these are not there, the class makes them of others; older versions do not write them.
_DERIVED_KEYS = """
    layer_types no_rope_layers sliding_window_pattern max_window_layers mrope_section use_qk_norm
    rope_interleave norm_topk_prob time_step_rank
"""
# Families, and versions of transformers, that have another word for the same.
SYNONYMS: Mapping[str, str] = {
    "rotary_emb_base": "rope_theta",
    "global_rope_theta": "rope_theta",
    "local_rope_theta": "rope_local_base_freq",
    "rotary_pct": "partial_rotary_factor",
    "rope_pct": "partial_rotary_factor",
    "hidden_activation": "hidden_act",
    "original_max_position_embeddings": "rope scaling original_max_position_embeddings",
}
COMPUTING, OTHER = frozenset(_COMPUTING_KEYS.split()), frozenset(_OTHER_KEYS.split())
DERIVED = frozenset(_DERIVED_KEYS.split())


def default_of(key: str, settings: Mapping[str, object]) -> tuple[bool, object]:
    """Return whether it is known what it means that a setting is absent, and what.

    Args:
        key: The setting, by the word of `SYNONYMS`.
        settings: The others of the same model.
    """
    heads, hidden = settings.get("num_attention_heads"), settings.get("hidden_size")
    if key == "num_key_value_heads" and heads is not None:
        return True, heads
    if key == "head_dim" and type(heads) is int and type(hidden) is int and heads > 0:
        return True, hidden // heads
    return key in _DEFAULTS, _DEFAULTS.get(key)
