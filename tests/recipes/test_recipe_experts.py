"""Recipes of experts: what transformers does, as data that can be read in both directions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
)

from tiny_experts import FAMILIES, tiny_experts
from unshard.base.conversion_tables import read_recipe
from unshard.base.model_class import recipe_from_class
from unshard.recipes.experts import RECIPES, Fusion, Recipe, every_recipe, renamed


def test_every_row_says_what_transformers_says() -> None:
    read = {name: read_recipe(get_checkpoint_conversion_mapping(name) or ()) for name in RECIPES}
    assert read == RECIPES


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_the_class_of_a_model_says_what_its_row_says(family: str) -> None:
    model = tiny_experts(family)
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    assert recipe_from_class(config) == RECIPES[family]


def test_a_class_that_is_not_known_says_nothing() -> None:
    assert recipe_from_class({"architectures": ["NobodyKnows"], "model_type": "nobody"}) is None


def test_a_part_of_a_model_keeps_its_renames_to_itself() -> None:
    config: Any = AutoConfig.for_model("llava")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    plain = config.to_dict() | {"architectures": ["LlavaForConditionalGeneration"]}
    plain["text_config"] = {"model_type": "llama", "vocab_size": 40, **small}
    plain["vision_config"] = {"model_type": "clip_vision_model", **small}
    recipe = recipe_from_class(plain)
    assert recipe is not None
    assert recipe.rename("model.language_model.layers.0.input_layernorm.weight", "published") == (
        "language_model.model.layers.0.input_layernorm.weight"
    )
    assert recipe.rename("language_model.lm_head.weight", "memory") == "lm_head.weight"


@pytest.mark.parametrize("family", FAMILIES)
def test_names_go_there_and_back(family: str) -> None:
    recipe = RECIPES[family]
    for name in tiny_experts(family).state_dict():
        assert recipe.rename(recipe.rename(name, "published"), "memory") == name


def test_the_head_of_a_name_goes_there_and_back() -> None:
    fusion = RECIPES["mixtral"].fusions[0]
    head = fusion.head_of("model.layers.3.mlp.experts.gate_up_proj")
    assert head == "model.layers.3.mlp"
    assert fusion.head_of("model.layers.3.mlp.experts.gate_up_proj_scale") is None
    (_, second) = fusion.names_of(head, 1, 2)
    assert second == "model.layers.3.mlp.experts.1.w3.weight"
    assert fusion.place_of(second) == (head, 1, 1)


@pytest.mark.parametrize("number", ["01", "-1", "x", "", "\N{ARABIC-INDIC DIGIT ONE}", "1.0"])
def test_only_the_number_of_an_expert_is_one(number: str) -> None:
    fusion = RECIPES["qwen3_moe"].fusions[0]
    assert fusion.place_of(f"model.layers.0.mlp.experts.{number}.gate_proj.weight") is None


def test_an_ending_without_what_stands_before_it_is_no_expert() -> None:
    assert RECIPES["qwen3_moe"].fusions[0].place_of("7.gate_proj.weight") is None


def test_a_rename_ends_at_a_word() -> None:
    recipe = Recipe(renames=(renamed("mlp.gate.bias", "mlp.bias"),))
    assert recipe.rename("layers.0.mlp.gate.bias", "published") == "layers.0.mlp.bias"
    assert recipe.rename("layers.0.mlp.gate.bias_scale", "published") == "layers.0.mlp.gate.bias_scale"


@pytest.mark.parametrize(
    ("sources", "target", "operations"),
    [
        ("wqkv", ["q", "k", "v"], [Chunk(dim=0)]),
        (["e.*.a", "e.*.b"], "e.ab", [MergeModulelist(dim=0), Concatenate(dim=1, num_shards_attribute="n")]),
        ("e.*.a", "e.a", [MergeModulelist(dim=1)]),
        ("e.*.a", "e.a", [Concatenate(dim=0)]),
        ("e.a", "e.b", [Transpose(1, 2), Transpose(1, 2)]),
        (["e.*.a", "e.*.b"], "e.ab", [Concatenate(dim=1), MergeModulelist(dim=0)]),
    ],
)
def test_what_no_fusion_can_say_is_left_out(sources: Any, target: Any, operations: list[Any]) -> None:
    converter = WeightConverter(sources, target, operations=operations)
    assert read_recipe([converter, WeightRenaming("a", "b")]) == Recipe(renames=(renamed("b", "a"),))


def test_a_fusion_says_which_dimensions_are_exchanged() -> None:
    converter = WeightConverter("e.a.weight", "e.a", operations=[Transpose(1, 2)])
    assert read_recipe([converter]).fusions == (Fusion("e.a", ("e.a.weight",), swapped=(1, 2)),)


def test_recipes_that_change_nothing_are_not_tried() -> None:
    tried = list(every_recipe())
    assert Recipe() not in tried
    assert len(tried) == len(set(tried))


def test_experts_lie_in_memory_as_the_recipe_says() -> None:
    state = tiny_experts("qwen3_moe").state_dict()
    fused = state["model.layers.0.mlp.experts.gate_up_proj"]
    assert fused.shape == torch.Size((4, 48, 32))


def test_a_class_that_cannot_be_built_is_asked_by_its_model_type() -> None:
    recipe = recipe_from_class({"architectures": ["NobodyKnows"], "model_type": "nemotron_h"})
    assert recipe is not None
    assert recipe.rename("model.norm_f.weight", "published") == "backbone.norm_f.weight"
    assert [fusion.memory for fusion in recipe.fusions] == [
        "mixer.experts.up_proj",
        "mixer.experts.down_proj",
    ]
