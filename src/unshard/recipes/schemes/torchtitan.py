"""The names of torchtitan, in all its epochs; its oldest Llama has the names of Meta.

    until        query              head      experts
    2026-04-16   attention.wq       output    moe.experts.w1
    2026-05-27   .qkv_linear.wq     lm_head   moe.experts.w1            (lm_head since 2026-04-27)
    2026-06-10   .qkv_linear.wq     lm_head   moe.experts.w1_EFD
    today        .qkv_linear.wq     lm_head   moe.routed_experts.inner_experts.w1_EFD

Between 2026-04-16 and 2026-06-18 a model may have queries, keys and values in one tensor. Llama rotates
pairs; Qwen3 and gpt-oss rotate halves, as Hugging Face's do, and DeepSeek's pairs are those of its files.

Source:
    pytorch/torchtitan torchtitan/models/*/state_dict_adapter.py and models/common/attention.py
    (`FusedQKVLinear`), at the commits ad7a865, 786e26f, 200100e, 2816b97, 70dd945 and d92336f^.
"""

from __future__ import annotations

from collections.abc import Iterator

from unshard.recipes.schemes.rows import Apart, Family, Heads, Join, Rotary, Row, Scheme, Swap, Unstack, named

_BIAS_IS_LOST = "evens out the load of experts, and the model has no place for it"

_COMMON = named("""
    tok_embeddings.weight               model.embed_tokens.weight
    norm.weight                         model.norm.weight
    lm_head.weight                      lm_head.weight                  output.weight
    layers.*.attention_norm.weight      model.layers.*.input_layernorm.weight
    layers.*.ffn_norm.weight            model.layers.*.post_attention_layernorm.weight
    layers.*.attention.wo.weight        model.layers.*.self_attn.o_proj.weight
    layers.*.attention.wo.bias          model.layers.*.self_attn.o_proj.bias
""")
_DENSE = named("""
    layers.*.feed_forward.w1.weight     model.layers.*.mlp.gate_proj.weight
    layers.*.feed_forward.w2.weight     model.layers.*.mlp.down_proj.weight
    layers.*.feed_forward.w3.weight     model.layers.*.mlp.up_proj.weight
""")
_HEAD_NORMS = named("""
    layers.*.attention.q_norm.weight    model.layers.*.self_attn.q_norm.weight
    layers.*.attention.k_norm.weight    model.layers.*.self_attn.k_norm.weight
""")
_LATENT = named("""
    layers.*.attention.wq.weight        model.layers.*.self_attn.q_proj.weight
    layers.*.attention.wq_a.weight      model.layers.*.self_attn.q_a_proj.weight
    layers.*.attention.q_norm.weight    model.layers.*.self_attn.q_a_layernorm.weight
    layers.*.attention.wq_b.weight      model.layers.*.self_attn.q_b_proj.weight
    layers.*.attention.wkv_a.weight     model.layers.*.self_attn.kv_a_proj_with_mqa.weight
    layers.*.attention.kv_norm.weight   model.layers.*.self_attn.kv_a_layernorm.weight
    layers.*.attention.wkv_b.weight     model.layers.*.self_attn.kv_b_proj.weight
""")
_ROUTED = named("layers.*.moe.router.gate.weight  model.layers.*.mlp.gate.weight")
_SHARED = named("""
    layers.*.moe.shared_experts.w1.weight   model.layers.*.mlp.shared_experts.gate_proj.weight
    layers.*.moe.shared_experts.w2.weight   model.layers.*.mlp.shared_experts.down_proj.weight
    layers.*.moe.shared_experts.w3.weight   model.layers.*.mlp.shared_experts.up_proj.weight
""")
_BIAS = Row(
    ("layers.*.moe.expert_bias_E",),
    ("model.layers.*.mlp.gate.e_score_correction_bias",),
    older=(("layers.*.moe.expert_bias",),),
)
_LOST_BIAS = (
    Row(("layers.*.moe.expert_bias_E",), (), older=(("layers.*.moe.expert_bias",),), lost=_BIAS_IS_LOST),
)


def _attention(*, fused: bool, pairs: bool) -> Iterator[Row]:
    """Yield the rows of queries, keys and values, which lie in one tensor or in three."""
    projections: tuple[tuple[str, str, Heads | None], ...] = (
        ("wq", "q_proj", "query"),
        ("wk", "k_proj", "key"),
        ("wv", "v_proj", None),
    )
    for kind in ("weight", "bias"):
        ours = [f"model.layers.*.self_attn.{proj}.{kind}" for _, proj, _ in projections]
        if fused:
            steps = (Apart("groups"), *((Rotary(("query", "key", None)),) if pairs else ()))
            yield Row((f"layers.*.attention.qkv_linear.wqkv.{kind}",), tuple(ours), steps)
            continue
        for name, (w, _, heads) in zip(ours, projections, strict=True):
            older = ((f"layers.*.attention.{w}.{kind}",),)
            rotary = (Rotary((heads,)),) if pairs and heads is not None else ()
            yield Row((f"layers.*.attention.qkv_linear.{w}.{kind}",), (name,), rotary, older)


