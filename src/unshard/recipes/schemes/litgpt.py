"""The names of LitGPT: one tensor for queries, keys and values, whose name tells how they lie in it.

    transformer.h.*.attn.qkv     all queries, all keys, all values        since 2024-12-26
    transformer.h.*.attn.attn    group by group                           before

Source:
    Lightning-AI/litgpt litgpt/scripts/convert_lit_checkpoint.py, and litgpt/model.py
    (`_load_from_state_dict`, which reads the older names).
"""

from __future__ import annotations

from collections.abc import Iterator

from unshard.recipes.schemes.rows import Apart, Family, Join, Order, Row, Scheme, Step, Together, named

_QKV = "model.layers.*.self_attn."
_LAYERS = named("""
    transformer.wte.weight              model.embed_tokens.weight
    lm_head.weight                      lm_head.weight
    transformer.ln_f.weight             model.norm.weight
    transformer.h.*.norm_1.weight       model.layers.*.input_layernorm.weight
    transformer.h.*.attn.proj.weight    model.layers.*.self_attn.o_proj.weight
    transformer.h.*.attn.proj.bias      model.layers.*.self_attn.o_proj.bias
""")
_ONE_MORE_NORM = named("transformer.h.*.norm_2.weight  model.layers.*.post_attention_layernorm.weight")
_GATED = named("""
    transformer.h.*.mlp.fc_1.weight     model.layers.*.mlp.gate_proj.weight
    transformer.h.*.mlp.fc_2.weight     model.layers.*.mlp.up_proj.weight
    transformer.h.*.mlp.proj.weight     model.layers.*.mlp.down_proj.weight
""")
_HEAD_NORMS = named("""
    transformer.h.*.attn.norm_q.weight  model.layers.*.self_attn.q_norm.weight
    transformer.h.*.attn.norm_k.weight  model.layers.*.self_attn.k_norm.weight
""")
_MIXTRAL = named("""
    transformer.h.*.mlp.gate.weight             model.layers.*.block_sparse_moe.gate.weight
    transformer.h.*.mlp.experts.*.fc_1.weight   model.layers.*.block_sparse_moe.experts.*.w1.weight
    transformer.h.*.mlp.experts.*.fc_2.weight   model.layers.*.block_sparse_moe.experts.*.w3.weight
    transformer.h.*.mlp.experts.*.proj.weight   model.layers.*.block_sparse_moe.experts.*.w2.weight
""")
_QWEN3_MOE = named("""
    transformer.h.*.mlp.gate.weight             model.layers.*.mlp.gate.weight
    transformer.h.*.mlp.experts.*.fc_1.weight   model.layers.*.mlp.experts.*.gate_proj.weight
    transformer.h.*.mlp.experts.*.fc_2.weight   model.layers.*.mlp.experts.*.up_proj.weight
    transformer.h.*.mlp.experts.*.proj.weight   model.layers.*.mlp.experts.*.down_proj.weight
""")
_FOUR_NORMS = named("""
    transformer.h.*.post_attention_norm.weight  model.layers.*.post_attention_layernorm.weight
    transformer.h.*.norm_2.weight               model.layers.*.pre_feedforward_layernorm.weight
    transformer.h.*.post_mlp_norm.weight        model.layers.*.post_feedforward_layernorm.weight
""")
_OLMO2 = named("""
    transformer.wte.weight              model.embed_tokens.weight
    lm_head.weight                      lm_head.weight
    transformer.ln_f.weight             model.norm.weight
    transformer.h.*.attn.proj.weight    model.layers.*.self_attn.o_proj.weight
    transformer.h.*.norm_2.weight       model.layers.*.post_attention_layernorm.weight
    transformer.h.*.post_mlp_norm.weight    model.layers.*.post_feedforward_layernorm.weight
""")
_PHI = named("""
    transformer.wte.weight              model.embed_tokens.weight
    lm_head.weight                      lm_head.weight
    lm_head.bias                        lm_head.bias
    transformer.ln_f.weight             model.final_layernorm.weight
    transformer.ln_f.bias               model.final_layernorm.bias
    transformer.h.*.norm_1.weight       model.layers.*.input_layernorm.weight
    transformer.h.*.norm_1.bias         model.layers.*.input_layernorm.bias
    transformer.h.*.attn.proj.weight    model.layers.*.self_attn.dense.weight
    transformer.h.*.attn.proj.bias      model.layers.*.self_attn.dense.bias
    transformer.h.*.mlp.fc.weight       model.layers.*.mlp.fc1.weight
    transformer.h.*.mlp.fc.bias         model.layers.*.mlp.fc1.bias
    transformer.h.*.mlp.proj.weight     model.layers.*.mlp.fc2.weight
    transformer.h.*.mlp.proj.bias       model.layers.*.mlp.fc2.bias
""")
_PHI3 = (
    *named("transformer.h.*.mlp.proj.weight  model.layers.*.mlp.down_proj.weight"),
    Row(
        ("transformer.h.*.mlp.fc_1.weight", "transformer.h.*.mlp.fc_2.weight"),
        ("model.layers.*.mlp.gate_up_proj.weight",),
        (Join(0),),
    ),
)
_NEOX = named("""
    transformer.wte.weight              gpt_neox.embed_in.weight
    lm_head.weight                      embed_out.weight
    transformer.ln_f.weight             gpt_neox.final_layer_norm.weight
    transformer.ln_f.bias               gpt_neox.final_layer_norm.bias
    transformer.h.*.norm_1.weight       gpt_neox.layers.*.input_layernorm.weight
    transformer.h.*.norm_1.bias         gpt_neox.layers.*.input_layernorm.bias
    transformer.h.*.norm_2.weight       gpt_neox.layers.*.post_attention_layernorm.weight
    transformer.h.*.norm_2.bias         gpt_neox.layers.*.post_attention_layernorm.bias
    transformer.h.*.attn.proj.weight    gpt_neox.layers.*.attention.dense.weight
    transformer.h.*.attn.proj.bias      gpt_neox.layers.*.attention.dense.bias
    transformer.h.*.mlp.fc.weight       gpt_neox.layers.*.mlp.dense_h_to_4h.weight
    transformer.h.*.mlp.fc.bias         gpt_neox.layers.*.mlp.dense_h_to_4h.bias
    transformer.h.*.mlp.proj.weight     gpt_neox.layers.*.mlp.dense_4h_to_h.weight
    transformer.h.*.mlp.proj.bias       gpt_neox.layers.*.mlp.dense_4h_to_h.bias
""")
_FALCON = named("""
    transformer.wte.weight              transformer.word_embeddings.weight
    lm_head.weight                      lm_head.weight
    transformer.ln_f.weight             transformer.ln_f.weight
    transformer.ln_f.bias               transformer.ln_f.bias
    transformer.h.*.attn.proj.weight    transformer.h.*.self_attention.dense.weight
    transformer.h.*.mlp.fc.weight       transformer.h.*.mlp.dense_h_to_4h.weight
    transformer.h.*.mlp.proj.weight     transformer.h.*.mlp.dense_4h_to_h.weight
""")
_FALCON_NORM = named("""
    transformer.h.*.norm_1.weight       transformer.h.*.input_layernorm.weight
    transformer.h.*.norm_1.bias         transformer.h.*.input_layernorm.bias
""")
_FALCON_NORMS = named("""
    transformer.h.*.norm_1.weight       transformer.h.*.ln_attn.weight
    transformer.h.*.norm_1.bias         transformer.h.*.ln_attn.bias
    transformer.h.*.norm_2.weight       transformer.h.*.ln_mlp.weight
    transformer.h.*.norm_2.bias         transformer.h.*.ln_mlp.bias
""")

