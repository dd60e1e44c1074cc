"""Every class of transformers, cut as a training script cuts it: its name comes back whole, or not at all."""

from __future__ import annotations

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from unshard.recipes.architectures import whole_architecture

CLASSES = {kind: name for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if isinstance(name, str)}


def test_the_name_of_the_wrapper_goes() -> None:
    for kind, name in CLASSES.items():
        assert whole_architecture(f"FSDP{name}", kind) == name


def test_a_whole_name_is_left() -> None:
    assert not [name for kind, name in CLASSES.items() if whole_architecture(name, kind) is not None]


def test_letters_that_were_cut_come_back_and_no_others() -> None:
    cut = {kind: name for kind, name in CLASSES.items() if name.lstrip("FSDP") != name}
    found = {kind: whole_architecture(name.lstrip("FSDP"), kind) for kind, name in cut.items()}
    assert not [kind for kind, name in found.items() if name not in (cut[kind], None)]
    told = [kind for kind, name in found.items() if name is not None]
    assert {"deepseek_v3", "phi", "phi3", "falcon", "smollm3", "stablelm", "starcoder2"} <= set(told)
    assert len(told) > 15


def test_without_a_type_nothing_is_made_up() -> None:
    assert whole_architecture("hiForCausalLM", None) is None
    assert whole_architecture("hiForCausalLM", "llama") is None
