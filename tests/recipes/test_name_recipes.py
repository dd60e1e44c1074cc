"""Recipes of names: what is a wrapper, a leftover, or computed by the model itself."""

import pytest

from unshard.recipes.buffers import is_buffer
from unshard.recipes.families import family_of, layer_count, layer_number, sizes_of
from unshard.recipes.known_models import known_models, nearest_model
from unshard.recipes.leftovers import adapter_kind, flat_parameters, is_training_only
from unshard.recipes.quantised import quantisation_kind
from unshard.recipes.recomputable import recomputable_kind
from unshard.recipes.renamings import renamings
from unshard.recipes.wrappers import WRAPPERS, without_segments, wrappers_in

WRAPPED = "_fsdp_wrapped_module.model.layers.0._checkpoint_wrapped_module.mlp._orig_mod.up_proj.weight"


def test_wrappers_are_removed_wherever_they_stand() -> None:
    assert without_segments(WRAPPED, WRAPPERS) == "model.layers.0.mlp.up_proj.weight"
    assert wrappers_in([WRAPPED, "plain"]) == {
        "_fsdp_wrapped_module": 1,
        "_checkpoint_wrapped_module": 1,
        "_orig_mod": 1,
    }


def test_a_segment_is_removed_only_whole() -> None:
    assert without_segments("my_orig_mod.weight", WRAPPERS) == "my_orig_mod.weight"
    assert without_segments("model._orig_modes.weight", WRAPPERS) == "model._orig_modes.weight"


@pytest.mark.parametrize("renaming", list(renamings()), ids=lambda renaming: renaming.title)
def test_a_renaming_and_its_reverse_undo_one_another(renaming: object) -> None:
    for old, new in renaming.prefixes:  # type: ignore[attr-defined]
        assert renaming.apply(f"{old}x") == f"{new}x"  # type: ignore[attr-defined]
        assert renaming.reversed().apply(f"{new}x") == f"{old}x"  # type: ignore[attr-defined]


def test_adapters_are_known_by_name() -> None:
    assert adapter_kind("base_model.model.q_proj.lora_A.default.weight") == "LoRA adapter"
    assert adapter_kind("q_proj.lora_magnitude_vector") == "DoRA adapter"
    assert adapter_kind("score.modules_to_save.default.weight") == "PEFT adapter"
    assert adapter_kind("model.layers.0.mlp.up_proj.weight") is None


def test_buffers_of_training_in_float8_are_no_part_of_a_model() -> None:
    assert is_training_only("layers.0.wq.fp8_amax_history_weight")
    assert is_training_only("layers.0.wq.fp8_scale_grad_output")
    assert not is_training_only("layers.0.fp8_scale.weight")


def test_quantised_weights_are_known_by_name() -> None:
    assert quantisation_kind("up_proj.weight.absmax") == "bitsandbytes 4-bit"
    assert quantisation_kind("up_proj.weight.quant_state.bitsandbytes__nf4") == "bitsandbytes 4-bit"
    assert quantisation_kind("up_proj.SCB") == "bitsandbytes 8-bit"
    assert quantisation_kind("up_proj.qweight") == "GPTQ or AWQ"
    assert quantisation_kind("up_proj.weight_scale_inv") == "FP8 with scales"
    assert quantisation_kind("mlp.experts.gate_up_proj_blocks") == "MXFP4"
    assert quantisation_kind("model.embed_tokens.weight") is None


def test_state_of_training_and_flat_parameters_are_known_by_name() -> None:
    assert is_training_only("model.layers.0.attn._extra_state")
    assert not is_training_only("model.extra_state.weight")
    assert flat_parameters(["a._flat_param", "b.flat_param_0", "c.weight"]) == [
        "a._flat_param",
        "b.flat_param_0",
    ]


def test_what_a_model_computes_is_known_by_name_and_shape() -> None:
    assert recomputable_kind("model.layers.0.self_attn.rotary_emb.inv_freq", (64,)) == "frequencies"
    assert recomputable_kind("rope.freqs", (64,)) == "frequencies"
    assert recomputable_kind("h.0.attn.bias", (1, 1, 1024, 1024)) == "causal mask"
    assert recomputable_kind("h.0.attn.masked_bias", ()) == "constant"
    assert recomputable_kind("embeddings.position_ids", (1, 512)) == "positions"
    assert recomputable_kind("freqs_cis", (4096, 64)) == "table"


def test_a_bias_of_another_shape_is_a_parameter() -> None:
    assert recomputable_kind("h.0.attn.bias", (768,)) is None
    assert recomputable_kind("h.0.attn.c_attn.bias", (1, 1, 4, 4)) is None


def test_buffers_are_known_by_name() -> None:
    assert is_buffer("mlp.gate.e_score_correction_bias")
    assert is_buffer("bn.running_mean")
    assert not is_buffer("self_attn.q_proj.bias")


def test_layers_are_counted_in_the_longest_stack() -> None:
    names = [f"model.layers.{i}.norm.weight" for i in range(12)] + ["vision.blocks.2.norm.weight"]
    assert layer_count(names) == 12
    assert layer_number("transformer.h.11.mlp.c_fc.weight") == 11
    assert layer_number("lm_head.weight") is None


def test_sizes_of_llama_name_the_model() -> None:
    shapes = {
        "model.embed_tokens.weight": (128256, 2048),
        "model.layers.15.self_attn.k_proj.weight": (512, 2048),
        "model.layers.15.mlp.gate_proj.weight": (8192, 2048),
    }
    assert nearest_model(sizes_of(shapes)) == "Llama-3.2-1B"


def test_a_resized_vocabulary_does_not_hide_the_model() -> None:
    shapes = {
        "model.embed_tokens.weight": (32001, 4096),
        "model.layers.31.self_attn.k_proj.weight": (4096, 4096),
        "model.layers.31.mlp.gate_proj.weight": (11008, 4096),
    }
    assert nearest_model(sizes_of(shapes)) == "Llama-2-7B"


def test_every_known_model_is_the_nearest_to_itself_or_to_its_twin() -> None:
    models = known_models()
    for name, sizes in models.items():
        assert models[nearest_model(sizes) or ""].hidden == sizes.hidden, name


def test_unknown_names_have_no_family() -> None:
    assert family_of(["encoder.conv1.weight"]) is None