_SPLIT = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_Kind = tuple[str, tuple[Row, ...], str, tuple[str, ...], tuple[str, ...]]

# What the models are called, their rows, where their layers lie, what `qkv` is there, and their types.
_KINDS: tuple[_Kind, ...] = (
    (
        "Llama",
        (*_LAYERS, *_ONE_MORE_NORM, *_GATED),
        "model.layers",
        _SPLIT,
        ("llama", "mistral", "gemma", "qwen2"),
    ),
    ("Qwen3", (*_LAYERS, *_ONE_MORE_NORM, *_GATED, *_HEAD_NORMS), "model.layers", _SPLIT, ("qwen3",)),
    ("Mixtral", (*_LAYERS, *_ONE_MORE_NORM, *_MIXTRAL), "model.layers", _SPLIT, ("mixtral",)),
    (
        "Qwen3 with experts",
        (*_LAYERS, *_ONE_MORE_NORM, *_QWEN3_MOE, *_HEAD_NORMS),
        "model.layers",
        _SPLIT,
        ("qwen3_moe",),
    ),
    ("Gemma 2", (*_LAYERS, *_GATED, *_FOUR_NORMS), "model.layers", _SPLIT, ("gemma2",)),
    ("Gemma 3", (*_LAYERS, *_GATED, *_FOUR_NORMS, *_HEAD_NORMS), "model.layers", _SPLIT, ("gemma3_text",)),
    ("OLMo 2", (*_OLMO2, *_GATED, *_HEAD_NORMS), "model.layers", _SPLIT, ("olmo2",)),
    ("Phi-2", _PHI, "model.layers", _SPLIT, ("phi",)),
    ("Phi-3", (*_LAYERS, *_ONE_MORE_NORM, *_PHI3), "model.layers", ("self_attn.qkv_proj",), ("phi3",)),
    ("GPT-NeoX", _NEOX, "gpt_neox.layers", ("attention.query_key_value",), ("gpt_neox",)),
    (
        "Falcon 7B",
        (*_FALCON, *_FALCON_NORM),
        "transformer.h",
        ("self_attention.query_key_value",),
        ("falcon",),
    ),
    (
        "Falcon 40B",
        (*_FALCON, *_FALCON_NORMS),
        "transformer.h",
        ("self_attention.query_key_value",),
        ("falcon",),
    ),
)


