"""What projects call and how they lay out the tensors of a Llama: said a second time, from their formulas.

Nothing here calls the recipes that it is the truth for. A forward pass with Meta's rotary embedding, which
turns neighbouring elements as one complex number, says by what it computes in which order rows must lie.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

StateDict = dict[str, torch.Tensor]

HEADS, KEY_HEADS, HEAD_SIZE = 6, 2, 8
TABLES = json.loads((Path(__file__).parent / "recipes" / "scheme_tables.json").read_text())

_NEIGHBOURS = [row for pair in range(HEAD_SIZE // 2) for row in (pair, pair + HEAD_SIZE // 2)]


def in_pairs(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Return rows that rotate together as neighbours; Hugging Face's are half a head apart."""
    rows = [head * HEAD_SIZE + row for head in range(heads) for row in _NEIGHBOURS]
    return weight[rows].clone()


def _renamed(state: Mapping[str, torch.Tensor], table: Mapping[str, str]) -> StateDict:
    """Return tensors under the first name of a table whose pattern is theirs; all must have one."""
    found = {}
    for name, tensor in state.items():
        pattern, new = next((p, n) for p, n in table.items() if re.fullmatch(p, name))
        found[re.sub(pattern, new, name)] = tensor
    return found


_LAYER = r"model\.layers\.(\d+)\."
_META = {
    r"model\.embed_tokens\.weight": "tok_embeddings.weight",
    r"model\.norm\.weight": "norm.weight",
    r"lm_head\.weight": "output.weight",
    _LAYER + r"self_attn\.([qkvo])_proj\.weight": r"layers.\1.attention.w\2.weight",
    _LAYER + r"mlp\.gate_proj\.weight": r"layers.\1.feed_forward.w1.weight",
    _LAYER + r"mlp\.down_proj\.weight": r"layers.\1.feed_forward.w2.weight",
    _LAYER + r"mlp\.up_proj\.weight": r"layers.\1.feed_forward.w3.weight",
    _LAYER + r"input_layernorm\.weight": r"layers.\1.attention_norm.weight",
    _LAYER + r"post_attention_layernorm\.weight": r"layers.\1.ffn_norm.weight",
}


def to_meta(state: Mapping[str, torch.Tensor]) -> StateDict:
    """Return a Llama as Meta has it."""
    found = _renamed(state, _META)
    for name, tensor in found.items():
        if name.endswith((".wq.weight", ".wk.weight")):
            found[name] = in_pairs(tensor, HEADS if ".wq." in name else KEY_HEADS)
    return found


def to_torchtune(state: Mapping[str, torch.Tensor]) -> StateDict:
    """Return a Llama as torchtune has it."""
    table = {
        r"layers\.(\d+)\.attention\.w([qkv])\.weight": r"layers.\1.attn.\2_proj.weight",
        r"layers\.(\d+)\.attention\.wo\.weight": r"layers.\1.attn.output_proj.weight",
        r"layers\.(\d+)\.feed_forward\.(w\d)\.weight": r"layers.\1.mlp.\2.weight",
        r"layers\.(\d+)\.attention_norm\.weight": r"layers.\1.sa_norm.scale",
        r"layers\.(\d+)\.ffn_norm\.weight": r"layers.\1.mlp_norm.scale",
        r"norm\.weight": "norm.scale",
        r"(tok_embeddings|output)\.weight": r"\1.weight",
    }
    return _renamed(to_meta(state), table)


def to_torchtitan(state: Mapping[str, torch.Tensor]) -> StateDict:
    """Return a Llama as torchtitan has it since the end of April 2026."""
    table = {
        r"layers\.(\d+)\.attention\.w([qkv])\.weight": r"layers.\1.attention.qkv_linear.w\2.weight",
        r"output\.weight": "lm_head.weight",
        r"(.*)": r"\1",
    }
    return _renamed(to_meta(state), table)


def to_fused_torchtitan(state: Mapping[str, torch.Tensor]) -> StateDict:
    """Return a Llama as torchtitan had it for two months of 2026: queries, keys and values of a group."""
    found = to_torchtitan(state)
    for name in [name for name in found if name.endswith(".wq.weight")]:
        q, k, v = (found.pop(name.replace(".wq.", f".{w}.")) for w in ("wq", "wk", "wv"))
        found[name.replace(".wq.", ".wqkv.")] = in_groups(q, k, v)
    return found


