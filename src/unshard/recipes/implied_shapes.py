"""The shapes that a configuration implies for tensors, by arithmetic, where names and keys are well known.

A row is the end of a name and the dimensions that a tensor of this name has:

    H  hidden size            Q  rows of all queries     K  rows of all keys       D  size of one head
    I  feed-forward size      V  vocabulary              E  experts                M  size of one expert
    QKV  queries, keys and values together               GU  gate and up together

Only families that follow the rows are listed; nothing is implied of any other.

Source:
    transformers 5.23, modeling_llama.py, modeling_phi3.py, modeling_gpt2.py, modeling_gpt_neox.py,
    modeling_mixtral.py, modeling_qwen3_moe.py, and their configuration classes. A test compares every
    family with a model that transformers builds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Sizes = Mapping[str, int]
Row = tuple[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Implied:
    """What one tensor should be.

    Attributes:
        shape: Its shape.
        symbols: What its dimensions are, as in the rows.
    """

    shape: tuple[int, ...]
    symbols: tuple[str, ...]


_ENDS: tuple[Row, ...] = (
    ("embed_tokens.weight", ("V", "H")),
    ("lm_head.weight", ("V", "H")),
    ("model.norm.weight", ("H",)),
)
_NORMS: tuple[Row, ...] = (
    ("input_layernorm.weight", ("H",)),
    ("post_attention_layernorm.weight", ("H",)),
)
_ATTENTION: tuple[Row, ...] = (
    ("self_attn.q_proj.weight", ("Q", "H")),
    ("self_attn.k_proj.weight", ("K", "H")),
    ("self_attn.v_proj.weight", ("K", "H")),
    ("self_attn.o_proj.weight", ("H", "Q")),
    ("self_attn.q_proj.bias", ("Q",)),
    ("self_attn.k_proj.bias", ("K",)),
    ("self_attn.v_proj.bias", ("K",)),
)
_GATED: tuple[Row, ...] = (
    ("mlp.gate_proj.weight", ("I", "H")),
    ("mlp.up_proj.weight", ("I", "H")),
    ("mlp.down_proj.weight", ("H", "I")),
)
_HEAD_NORMS: tuple[Row, ...] = (("self_attn.q_norm.weight", ("D",)), ("self_attn.k_norm.weight", ("D",)))
_PLAIN = (*_ENDS, *_ATTENTION, *_GATED)
_EXPERTS: tuple[Row, ...] = (
    ("mlp.gate.weight", ("E", "H")),
    ("mlp.experts.N.gate_proj.weight", ("M", "H")),
    ("mlp.experts.N.up_proj.weight", ("M", "H")),
    ("mlp.experts.N.down_proj.weight", ("H", "M")),
)
_MIXTRAL: tuple[Row, ...] = (
    ("block_sparse_moe.gate.weight", ("E", "H")),
    ("block_sparse_moe.experts.N.w1.weight", ("I", "H")),
    ("block_sparse_moe.experts.N.w3.weight", ("I", "H")),
    ("block_sparse_moe.experts.N.w2.weight", ("H", "I")),
)
_PHI3: tuple[Row, ...] = (
    ("self_attn.qkv_proj.weight", ("QKV", "H")),
    ("self_attn.o_proj.weight", ("H", "Q")),
    ("mlp.gate_up_proj.weight", ("GU", "H")),
    ("mlp.down_proj.weight", ("H", "I")),
)
# Conv1D: what it multiplies is the transpose of what a linear layer holds.
_GPT2: tuple[Row, ...] = (
    ("wte.weight", ("V", "H")),
    ("attn.c_attn.weight", ("H", "3H")),
    ("attn.c_attn.bias", ("3H",)),
    ("attn.c_proj.weight", ("H", "H")),
    ("mlp.c_fc.weight", ("H", "I")),
    ("mlp.c_proj.weight", ("I", "H")),
    ("ln_1.weight", ("H",)),
    ("ln_2.weight", ("H",)),
)
_NEOX: tuple[Row, ...] = (
    ("embed_in.weight", ("V", "H")),
    ("embed_out.weight", ("V", "H")),
    ("attention.query_key_value.weight", ("3H", "H")),
    ("attention.dense.weight", ("H", "H")),
    ("mlp.dense_h_to_4h.weight", ("I", "H")),
    ("mlp.dense_4h_to_h.weight", ("H", "I")),
    ("input_layernorm.weight", ("H",)),
)

_LLAMAS = "llama mistral qwen2 granite smollm3 cohere olmo ministral qwen2_vl_text qwen2_vl qwen2_5_vl"
_FAMILIES: dict[str, tuple[Row, ...]] = {
    **dict.fromkeys(_LLAMAS.split(), (*_PLAIN, *_NORMS)),
    **dict.fromkeys(("qwen3", "gemma3_text"), (*_PLAIN, *_NORMS, *_HEAD_NORMS)),
    **dict.fromkeys(("gemma", "gemma2"), (*_PLAIN, *_NORMS)),
    "olmo2": _PLAIN,
    "mixtral": (*_ENDS, *_NORMS, *_ATTENTION, *_MIXTRAL),
    "qwen3_moe": (*_PLAIN, *_NORMS, *_HEAD_NORMS, *_EXPERTS),
    "qwen2_moe": (*_PLAIN, *_NORMS, *_EXPERTS),
    "deepseek_v3": (*_ENDS, *_NORMS, *_GATED, *_EXPERTS),
    "phi3": (*_ENDS, *_NORMS, *_PHI3),
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
}
# Where the class computes the size of a head that no key gives; others have a number of their own.
_HEADS_SHARE = frozenset((*_LLAMAS.split(), "mixtral", "qwen2_moe", "phi3", "olmo2"))


def sizes_said(family: str, config: Mapping[str, object]) -> dict[str, int]:
    """Return the sizes that a configuration of the family gives; what it leaves open is left out.

    Args:
        family: The `model_type` of `config`.
        config: The part of a configuration that describes the language model.
    """

    def said(*keys: str) -> int | None:
        values = (config.get(key) for key in keys)
        return next((value for value in values if type(value) is int and value > 0), None)

    hidden, heads = said("hidden_size", "n_embd"), said("num_attention_heads", "n_head")
    keys, size = said("num_key_value_heads"), said("head_dim")
    if size is None and family in _HEADS_SHARE and hidden and heads:
        size = hidden // heads
    inner = said("intermediate_size")
    if family == "gpt2" and hidden:
        inner = said("n_inner") or 4 * hidden
    known = {
        "H": hidden,
        "3H": 3 * hidden if hidden else None,
        "I": inner,
        "GU": 2 * inner if inner else None,
        "V": said("vocab_size"),
        "D": size,
        "Q": heads * size if heads and size else None,
        "K": keys * size if keys and size else None,
        "QKV": (heads + 2 * keys) * size if heads and keys and size else None,
        "E": said("num_experts", "num_local_experts", "n_routed_experts"),
        "M": said("moe_intermediate_size"),
    }
    return {symbol: value for symbol, value in known.items() if value is not None}


def implied_shape(family: str, sizes: Sizes, form: str) -> Implied | None:
    """Return what a tensor of the family should be, or None where nothing is implied.

    Args:
        family: The `model_type`.
        sizes: What `sizes_said` returned.
        form: The tensor's name, with the number of an expert as `N`.
    """
    for ending, symbols in _FAMILIES.get(family, ()):
        if form == ending or form.endswith(f".{ending}"):
            if all(symbol in sizes for symbol in symbols):
                return Implied(tuple(sizes[symbol] for symbol in symbols), symbols)
            return None
    return None