def _families(fused: str, order: Order) -> Iterator[Family]:
    """Yield all models, with the name and the order of the tensor that is queries, keys and values."""
    for title, rows, layers, ours, types in _KINDS:
        # Phi-3 keeps all queries, all keys, all values in one tensor; GPT-NeoX and Falcon keep groups.
        wanted: Order | None = None if len(ours) == 3 else "blocks" if title == "Phi-3" else "groups"
        steps: tuple[Step, ...] = (Apart(order),)
        if wanted is not None:
            steps = () if wanted == order else (Apart(order), Together(wanted))
        qkv = (
            Row(
                (f"transformer.h.*.attn.{fused}.{kind}",),
                tuple(f"{layers}.*.{name}.{kind}" for name in ours),
                steps,
            )
            for kind in ("weight", "bias")
        )
        everywhere = {row.theirs[0] for row in rows}
        marks = ("transformer.wte.weight", f"transformer.h.*.attn.{fused}.weight")
        yield Family(title, (*rows, *qkv), (*marks, *sorted(everywhere & _TELLING)), types)


# Where these are, they are in every layer; a model without them is of another kind.
_TELLING = frozenset(
    (
        "transformer.h.*.attn.norm_q.weight",
        "transformer.h.*.mlp.experts.*.fc_1.weight",
        "transformer.h.*.mlp.fc_1.weight",
        "transformer.h.*.mlp.fc.weight",
        "transformer.h.*.norm_2.weight",
        "transformer.h.*.post_mlp_norm.weight",
    )
)

LITGPT = Scheme("litgpt", "LitGPT", (*_families("qkv", "blocks"), *_families("attn", "groups")))
