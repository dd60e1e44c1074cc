"""config.json: edited where the tensors prove it wrong, and nowhere else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from specimens import SIZES, State, match_state, tiny_model
from tiny_experts import tiny_experts
from unshard.match.config_edits import (
    architecture_edits,
    cache_edits,
    check_edits,
    quantisation_edits,
    spelling_edits,
    tie_edits,
)
from unshard.writers.json_editing import edit_json

Folder = Callable[[str], Path]
States = Callable[[str], State]


def test_a_cache_that_training_switched_off_is_switched_on_at_every_level() -> None:
    config = {"use_cache": False, "text_config": {"use_cache": False}, "vision_config": {"use_cache": False}}
    assert cache_edits(config) == {"use_cache": True, "text_config.use_cache": True}
    assert cache_edits({"use_cache": True}) == {}


def test_the_name_of_a_wrapped_class_loses_its_wrapper() -> None:
    assert architecture_edits({"architectures": ["FSDPLlamaForCausalLM"]}) == {
        "architectures": ["LlamaForCausalLM"]
    }
    assert architecture_edits({"architectures": ["LlamaForCausalLM"]}) == {}
    assert architecture_edits({"architectures": None}) == {}


def test_quantisation_goes_only_from_plain_tensors() -> None:
    config = {"quantization_config": {"bits": 4}, "text_config": {"quantization_config": {"bits": 4}}}
    assert quantisation_edits(config, plain=True) == {
        "quantization_config": None,
        "text_config.quantization_config": None,
    }
    assert quantisation_edits(config, plain=False) == {}


@pytest.mark.parametrize(
    ("config", "tied", "diverged", "edits"),
    [
        ({}, None, False, {}),
        ({}, True, False, {"tie_word_embeddings": True}),
        ({"tie_word_embeddings": True}, True, False, {}),
        ({"tie_word_embeddings": True, "text_config": {}}, True, False, {}),
        (
            {"tie_word_embeddings": True, "text_config": {}},
            False,
            True,
            {"tie_word_embeddings": False, "text_config.tie_word_embeddings": False},
        ),
        (
            {"text_config": {"tie_word_embeddings": True}},
            False,
            False,
            {"tie_word_embeddings": False, "text_config.tie_word_embeddings": False},
        ),
    ],
)
def test_the_tie_flag_is_true_to_the_tensors(
    config: dict[str, object], tied: bool | None, diverged: bool, edits: dict[str, object]
) -> None:
    assert tie_edits(config, tied=tied, diverged=diverged) == edits


def test_every_edit_is_told_with_both_values() -> None:
    config = {"use_cache": False, "text_config": {"vocab_size": 96}, "quantization_config": {"bits": 4}}
    edits = {"use_cache": True, "text_config.vocab_size": 97, "quantization_config": None, "dtype": "float16"}
    told = [(f.subject, f.saw, f.expected) for f in check_edits(config, edits)]
    assert told == [
        ("use_cache", "false", "true"),
        ("text_config.vocab_size", "96", "97"),
        ("quantization_config", "1 settings", "no such key"),
        ("dtype", "no such key", "float16"),
    ]


def test_a_sound_checkpoint_of_a_sound_base_edits_nothing(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    for family in ("llama", "qwen3", "gemma3", "encoder"):
        assert match_state(state(family), base_folder(family), tmp_path / family).config_edits == {}


ROPES = {
    "default": {"rope_type": "default", "rope_theta": 5e5},
    "linear": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e4},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 5e5},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
        "rope_theta": 5e5,
    },
}


def spellings(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a configuration as transformers 5 writes it, with both spellings and with the older one."""
    new = json.loads(config.to_json_string(use_diff=False))
    both = json.loads(edit_json(json.dumps(new).encode(), spelling_edits(new)))
    return both, _without_new_rope(both)


def _without_new_rope(config: dict[str, Any]) -> dict[str, Any]:
    plain = {k: _without_new_rope(v) if k == "text_config" else v for k, v in config.items()}
    return {k: v for k, v in plain.items() if k not in ("rope_parameters", "num_local_experts")}


@pytest.mark.parametrize("name", [*ROPES, "qwen3", "gpt-neox", "gemma3", "phi3", "qwen2-vl", "qwen3_moe"])
def test_both_spellings_and_the_older_one_mean_the_same_model(name: str) -> None:
    if name in ROPES:
        config = transformers.LlamaConfig(**SIZES, rope_parameters=ROPES[name])
    else:
        config = (tiny_experts(name) if name == "qwen3_moe" else tiny_model(name)).config
    for spelt in spellings(config):
        again = transformers.AutoConfig.for_model(**spelt)
        assert _meaning(again) == _meaning(config)


def _meaning(config: Any) -> tuple[Any, Any]:
    """Return the rotary parameters of a language model, and how many experts it has."""
    text = config.get_text_config()
    rope = {
        key: value for key, value in text.rope_parameters.items() if key not in ("type", "attention_factor")
    }
    return rope, getattr(text, "num_local_experts", None)


def test_a_spelling_that_is_there_is_left_alone() -> None:
    rope = {"rope_type": "default", "rope_theta": 5e5}
    assert spelling_edits({"model_type": "llama", "rope_parameters": rope}) == {"rope_theta": 5e5}
    assert spelling_edits({"model_type": "llama", "rope_theta": 1.0, "rope_parameters": rope}) == {}
    assert spelling_edits({"model_type": "llama", "rope_theta": 1.0}) == {}
    assert spelling_edits({"model_type": "mixtral", "num_local_experts": 4}) == {}
    assert spelling_edits({"model_type": "qwen3_moe", "num_local_experts": 4}) == {"num_experts": 4}
    assert spelling_edits({"model_type": "bert", "rope_parameters": None}) == {}
