"""Mixtral in Meta's names and gpt-oss in torchtitan's become what transformers has, and compute the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import unshard as package
from schemes_truth import HEAD_SIZE, HEADS, KEY_HEADS, in_groups, in_pairs
from tiny_models import SIZES, same_bits, write_folder

State = dict[str, torch.Tensor]
_HEADS = {"num_attention_heads": HEADS, "num_key_value_heads": KEY_HEADS, "head_dim": HEAD_SIZE}


def base_of(folder: Path, name: str, **more: object) -> Path:
    """Write a tiny model of a class, every weight random."""
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **_HEADS, "vocab_size": 516, **more})
    torch.manual_seed(5)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return write_folder(model.eval(), folder / name)


def renamed(state: State, table: list[tuple[str, str]]) -> State:
    """Return tensors by the first pattern of a table that is theirs; all must have one."""
    found = {}
    for name, tensor in state.items():
        pattern, new = next((p, n) for p, n in table if re.fullmatch(p, name))
        found[re.sub(pattern, new, name)] = tensor
    return found


AT = r"model\.layers\.(\d+)\."
COMMON = [
    (r"model\.embed_tokens\.weight", "tok_embeddings.weight"),
    (r"model\.norm\.weight", "norm.weight"),
    (AT + r"input_layernorm\.weight", r"layers.\1.attention_norm.weight"),
    (AT + r"post_attention_layernorm\.weight", r"layers.\1.ffn_norm.weight"),
    (AT + r"self_attn\.o_proj\.(\w+)", r"layers.\1.attention.wo.\2"),
]


def to_mistrals_mixtral(state: State) -> State:
    """Return a Mixtral as Mistral's own model has it: a gate, and a feed-forward layer for every expert."""
    table = [
        *COMMON,
        (r"lm_head\.weight", "output.weight"),
        (AT + r"self_attn\.([qkv])_proj\.weight", r"layers.\1.attention.w\2.weight"),
        (AT + r"block_sparse_moe\.gate\.weight", r"layers.\1.feed_forward.gate.weight"),
        (
            AT + r"block_sparse_moe\.experts\.(\d+)\.(w\d)\.weight",
            r"layers.\1.feed_forward.experts.\2.\3.weight",
        ),
    ]
    found = renamed(state, table)
    for name, tensor in found.items():
        if name.endswith((".wq.weight", ".wk.weight")):
            found[name] = in_pairs(tensor, HEADS if ".wq." in name else KEY_HEADS)
    return found


def to_titans_gpt_oss(state: State, *, experts: str, letters: bool, fused: bool = False) -> State:
    """Return a gpt-oss as torchtitan has it: matrices of experts are outputs x inputs, halves rotate."""
    inner = f"layers.\\1.moe.{experts}"
    mlp1, mlp2, bias1, bias2 = ("_EGD", "_EDF", "_EG", "_ED") if letters else ("", "", "", "")
    linear = ".qkv_linear" if letters else ""
    table = [
        *COMMON,
        (r"lm_head\.weight", "lm_head.weight" if letters else "output.weight"),
        (AT + r"self_attn\.sinks", r"layers.\1.attention.sinks"),
        (AT + r"self_attn\.([qkv])_proj\.(\w+)", rf"layers.\1.attention{linear}.w\2.\3"),
        (AT + r"mlp\.router\.(\w+)", r"layers.\1.moe.router.gate.\2"),
        (AT + r"mlp\.experts\.gate_up_proj", f"{inner}.mlp1_weight{mlp1}"),
        (AT + r"mlp\.experts\.gate_up_proj_bias", f"{inner}.mlp1_bias{bias1}"),
        (AT + r"mlp\.experts\.down_proj", f"{inner}.mlp2_weight{mlp2}"),
        (AT + r"mlp\.experts\.down_proj_bias", f"{inner}.mlp2_bias{bias2}"),
    ]
    found = renamed(state, table)
    for name in [name for name in found if "mlp1_weight" in name or "mlp2_weight" in name]:
        found[name] = found[name].transpose(1, 2).contiguous()
    for name in [name for name in found if fused and ".wq." in name]:
        q, k, v = (found.pop(name.replace(".wq.", f".{w}.")) for w in ("wq", "wk", "wv"))
        found[name.replace(".wq.", ".wqkv.")] = in_groups(q, k, v)
    return found


def require_converted(state: State, base: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    torch.save(state, tmp_path / "run/model.pt")
    done = package.convert(tmp_path / "run", tmp_path / "out", base=base, durable=False)
    codes = {told.code for told in done.findings}
    assert "U208" in codes
    assert not codes & {"U211", "U212"}
    written, truth = (load_file(place / "model.safetensors") for place in (tmp_path / "out", base))
    assert written.keys() == truth.keys()
    assert all(same_bits(written[name], truth[name]) for name in truth)


def test_mixtral_in_mistrals_names_becomes_the_model_bit_for_bit(tmp_path: Path) -> None:
    base = base_of(tmp_path, "Mixtral", num_local_experts=3, num_experts_per_tok=2)
    require_converted(to_mistrals_mixtral(load_file(base / "model.safetensors")), base, tmp_path)


@pytest.mark.parametrize(
    ("experts", "letters", "fused"),
    [
        ("routed_experts.inner_experts", True, False),
        ("routed_experts.inner_experts", True, True),
        ("experts", True, False),
        ("experts", False, False),
    ],
)
def test_gpt_oss_in_torchtitans_names_becomes_the_model_bit_for_bit(
    experts: str, letters: bool, fused: bool, tmp_path: Path
) -> None:
    base = base_of(tmp_path, "GptOss", num_local_experts=3, num_experts_per_tok=2)
    state = load_file(base / "model.safetensors")
    require_converted(to_titans_gpt_oss(state, experts=experts, letters=letters, fused=fused), base, tmp_path)


def test_torchtitans_formula_of_gpt_oss_experts_is_that_of_the_converted_ones(tmp_path: Path) -> None:
    base = base_of(tmp_path, "GptOss", num_local_experts=3, num_experts_per_tok=2)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float64, experts_implementation="eager"
    )
    state = {name: tensor.double() for name, tensor in load_file(base / "model.safetensors").items()}
    theirs = to_titans_gpt_oss(state, experts="experts", letters=False)
    at, x = "layers.0.moe.experts.", torch.randn(5, SIZES["hidden_size"], dtype=torch.float64)
    hidden = torch.nn.functional.linear(x, theirs[f"{at}mlp1_weight"][1], theirs[f"{at}mlp1_bias"][1])
    gate, up = hidden[:, ::2].clamp(max=7.0), hidden[:, 1::2].clamp(-7.0, 7.0)
    hidden = gate * torch.sigmoid(1.702 * gate) * (up + 1)
    wanted = torch.nn.functional.linear(hidden, theirs[f"{at}mlp2_weight"][1], theirs[f"{at}mlp2_bias"][1])
    ones = torch.ones(5, 1, dtype=torch.float64)
    with torch.inference_mode():
        found = model.model.layers[0].mlp.experts(x, torch.ones(5, 1, dtype=torch.long), ones)
    # Rounding of float64 over sums of at most 80 products.
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12 * wanted.abs().max().item())
