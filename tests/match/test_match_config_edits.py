"""config.json: edited where the tensors prove it wrong, and nowhere else."""

from collections.abc import Callable
from pathlib import Path

import pytest

from specimens import State, match_state
from unshard.match.config_edits import (
    architecture_edits,
    cache_edits,
    check_edits,
    quantisation_edits,
    tie_edits,
)

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
