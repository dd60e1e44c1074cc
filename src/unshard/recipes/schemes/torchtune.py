"""The names of torchtune. Its Qwen and Phi rotate halves of a head, as Hugging Face's do; the others pairs.

Source:
    meta-pytorch/torchtune torchtune/models/convert_weights.py, and _convert_weights.py of qwen2, qwen3,
    phi3, gemma2 and llama4.
"""

from __future__ import annotations

from unshard.recipes.schemes.rows import Family, Join, Rotary, Row, Scheme, Together, named

_EMBEDDINGS = named("""
    tok_embeddings.weight               model.embed_tokens.weight
    norm.scale                          model.norm.weight
    output.weight                       lm_head.weight
""")
_LAYER = named("""
    layers.*.attn.output_proj.weight    model.layers.*.self_attn.o_proj.weight
    layers.*.mlp.w2.weight              model.layers.*.mlp.down_proj.weight
    layers.*.sa_norm.scale              model.layers.*.input_layernorm.weight
""")
_NORM = named("layers.*.mlp_norm.scale  model.layers.*.post_attention_layernorm.weight")
_GATED = named("""
    layers.*.mlp.w1.weight              model.layers.*.mlp.gate_proj.weight
    layers.*.mlp.w3.weight              model.layers.*.mlp.up_proj.weight
""")
_VALUES = named("layers.*.attn.v_proj.weight  model.layers.*.self_attn.v_proj.weight")
_PAIRS = (
    *_VALUES,
    *(
        Row((f"layers.*.attn.{proj}.weight",), (f"model.layers.*.self_attn.{proj}.weight",), (step,))
        for proj, step in (("q_proj", Rotary(("query",))), ("k_proj", Rotary(("key",))))
    ),
)
_HALVES = (
    *_VALUES,
    *named("""
        layers.*.attn.q_proj.weight     model.layers.*.self_attn.q_proj.weight
        layers.*.attn.k_proj.weight     model.layers.*.self_attn.k_proj.weight
    """),
)
_MARKS = ("tok_embeddings.weight", "layers.*.attn.q_proj.weight", "layers.*.sa_norm.scale")

_LLAMA = Family(
    "Llama, Mistral and Gemma",
    (*_EMBEDDINGS, *_LAYER, *_NORM, *_GATED, *_PAIRS),
    _MARKS,
    ("llama", "mistral", "gemma"),
)
_CLASSIFIER = Family(
    "a Llama or Mistral with one score instead of words",
    (
        *(row for row in _LLAMA.rows if row.theirs != ("output.weight",)),
        *named("output.weight  score.weight"),
    ),
    _MARKS,
    (),
)
_QWEN2 = Family(
    "Qwen2",
    (
        *(*_EMBEDDINGS, *_LAYER, *_NORM, *_GATED, *_HALVES),
        *named("""
            layers.*.attn.q_proj.bias   model.layers.*.self_attn.q_proj.bias
            layers.*.attn.k_proj.bias   model.layers.*.self_attn.k_proj.bias
            layers.*.attn.v_proj.bias   model.layers.*.self_attn.v_proj.bias
        """),
    ),
    (*_MARKS, "layers.*.attn.q_proj.bias"),
    ("qwen2",),
)
_QWEN3 = Family(
    "Qwen3",
    (
        *(*_EMBEDDINGS, *_LAYER, *_NORM, *_GATED, *_HALVES),
        *named("""
            layers.*.attn.q_norm.scale  model.layers.*.self_attn.q_norm.weight
            layers.*.attn.k_norm.scale  model.layers.*.self_attn.k_norm.weight
        """),
    ),
    (*_MARKS, "layers.*.attn.q_norm.scale"),
    ("qwen3",),
)
_GEMMA2 = Family(
    "Gemma 2",
    (
        *(row for row in (*_EMBEDDINGS, *_LAYER, *_GATED, *_PAIRS) if row.theirs != ("norm.scale",)),
        *named("""
            norm.rms_norm.scale         model.norm.weight
            layers.*.sa_scale.scale     model.layers.*.post_attention_layernorm.weight
            layers.*.mlp_norm.scale     model.layers.*.pre_feedforward_layernorm.weight
            layers.*.mlp_scale.scale    model.layers.*.post_feedforward_layernorm.weight
        """),
    ),
    (*_MARKS, "layers.*.sa_scale.scale"),
    ("gemma2",),
)
_PHI3 = Family(
    "Phi-3 and Phi-4",
    (
        *(*_EMBEDDINGS, *_LAYER, *_NORM),
        Row(
            ("layers.*.attn.q_proj.weight", "layers.*.attn.k_proj.weight", "layers.*.attn.v_proj.weight"),
            ("model.layers.*.self_attn.qkv_proj.weight",),
            (Together("blocks"),),
        ),
        Row(
            ("layers.*.mlp.w1.weight", "layers.*.mlp.w3.weight"),
            ("model.layers.*.mlp.gate_up_proj.weight",),
            (Join(0),),
        ),
    ),
    _MARKS,
    ("phi3",),
)

TORCHTUNE = Scheme("torchtune", "torchtune", (_LLAMA, _QWEN2, _QWEN3, _GEMMA2, _PHI3, _CLASSIFIER))
