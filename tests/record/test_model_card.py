"""README.md of a model folder: only what the record tells, and nothing of it can break out."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from record_scenes import record_of, write_with_record
from safetensors.torch import load_file

from tiny_models import tiny_model, write_folder
from unshard import convert
from unshard.record.description import BaseOfTraining, ModelOfTraining, Record, TrainingConfig
from unshard.writers.model_card import code, model_card, plan_model_card, yaml_text

LLAMA = ModelOfTraining(
    "transformers.models.llama.modeling_llama.LlamaForCausalLM", {"model_type": "llama"}, "sdpa", 1000, 900
)
HOSTILE = 'a"b\\c\n---\nlicense: mit\n# `x` ``y`` | <script>\x00\x85\u2028\ud800\U0001f600'


def card(record: Record, *names: str) -> ModelCard:
    """Return a card as the hub's own library reads it."""
    content = model_card(record, names).decode()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return ModelCard(content)


def test_the_hub_reads_base_library_task_and_tags() -> None:
    data = card(record_of({}, model=LLAMA)).data
    assert (data.base_model, data.library_name) == ("org/model", "transformers")
    assert (data.pipeline_tag, data.tags) == ("text-generation", ["unshard"])
    assert data.to_dict()["base_model_relation"] == "finetune"


def test_what_the_record_does_not_know_is_not_said() -> None:
    plain = record_of({}, base=None, data=None, training=None, fingerprint=None)
    data = card(plain).data
    assert data.to_dict() == {"tags": ["unshard"]}
    assert "What it was trained from was not recorded." in model_card(plain).decode()


@pytest.mark.parametrize(
    "base", [BaseOfTraining("/home/me/llama", "a" * 40), BaseOfTraining("runs/llama", None)]
)
def test_a_folder_is_no_model_of_the_hub(base: BaseOfTraining) -> None:
    record = record_of({}, base=base)
    assert card(record).data.base_model is None
    assert base.reference in model_card(record).decode()


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ("HuggingFaceH4/ultrachat_200k", ["HuggingFaceH4/ultrachat_200k"]),
        ("org/one, org/two org/one", ["org/one", "org/two"]),
        ("two thousand dialogues", None),
        ("data/train", None),
        ("org/train.jsonl", None),
        ("org/../secret", None),
        ("", None),
    ],
)
def test_data_sets_are_named_only_where_the_data_is_nothing_but_names(data: str, found: Any) -> None:
    assert card(record_of({}, data=data)).data.datasets == found


def test_an_adapter_alone_is_one_of_peft() -> None:
    record = record_of({}, model=LLAMA)
    adapted = record_of(
        {},
        model=ModelOfTraining(LLAMA.class_name, None, None, 9, 1, {}, {"default": {"r": 4, "lora_alpha": 8}}),
    )
    assert card(record, "adapter_config.json").data.library_name == "peft"
    assert card(adapted).data.tags == ["unshard", "lora"]
    assert "| `default` | `r: 4`, `lora_alpha: 8` |" in model_card(adapted).decode()


def test_settings_of_training_stand_under_the_names_that_the_script_has() -> None:
    values = {
        "train": {"lr": 1e-5, "batch_size_training": 4, "pure_bf16": True, "scheduler": None},
        "fsdp": {"optimizer": "AdamW"},
        "weight_decay": 0.1,
        "password": "never shown",
    }
    text = model_card(record_of({}, training=TrainingConfig("several", values, ()))).decode()
    for row in (
        "| Step | `400` |",
        "| Learning rate | `lr: 1e-05` |",
        "| Batch size | `batch_size_training: 4` |",
        "| Optimizer | `optimizer: AdamW` |",
        "| Weight decay | `weight_decay: 0.1` |",
        "| Mixed precision | `pure_bf16: true` |",
        "| `torch` | `2.13.0` |",
        "| Ranks | `2` |",
        "| Devices | 8 x `NVIDIA H100` |",
    ):
        assert row in text
    assert "Schedule" not in text
    assert "never shown" not in text


def test_hostile_values_stay_values() -> None:
    values = {"lr": HOSTILE, "optimizer": ["|", "`"]}
    record = record_of(
        {},
        base=BaseOfTraining(HOSTILE, HOSTILE),
        data=HOSTILE,
        training=TrainingConfig("mapping", values, ()),
        model=ModelOfTraining(f"transformers.{HOSTILE}", None, None, 1, 1, {}, {HOSTILE: {"r": HOSTILE}}),
    )
    text = model_card(record).decode()
    assert card(record).data.license is None
    front, body = text.split("\n---\n", 1)
    assert set(yaml.safe_load(front.removeprefix("---\n"))) == {"library_name", "tags"}
    assert all(
        line.startswith(("#", "|", "It ", "Data", "unshard", "`unshard")) for line in body.split("\n") if line
    )
    assert all(line.replace("\\|", "").count("|") == 3 for line in body.split("\n") if line.startswith("|"))


@pytest.mark.parametrize("text", ["plain", "", HOSTILE, "\t\x7f\xa0\ufffe\ufeff'%@`"])
def test_yaml_reads_back_what_was_quoted(text: str) -> None:
    assert yaml.safe_load(yaml_text(text)) == text.replace("\ud800", "\ufffd")


@pytest.mark.parametrize(
    ("value", "span"),
    [("a`b", "``a`b``"), ("`", "`` ` ``"), ("``", "``` `` ```"), ("", "`  `"), ("a\nb", "`a b`"), (3, "`3`")],
)
def test_a_code_span_ends_where_its_value_does(value: object, span: str) -> None:
    assert code(value) == span


def test_a_folder_that_has_a_card_keeps_it() -> None:
    assert plan_model_card(record_of({}), {"README.md"}) == ()
    assert plan_model_card(None, ()) == ()
    assert [file.name for file in plan_model_card(record_of({}), ())] == ["README.md"]


def test_a_conversion_with_a_record_has_a_card(tmp_path: Path) -> None:
    base = write_folder(tiny_model("llama"), tmp_path / "base")
    run = write_with_record(base, tmp_path / "run", torch.float32, data="org/set")
    convert(run, tmp_path / "out", base=base)
    text = (tmp_path / "out" / "README.md").read_text()
    assert ModelCard(text).data.datasets == ["org/set"]
    assert json.loads((tmp_path / "out" / "unshard.record.json").read_text())["step"] == 400
    assert load_file(tmp_path / "out" / "model.safetensors")
