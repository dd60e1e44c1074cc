"""The order in which well-known models register their parameters, without asking their classes.

A family is a list of modules: those before its layers, those of a layer, those after them. A module has
a weight and maybe a bias after it. Not every model of a family has all of the modules; one that has
others, or parameters of other names, is not of the family.

Models with experts are not listed: versions of transformers hold them differently in memory.

Source:
    transformers 5.23: models/*/modeling_*.py. A test compares every row with the classes.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

_NAME = re.compile(r"(.+)\.(weight|bias)")
_LARGEST_NUMBER = 9  # digits


@dataclass(frozen=True, slots=True)
class Family:
    """The modules of a family in the order of their registration.

    Attributes:
        before: Those before the layers.
        layers: What stands before the number of a layer.
        layer: Those of a layer, below its number.
        after: Those after the layers.
    """

    before: tuple[str, ...]
    layers: str
    layer: tuple[str, ...]
    after: tuple[str, ...]

    def place(self, name: str) -> tuple[int, int, int, int] | None:
        """Return where a parameter stands: part, layer, module, and weight or bias; None if nowhere."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        module, last = match[1], int(match[2] == "bias")
        number, _, inner = module.removeprefix(self.layers).partition(".")
        if module in self.before:
            return 0, 0, self.before.index(module), last
        if module in self.after:
            return 2, 0, self.after.index(module), last
        if module.startswith(self.layers) and number.isdecimal() and len(number) <= _LARGEST_NUMBER:
            return (1, int(number), self.layer.index(inner), last) if inner in self.layer else None
        return None


def _family(before: str, layers: str, layer: str, after: str) -> Family:
    return Family(tuple(before.split()), layers, tuple(layer.split()), tuple(after.split()))


FAMILIES = (
    _family(  # Llama, Mistral, Qwen2, Qwen3, Gemma, OLMo-2, Granite, SmolLM3, StableLM
        "model.embed_tokens",
        "model.layers.",
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj self_attn.q_norm"
        " self_attn.k_norm mlp.gate_proj mlp.up_proj mlp.down_proj input_layernorm"
        " post_attention_layernorm pre_feedforward_layernorm post_feedforward_layernorm",
        "model.norm lm_head",
    ),
    _family(  # Phi-3, Phi-4
        "model.embed_tokens",
        "model.layers.",
        "self_attn.o_proj self_attn.qkv_proj mlp.gate_up_proj mlp.down_proj input_layernorm"
        " post_attention_layernorm",
        "model.norm lm_head",
    ),
    _family(  # Phi-1, Phi-2
        "model.embed_tokens",
        "model.layers.",
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.dense mlp.fc1 mlp.fc2 input_layernorm",
        "model.final_layernorm lm_head",
    ),
    _family(  # StarCoder2
        "model.embed_tokens",
        "model.layers.",
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj mlp.c_fc mlp.c_proj"
        " input_layernorm post_attention_layernorm",
        "model.norm lm_head",
    ),
    _family(  # GPT-2
        "transformer.wte transformer.wpe",
        "transformer.h.",
        "ln_1 attn.c_attn attn.c_proj ln_2 mlp.c_fc mlp.c_proj",
        "transformer.ln_f lm_head",
    ),
    _family(  # GPT-NeoX, Pythia
        "gpt_neox.embed_in",
        "gpt_neox.layers.",
        "input_layernorm post_attention_layernorm attention.query_key_value attention.dense"
        " mlp.dense_h_to_4h mlp.dense_4h_to_h",
        "gpt_neox.final_layer_norm embed_out lm_head",
    ),
)


def registration_order(parameters: Collection[str]) -> list[str] | None:
    """Return names of parameters in the order in which their model registers them, or None if unknown."""
    for family in FAMILIES:
        places = {name: family.place(name) for name in parameters}
        known = [(place, name) for name, place in places.items() if place is not None]
        if parameters and len(known) == len(places):
            return [name for _, name in sorted(known)]
    return None
