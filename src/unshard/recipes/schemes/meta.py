"""The names of Meta's files, which Mistral's `consolidated` files and torchtitan's first Llama have, too.

Source:
    meta-llama/llama llama/model.py; mistralai/mistral-inference src/mistral_inference/transformer.py;
    transformers 4.57, models/llama/convert_llama_weights_to_hf.py (`permute`) and
    models/mixtral/convert_mixtral_weights_to_hf.py.
"""

from __future__ import annotations

from unshard.recipes.schemes.rows import Family, Rotary, Row, Scheme, named

_QUERIES, _KEYS = Rotary(("query",)), Rotary(("key",))

_COMMON = (
    *named("""
        tok_embeddings.weight               model.embed_tokens.weight
        norm.weight                         model.norm.weight
        output.weight                       lm_head.weight
        layers.*.attention_norm.weight      model.layers.*.input_layernorm.weight
        layers.*.ffn_norm.weight            model.layers.*.post_attention_layernorm.weight
        layers.*.attention.wv.weight        model.layers.*.self_attn.v_proj.weight
        layers.*.attention.wv.bias          model.layers.*.self_attn.v_proj.bias
        layers.*.attention.wo.weight        model.layers.*.self_attn.o_proj.weight
        layers.*.attention.wo.bias          model.layers.*.self_attn.o_proj.bias
    """),
    *(
        Row((f"layers.*.attention.{w}.{kind}",), (f"model.layers.*.self_attn.{proj}.{kind}",), (step,))
        for w, proj, step in (("wq", "q_proj", _QUERIES), ("wk", "k_proj", _KEYS))
        for kind in ("weight", "bias")
    ),
)

_LLAMA = Family(
    "Llama and Mistral",
    (
        *_COMMON,
        *named("""
            layers.*.feed_forward.w1.weight     model.layers.*.mlp.gate_proj.weight
            layers.*.feed_forward.w2.weight     model.layers.*.mlp.down_proj.weight
            layers.*.feed_forward.w3.weight     model.layers.*.mlp.up_proj.weight
        """),
    ),
    ("tok_embeddings.weight", "layers.*.attention.wq.weight", "layers.*.feed_forward.w1.weight"),
    ("llama", "mistral"),
)

_MIXTRAL = Family(
    "Mixtral",
    (
        *_COMMON,
        *named("""
            layers.*.feed_forward.gate.weight           model.layers.*.block_sparse_moe.gate.weight
            layers.*.feed_forward.experts.*.w1.weight   model.layers.*.block_sparse_moe.experts.*.w1.weight
            layers.*.feed_forward.experts.*.w2.weight   model.layers.*.block_sparse_moe.experts.*.w2.weight
            layers.*.feed_forward.experts.*.w3.weight   model.layers.*.block_sparse_moe.experts.*.w3.weight
        """),
    ),
    ("layers.*.attention.wq.weight", "layers.*.feed_forward.experts.*.w1.weight"),
    ("mixtral",),
)

META = Scheme("meta", "Meta or torchtitan (before April 2026)", (_LLAMA, _MIXTRAL))
