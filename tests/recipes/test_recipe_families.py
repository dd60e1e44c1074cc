"""Families are recognised by the names that transformers gives them."""

import pytest

from specimens import MAKERS, state_of, tiny_model
from unshard.match.description import describe_model

TITLES = {
    "llama": "Llama-like (Llama, Mistral, SmolLM, Yi)",
    "mistral": "Llama-like (Llama, Mistral, SmolLM, Yi)",
    "qwen2": "Qwen2-like",
    "qwen3": "Qwen3-like",
    "gemma2": "Gemma-2-like",
    "phi3": "Phi-3-like",
    "gpt2": "GPT-2-like",
    "gpt-neox": "GPT-NeoX-like (Pythia)",
    "mixtral": "Mixtral-like, with the fused names of transformers 5",
    "mamba": "Mamba-like",
    "encoder": "BERT-like",
    "t5": "T5-like",
    "llava": "LLaVA-like",
    "qwen2-vl": "Qwen2-VL-like",
}


@pytest.mark.parametrize("family", TITLES)
def test_a_family_is_recognised_by_its_names(family: str) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in state_of(tiny_model(family)).items()}
    assert describe_model(shapes).family == TITLES[family]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi3", "gpt2", "mixtral", "gpt-neox"])
def test_sizes_are_read_from_names_and_shapes(family: str) -> None:
    shapes = {f"_orig_mod.{n}": tuple(t.shape) for n, t in state_of(tiny_model(family)).items()}
    sizes = describe_model(shapes).sizes
    inner = 128 if family == "gpt2" else 64
    assert (sizes.layers, sizes.hidden, sizes.intermediate, sizes.vocabulary) == (2, 32, inner, 96)


def test_a_description_is_told_in_sentences() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in state_of(tiny_model("llama")).items()}
    description = describe_model(shapes)
    assert description.parameters == sum(t.numel() for t in state_of(tiny_model("llama")).values())
    assert description.sentences == (
        "Llama-like (Llama, Mistral, SmolLM, Yi), by self_attn.q_proj, mlp.gate_proj, input_layernorm",
        "2 layers",
        "width 32",
        "feed-forward width 64",
        "width of all keys 16",
        "96 tokens",
    )


def test_every_specimen_is_described_without_failing() -> None:
    assert set(TITLES) < set(MAKERS)
    assert describe_model({}).sentences == ()
