"""Names of adapters are read as PEFT writes them, in state dicts and in published folders."""

from __future__ import annotations

import pytest

from unshard.recipes.adapters import (
    AdapterName,
    holds_adapter,
    other_adapter,
    parse_adapter_name,
    published_name,
    without_prefix,
)

Q = "model.layers.0.self_attn.q_proj"
E = "model.layers.0.mlp.experts"
TOKENS = "model.embed_tokens"


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        (f"{Q}.lora_A.default.weight", AdapterName("A", Q, "default")),
        (f"{Q}.lora_B.weight", AdapterName("B", Q)),
        (f"{Q}.lora_B.mine.bias", AdapterName("bias of B", Q, "mine")),
        (f"{Q}.lora_magnitude_vector.default.weight", AdapterName("magnitude", Q, "default")),
        (f"{Q}.lora_magnitude_vector", AdapterName("magnitude", Q)),
        (f"{TOKENS}.lora_embedding_A.default", AdapterName("A", TOKENS, "default")),
        (f"{TOKENS}.lora_embedding_B", AdapterName("B", TOKENS)),
        (f"{Q}.base_layer.weight", AdapterName("base", Q)),
        (f"{Q}.base_layer.bias", AdapterName("base", Q, None, "bias")),
        ("score.modules_to_save.default.weight", AdapterName("saved", "score", "default")),
        ("score.original_module.out.bias", AdapterName("original", "score", None, "out.bias")),
        (f"{TOKENS}.token_adapter.trainable_tokens_delta.default", AdapterName("tokens", TOKENS, "default")),
        (f"{TOKENS}.token_adapter.base_layer.weight", AdapterName("base", TOKENS)),
        (f"{TOKENS}.trainable_tokens_delta", AdapterName("tokens", TOKENS)),
        (f"{E}.base_layer.lora_A.default.weight", AdapterName("A", E, "default", depth=1)),
        (f"{E}.base_layer.base_layer.gate_up_proj", AdapterName("base", E, None, "gate_up_proj")),
        ("layers.0.attn.q_proj.lora_a.weight", AdapterName("A", "layers.0.attn.q_proj")),
        (f"{Q}.weight", None),
        ("model.lora.weight", None),
    ],
)
def test_a_name_tells_role_module_and_adapter(name: str, parsed: AdapterName | None) -> None:
    assert parse_adapter_name(name) == parsed
    assert holds_adapter([name]) == (parsed is not None)
    assert other_adapter(name) is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (f"{Q}.hada_w1_a", "LoHa"),
        (f"{Q}.lokr_w2", "LoKr"),
        (f"{Q}.oft_R.default.weight", "OFT or BOFT"),
        (f"{Q}.vera_lambda_b.default", "VeRA"),
        ("base.mlp.down_proj.ia3_l.default", "IA3"),
        ("prompt_encoder.default.embedding.weight", "prompt tuning"),
        (f"{Q}.lora_E.default", "AdaLoRA"),
        ("transformer.h.0.attn.qkv.lora_A", "LitGPT's LoRA"),
        (f"{Q}.lora_unheard_of.default.weight", "one whose names are not known"),
    ],
)
def test_other_kinds_are_known_by_name(name: str, kind: str) -> None:
    assert other_adapter(name) == kind
    assert holds_adapter([name])


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        (f"base_model.model.{Q}.weight", f"{Q}.weight"),
        (f"_fsdp_wrapped_module.base_model.model.{Q}._orig_mod.weight", f"{Q}.weight"),
        (f"module.base_model.model.{Q}.weight", f"module.{Q}.weight"),
        ("my_base_model.model.weight", "my_base_model.model.weight"),
    ],
)
def test_the_prefix_of_peft_is_removed_wherever_it_stands(name: str, bare: str) -> None:
    assert without_prefix(name) == bare


@pytest.mark.parametrize(
    ("name", "published"),
    [
        (f"{Q}.lora_A.default.weight", f"{Q}.lora_A.weight"),
        (f"{Q}.lora_magnitude_vector.default.weight", f"{Q}.lora_magnitude_vector"),
        (f"{TOKENS}.lora_embedding_B.default", f"{TOKENS}.lora_embedding_B"),
        ("score.modules_to_save.default.weight", "score.weight"),
        (
            f"{TOKENS}.token_adapter.trainable_tokens_delta.default",
            f"{TOKENS}.token_adapter.trainable_tokens_delta",
        ),
        (f"{E}.base_layer.lora_A.default.weight", f"{E}.base_layer.lora_A.weight"),
    ],
)
def test_published_names_lack_the_adapters_own(name: str, published: str) -> None:
    assert published_name(f"base_model.model.{name}", "default") == f"base_model.model.{published}"
    assert published_name(published, None) == f"base_model.model.{published}"