def in_groups(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return one tensor in which every key head follows the query heads that share it."""
    per_group = HEADS // KEY_HEADS * HEAD_SIZE
    parts = []
    for group in range(KEY_HEADS):
        parts += [
            q[group * per_group : (group + 1) * per_group],
            k[group * HEAD_SIZE : (group + 1) * HEAD_SIZE],
            v[group * HEAD_SIZE : (group + 1) * HEAD_SIZE],
        ]
    return torch.cat(parts)


def to_litgpt(state: Mapping[str, torch.Tensor], *, older: bool = False) -> StateDict:
    """Return a Llama as LitGPT has it, or had it until the end of 2024."""
    table = {
        r"model\.embed_tokens\.weight": "transformer.wte.weight",
        r"model\.norm\.weight": "transformer.ln_f.weight",
        r"lm_head\.weight": "lm_head.weight",
        _LAYER + r"self_attn\.o_proj\.weight": r"transformer.h.\1.attn.proj.weight",
        _LAYER + r"self_attn\.([qkv])_proj\.weight": r"transformer.h.\1.attn.\2.weight",
        _LAYER + r"mlp\.gate_proj\.weight": r"transformer.h.\1.mlp.fc_1.weight",
        _LAYER + r"mlp\.up_proj\.weight": r"transformer.h.\1.mlp.fc_2.weight",
        _LAYER + r"mlp\.down_proj\.weight": r"transformer.h.\1.mlp.proj.weight",
        _LAYER + r"input_layernorm\.weight": r"transformer.h.\1.norm_1.weight",
        _LAYER + r"post_attention_layernorm\.weight": r"transformer.h.\1.norm_2.weight",
    }
    found = _renamed(state, table)
    for name in [name for name in found if name.endswith(".attn.q.weight")]:
        q, k, v = (found.pop(name.replace(".q.", f".{w}.")) for w in "qkv")
        fused = in_groups(q, k, v) if older else torch.cat([q, k, v])
        found[name.replace(".q.", ".attn." if older else ".qkv.")] = fused
    return found


def to_olmo_core(state: Mapping[str, torch.Tensor]) -> StateDict:
    """Return a Llama as OLMo-core has it."""
    table = {
        r"model\.embed_tokens\.weight": "embeddings.weight",
        r"model\.norm\.weight": "lm_head.norm.weight",
        r"lm_head\.weight": "lm_head.w_out.weight",
        _LAYER + r"self_attn\.([qkv])_proj\.weight": r"blocks.\1.attention.w_\2.weight",
        _LAYER + r"self_attn\.o_proj\.weight": r"blocks.\1.attention.w_out.weight",
        _LAYER + r"mlp\.gate_proj\.weight": r"blocks.\1.feed_forward.w1.weight",
        _LAYER + r"mlp\.down_proj\.weight": r"blocks.\1.feed_forward.w2.weight",
        _LAYER + r"mlp\.up_proj\.weight": r"blocks.\1.feed_forward.w3.weight",
        _LAYER + r"input_layernorm\.weight": r"blocks.\1.attention_norm.weight",
        _LAYER + r"post_attention_layernorm\.weight": r"blocks.\1.feed_forward_norm.weight",
    }
    return _renamed(state, table)


SCHEMES: dict[str, Callable[[Mapping[str, torch.Tensor]], StateDict]] = {
    "meta": to_meta,
    "torchtitan": to_torchtitan,
    "torchtitan, fused": to_fused_torchtitan,
    "torchtune": to_torchtune,
    "litgpt": to_litgpt,
    "litgpt, before 2025": lambda state: to_litgpt(state, older=True),
    "olmo-core": to_olmo_core,
}


def cut_as_meta(state: Mapping[str, torch.Tensor], files: int, *, llama3: bool) -> list[StateDict]:
    """Return what every file of Meta's tensor parallelism holds."""
    parts: list[StateDict] = [{} for _ in range(files)]
    for name, tensor in state.items():
        word = name.split(".")[-2]
        by_rows = word in ("wq", "wk", "wv", "w1", "w3", "output") or (llama3 and word == "tok_embeddings")
        by_columns = word in ("wo", "w2", "tok_embeddings") and not by_rows
        pieces = tensor.chunk(files, 0 if by_rows else 1) if by_rows or by_columns else [tensor] * files
        for part, piece in zip(parts, pieces, strict=True):
            part[name] = piece.clone()
    return parts


def meta_logits(state: Mapping[str, torch.Tensor], tokens: torch.Tensor, *, theta: float) -> torch.Tensor:
    """Return the logits of a Llama in Meta's names for one sequence, computed as Meta's model does."""
    angles = theta ** (-torch.arange(0, HEAD_SIZE, 2, dtype=torch.float64) / HEAD_SIZE)
    turns = torch.polar(
        torch.ones(len(tokens), HEAD_SIZE // 2, dtype=torch.float64),
        torch.outer(torch.arange(len(tokens), dtype=torch.float64), angles),
    )
    causal = torch.full((len(tokens), len(tokens)), float("-inf"), dtype=torch.float64).triu(1)
    weights = {name: tensor.double() for name, tensor in state.items()}

    def normed(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weights[name]

    def rotated(x: torch.Tensor, heads: int) -> torch.Tensor:
        pairs = torch.view_as_complex(x.reshape(len(tokens), heads, HEAD_SIZE // 2, 2))
        return torch.view_as_real(pairs * turns[:, None]).flatten(2)

    x = weights["tok_embeddings.weight"][tokens]
    for layer in range(len({name.split(".")[1] for name in weights if name.startswith("layers.")})):
        at = f"layers.{layer}."
        h = normed(x, at + "attention_norm.weight")
        q = rotated(h @ weights[at + "attention.wq.weight"].T, HEADS)
        k = rotated(h @ weights[at + "attention.wk.weight"].T, KEY_HEADS)
        v = (h @ weights[at + "attention.wv.weight"].T).reshape(len(tokens), KEY_HEADS, HEAD_SIZE)
        k, v = (t.repeat_interleave(HEADS // KEY_HEADS, 1) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / HEAD_SIZE**0.5 + causal
        out = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(len(tokens), -1)
        x = x + out @ weights[at + "attention.wo.weight"].T
        h = normed(x, at + "ffn_norm.weight")
        gate = torch.nn.functional.silu(h @ weights[at + "feed_forward.w1.weight"].T)
        x = (
            x
            + (gate * (h @ weights[at + "feed_forward.w3.weight"].T))
            @ weights[at + "feed_forward.w2.weight"].T
        )
    return normed(x, "norm.weight") @ weights["output.weight"].T


def numbered(name: str, shape: list[int]) -> torch.Tensor:
    """Return the tensor that the projects' converters were given under a name: numbers in a row."""
    first = zlib.crc32(name.encode()) >> 4
    count = torch.Size(shape).numel()
    return (torch.arange(count, dtype=torch.int32) + first).reshape(shape)
