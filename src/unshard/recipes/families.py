"""Which family names are typical of, and where its sizes stand.

A family is recognised by parts of names that all must occur; the most particular one stands first. A
guess for people: nothing is converted because of it.

Source:
    The safetensors headers of the models on the hub; Meta's llama/model.py; torchtune's and LitGPT's
    model builders; torchtitan's models/llama3.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Family:
    """A naming scheme.

    Attributes:
        title: What it is called, with the models it covers.
        marks: Parts of names that all occur; `N` stands for any number.
    """

    title: str
    marks: tuple[str, ...]


FAMILIES: tuple[Family, ...] = (
    Family("DeepSeek-V2/V3-like", ("self_attn.kv_a_proj_with_mqa", "mlp.experts")),
    Family("gpt-oss-like", ("self_attn.sinks", "mlp.experts")),
    Family("Qwen3-MoE-like", ("self_attn.q_norm", "mlp.experts")),
    Family("Qwen2-MoE-like", ("mlp.shared_expert", "mlp.experts")),
    Family("Mixtral-like", ("block_sparse_moe.experts",)),
    Family("Mixtral-like, with the fused names of transformers 5", ("mlp.experts.gate_up_proj",)),
    Family("Qwen2-VL-like", ("visual.blocks.N", "self_attn.q_proj")),
    Family("LLaVA-like", ("multi_modal_projector", "language_model")),
    Family("Gemma-3-like", ("pre_feedforward_layernorm", "self_attn.q_norm")),
    Family("Gemma-2-like", ("pre_feedforward_layernorm",)),
    Family("OLMo-2-like", ("post_feedforward_layernorm", "self_attn.q_norm")),
    Family("Qwen3-like", ("self_attn.q_norm", "mlp.gate_proj")),
    Family("Qwen2-like", ("self_attn.q_proj.bias", "mlp.gate_proj")),
    Family("Phi-3-like", ("self_attn.qkv_proj", "mlp.gate_up_proj")),
    Family("Phi-2-like", ("self_attn.q_proj", "mlp.fc1", "final_layernorm")),
    Family(
        "Llama-like (Llama, Mistral, SmolLM, Yi)", ("self_attn.q_proj", "mlp.gate_proj", "input_layernorm")
    ),
    Family("OPT-like", ("decoder.layers.N.self_attn.q_proj", "decoder.embed_positions")),
    Family("GPT-2-like", ("h.N.attn.c_attn",)),
    Family("GPT-NeoX-like (Pythia)", ("attention.query_key_value", "embed_in")),
    Family("Falcon- or BLOOM-like", ("self_attention.query_key_value",)),
    Family("T5-like", ("block.N.layer.N.SelfAttention.q",)),
    Family("BERT-like", ("encoder.layer.N.attention.self.query",)),
    Family("Mamba-like", ("mixer.A_log",)),
    Family("Llama in Meta's or torchtitan's names", ("layers.N.attention.wq",)),
    Family("Llama in torchtune's names", ("layers.N.attn.q_proj", "sa_norm.scale")),
    Family("LitGPT", ("transformer.h.N.attn.qkv",)),
    Family("LitGPT", ("transformer.h.N.attn.attn",)),
    Family("Megatron-core", ("self_attention.linear_qkv",)),
)

# Where a size stands: the end of a name, and the dimension. The first that occurs counts.
_HIDDEN_AND_VOCABULARY = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "tok_embeddings.weight",
    "shared.weight",
    "embeddings.weight",
)
_INTERMEDIATE = (
    ("mlp.gate_proj.weight", 0, 1),
    ("mlp.gate_up_proj.weight", 0, 2),
    ("block_sparse_moe.experts.0.w1.weight", 0, 1),
    ("mlp.experts.0.gate_proj.weight", 0, 1),
    ("mlp.experts.gate_up_proj", 1, 2),
    ("mlp.c_fc.weight", 1, 1),
    ("mlp.fc1.weight", 0, 1),
    ("mlp.dense_h_to_4h.weight", 0, 1),
    ("feed_forward.w1.weight", 0, 1),
    ("mlp.w1.weight", 0, 1),
    ("intermediate.dense.weight", 0, 1),
)
_KEY = ("self_attn.k_proj.weight", "attention.wk.weight", "attn.k_proj.weight")
_LAYER = re.compile(r"^(.*?(?:^|\.)(?:layers|layer|h|blocks|block))\.(\d+)\.")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes that names and shapes tell; None where they do not.

    Attributes:
        layers: Number of layers of the largest stack.
        hidden: Width of the embedding.
        intermediate: Width of the feed-forward part.
        vocabulary: Rows of the embedding.
        keys: Width of all keys of one layer together.
    """

    layers: int | None
    hidden: int | None
    intermediate: int | None
    vocabulary: int | None
    keys: int | None


def family_of(names: Iterable[str]) -> Family | None:
    """Return the family whose names these are, or None."""
    forms = "\n".join(sorted({_NUMBER.sub("N", name) for name in names}))
    return next((family for family in FAMILIES if all(mark in forms for mark in family.marks)), None)


def sizes_of(shapes: Shapes) -> Sizes:
    """Return the sizes that names and shapes tell."""
    embedding = _first(shapes, _HIDDEN_AND_VOCABULARY)
    rows, width = embedding if embedding is not None and len(embedding) == 2 else (None, None)
    key = _first(shapes, _KEY)
    return Sizes(layer_count(shapes), width, _intermediate(shapes), rows, key[0] if key else None)


def layer_count(names: Iterable[str]) -> int | None:
    """Return the number of layers of the stack that has most."""
    counts: dict[str, int] = {}
    for name in names:
        if match := _LAYER.match(name):
            counts[match[1]] = max(counts.get(match[1], 0), int(match[2]) + 1)
    return max(counts.values(), default=None)


def _intermediate(shapes: Shapes) -> int | None:
    for ending, dimension, parts in _INTERMEDIATE:
        shape = _first(shapes, (ending,))
        if shape is not None and len(shape) > dimension:
            return shape[dimension] // parts
    return None


def _first(shapes: Shapes, endings: tuple[str, ...]) -> tuple[int, ...] | None:
    """Return the shape of the first tensor whose name ends with one of `endings`, in their order."""
    for ending in endings:
        for name, shape in shapes.items():
            if name.endswith(ending) and name.removesuffix(ending)[-1:] in ("", "."):
                return shape
    return None


def layer_number(name: str) -> int | None:
    """Return the number of the layer that a tensor belongs to, or None where it belongs to none."""
    match = _LAYER.match(name)
    return int(match[2]) if match else None
