"""The names of OLMo-core. Norms before and after attention have one name: the model decides which are meant.

Source:
    allenai/OLMo-core src/olmo_core/nn/hf/convert.py.
"""

from __future__ import annotations

from unshard.recipes.schemes.rows import Family, Row, Scheme, Swap, Unfold, Unstack, named

_COMMON = named("""
    embeddings.weight                   model.embed_tokens.weight
    lm_head.norm.weight                 model.norm.weight
    lm_head.w_out.weight                lm_head.weight
    blocks.*.attention.w_q.weight       model.layers.*.self_attn.q_proj.weight
    blocks.*.attention.w_k.weight       model.layers.*.self_attn.k_proj.weight
    blocks.*.attention.w_v.weight       model.layers.*.self_attn.v_proj.weight
    blocks.*.attention.w_out.weight     model.layers.*.self_attn.o_proj.weight
""")
_DENSE = named("""
    blocks.*.feed_forward.w1.weight     model.layers.*.mlp.gate_proj.weight
    blocks.*.feed_forward.w2.weight     model.layers.*.mlp.down_proj.weight
    blocks.*.feed_forward.w3.weight     model.layers.*.mlp.up_proj.weight
""")
_HEAD_NORMS = named("""
    blocks.*.attention.q_norm.weight    model.layers.*.self_attn.q_norm.weight
    blocks.*.attention.k_norm.weight    model.layers.*.self_attn.k_norm.weight
""")
_NORMS_BEFORE = named("""
    blocks.*.attention_norm.weight      model.layers.*.input_layernorm.weight
    blocks.*.feed_forward_norm.weight   model.layers.*.post_attention_layernorm.weight
""")
_NORMS_AFTER = named("""
    blocks.*.attention_norm.weight      model.layers.*.post_attention_layernorm.weight
    blocks.*.feed_forward_norm.weight   model.layers.*.post_feedforward_layernorm.weight
""")
_EXPERTS = (
    *(
        Row(
            (f"blocks.*.feed_forward_moe.experts.mlp.{w}",),
            (f"model.layers.*.mlp.experts.*.{name}.weight",),
            (Unfold(), Unstack(), Swap(0, 1)),
        )
        for w, name in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj"))
    ),
    Row(
        ("blocks.*.feed_forward_moe.router.weight",),
        ("model.layers.*.mlp.gate.weight",),
        (Unfold(),),
    ),
)
_FOUR_NORMS = named("""
    blocks.*.attention_norm.weight              model.layers.*.input_layernorm.weight
    blocks.*.post_attention_norm.weight         model.layers.*.post_attention_layernorm.weight
    blocks.*.feed_forward_norm.weight           model.layers.*.pre_feedforward_layernorm.weight
    blocks.*.post_feed_forward_norm.weight      model.layers.*.post_feedforward_layernorm.weight
""")

_MARKS = ("embeddings.weight", "blocks.*.attention.w_q.weight")
_GATED = (*_MARKS, "blocks.*.feed_forward.w1.weight")
_NORMED = "blocks.*.attention.q_norm.weight"

OLMO_CORE = Scheme(
    "olmo-core",
    "OLMo-core",
    (
        Family("Llama", (*_COMMON, *_DENSE, *_NORMS_BEFORE), _GATED, ("llama",)),
        Family("Qwen3", (*_COMMON, *_DENSE, *_NORMS_BEFORE, *_HEAD_NORMS), (*_GATED, _NORMED), ("qwen3",)),
        Family(
            "OLMo 2 and 3",
            (*_COMMON, *_DENSE, *_NORMS_AFTER, *_HEAD_NORMS),
            (*_GATED, _NORMED),
            ("olmo2", "olmo3"),
        ),
        Family(
            "FlexOlmo",
            (*_COMMON, *_NORMS_AFTER, *_HEAD_NORMS, *_EXPERTS),
            (*_MARKS, "blocks.*.feed_forward_moe.experts.mlp.w1"),
            ("flex_olmo",),
        ),
        Family(
            "Gemma 3",
            (*_COMMON, *_DENSE, *_FOUR_NORMS, *_HEAD_NORMS),
            (*_GATED, "blocks.*.post_feed_forward_norm.weight"),
            ("gemma3_text",),
            obstacle="the weights of its norms are larger by one than in Hugging Face's files",
        ),
    ),
)
