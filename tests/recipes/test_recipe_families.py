"""Families are recognised by the names that transformers gives them."""

import pytest

from specimens import MAKERS, state_of, tiny_model
from unshard.recipes.families import family_of, sizes_of
from unshard.recipes.wrappers import WRAPPERS, without_segments

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


def shapes_of(family: str) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state_of(tiny_model(family)).items()}


@pytest.mark.parametrize("family", TITLES)
def test_a_family_is_recognised_by_its_names(family: str) -> None:
    found = family_of(shapes_of(family))
    assert found is not None
    assert found.title == TITLES[family]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi3", "gpt2", "mixtral", "gpt-neox"])
def test_sizes_are_read_from_names_and_shapes(family: str) -> None:
    sizes = sizes_of(shapes_of(family))
    inner = 128 if family == "gpt2" else 64
    assert (sizes.layers, sizes.hidden, sizes.intermediate, sizes.vocabulary) == (2, 32, inner, 96)


def test_wrapped_names_tell_the_same_once_unwrapped() -> None:
    wrapped = {f"_orig_mod.{name}": shape for name, shape in shapes_of("llama").items()}
    plain = {without_segments(name, WRAPPERS): shape for name, shape in wrapped.items()}
    assert sizes_of(plain) == sizes_of(shapes_of("llama"))


def test_every_specimen_is_named_or_left_unnamed() -> None:
    assert set(TITLES) < set(MAKERS)
    assert family_of([]) is None
    assert sizes_of({}).hidden is None