def _experts(first: str, last: str) -> Row:
    """Return the row of one matrix of all experts; `last` is how its name ends in Hugging Face's files."""
    newest, *older = _spellings(first)
    return Row(
        (newest,), (f"model.layers.*.mlp.experts.*.{last}.weight",), (Unstack(),), tuple((n,) for n in older)
    )


def _spellings(name: str) -> tuple[str, str, str]:
    """Return the names of a tensor of all experts, newest first; the oldest without letters of dimensions."""
    plain = name.rpartition("_")[0]
    return (
        f"layers.*.moe.routed_experts.inner_experts.{name}",
        f"layers.*.moe.experts.{name}",
        f"layers.*.moe.experts.{plain}",
    )


_EXPERTS = (
    _experts("w1_EFD", "gate_proj"),
    _experts("w2_EDF", "down_proj"),
    _experts("w3_EFD", "up_proj"),
)


def _swapped_experts(names: tuple[str, ...], ours: str, *, steps: tuple[Join | Swap, ...] = ()) -> Row:
    """Return the row of tensors that hold all experts on both sides."""
    newest, *older = zip(*map(_spellings, names), strict=True)
    return Row(newest, (f"model.layers.*.{ours}",), steps, tuple(older))


_GPT_OSS_EXPERTS = (
    *named("""
        layers.*.attention.sinks            model.layers.*.self_attn.sinks
        layers.*.moe.router.gate.weight     model.layers.*.mlp.router.weight
        layers.*.moe.router.gate.bias       model.layers.*.mlp.router.bias
    """),
    _swapped_experts(("mlp1_weight_EGD",), "mlp.experts.gate_up_proj", steps=(Swap(1, 2),)),
    _swapped_experts(("mlp1_bias_EG",), "mlp.experts.gate_up_proj_bias"),
    _swapped_experts(("mlp2_weight_EDF",), "mlp.experts.down_proj", steps=(Swap(1, 2),)),
    _swapped_experts(("mlp2_bias_ED",), "mlp.experts.down_proj_bias"),
)
_LLAMA4_EXPERTS = (
    *named("""
        layers.*.moe.router.gate.weight         model.layers.*.feed_forward.router.weight
        layers.*.moe.shared_experts.w1.weight   model.layers.*.feed_forward.shared_expert.gate_proj.weight
        layers.*.moe.shared_experts.w2.weight   model.layers.*.feed_forward.shared_expert.down_proj.weight
        layers.*.moe.shared_experts.w3.weight   model.layers.*.feed_forward.shared_expert.up_proj.weight
    """),
    _swapped_experts(("w1_EFD", "w3_EFD"), "feed_forward.experts.gate_up_proj", steps=(Join(1), Swap(1, 2))),
    _swapped_experts(("w2_EDF",), "feed_forward.experts.down_proj", steps=(Swap(1, 2),)),
)


def _families(*, fused: bool) -> Iterator[Family]:
    """Yield the models whose queries, keys and values lie in one tensor, or in three."""
    query = f"layers.*.attention.qkv_linear.{'wqkv' if fused else 'wq'}.weight"
    marks = ("tok_embeddings.weight", query)
    pairs, halves = (tuple(_attention(fused=fused, pairs=pairs)) for pairs in (True, False))
    experts = "layers.*.moe.routed_experts.inner_experts."
    yield Family(
        "Llama 3",
        (*_COMMON, *_DENSE, *pairs),
        (*marks, "layers.*.feed_forward.w1.weight"),
        ("llama",),
    )
    yield Family(
        "Qwen3",
        (*_COMMON, *_DENSE, *halves, *_HEAD_NORMS, *_ROUTED, *_EXPERTS, *_LOST_BIAS),
        (*marks, "layers.*.attention.q_norm.weight"),
        ("qwen3", "qwen3_moe"),
    )
    yield Family(
        "gpt-oss",
        (*_COMMON, *halves, *_GPT_OSS_EXPERTS, *_LOST_BIAS),
        (*marks, "layers.*.attention.sinks", experts + "mlp1_weight_EGD"),
        ("gpt_oss",),
    )
    yield Family(
        "Llama 4",
        (*_COMMON, *halves, *_LLAMA4_EXPERTS, *_LOST_BIAS),
        (*marks, experts + "w1_EFD", "layers.*.moe.shared_experts.w1.weight"),
        ("llama4_text",),
    )


_DEEPSEEK = Family(
    "DeepSeek-V3",
    (*_COMMON, *_DENSE, *_LATENT, *_ROUTED, *_SHARED, _BIAS, *_EXPERTS),
    ("tok_embeddings.weight", "layers.*.attention.wkv_a.weight"),
    ("deepseek_v3",),
)

TORCHTITAN = Scheme("torchtitan", "torchtitan", (*_families(fused=False), *_families(fused=True), _DEEPSEEK))
