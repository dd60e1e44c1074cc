"""Training configurations of every kind become data, without secrets; files are kept as they are."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from unshard.errors import OptionError
from unshard.record.json_text import parse_json
from unshard.training.recording.training_config import GivenConfig, read_training_config

HUB = "hf_" + "aBcD1234" * 4


class Precision(enum.Enum):
    BF16 = "bf16"


@dataclasses.dataclass
class Optimizer:
    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = float("inf")


@dataclasses.dataclass
class TrainConfig:
    model_name: str = "org/model"
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    precision: Precision = Precision.BF16
    dtype: torch.dtype = torch.bfloat16
    output: Path = Path("runs/1")
    api_key: str = "secret"
    hook: Any = print
    modes: frozenset[str] = frozenset({"b", "a"})
    unset: None = None


@dataclasses.dataclass
class FsdpConfig:
    sharding_strategy: str = "FULL_SHARD"


class Demanding(Mapping[str, object]):
    """A mapping that raises for what is demanded and was not given, as OmegaConf's do."""

    def __getitem__(self, key: str) -> object:
        if key == "demanded":
            raise RuntimeError("Missing mandatory value")
        return {"lr": 1e-5}[key]

    def __iter__(self) -> Iterator[str]:
        return iter(("lr", "demanded"))

    def __len__(self) -> int:
        return 2


VALUES = {
    "model_name": "org/model",
    "optimizer": {"lr": 1e-5, "betas": [0.9, 0.95], "clip": float("inf")},
    "precision": "bf16",
    "dtype": "bfloat16",
    "output": "runs/1",
    "hook": "<builtins.print>",
    "modes": ["a", "b"],
    "unset": None,
}


def read(config: object) -> tuple[str, Mapping[str, Any]]:
    given = read_training_config(config)
    assert given.config is not None
    assert given.findings == ()
    return given.config.kind, given.config.values


def test_dataclasses_are_nested_data_without_secrets() -> None:
    assert read(TrainConfig()) == ("dataclass", VALUES)


def test_a_class_of_defaults_is_a_configuration_too() -> None:
    kind, values = read(FsdpConfig)
    assert (kind, values) == ("dataclass", {"sharding_strategy": "FULL_SHARD"})


def test_namespaces_and_mappings_are_data() -> None:
    assert read(argparse.Namespace(lr=1, inner=argparse.Namespace(token="x", a=True))) == (
        "namespace",
        {"lr": 1, "inner": {"a": True}},
    )
    assert read({"lr": 1, "inner": TrainConfig()})[1]["inner"] == VALUES
    assert read(Demanding()) == ("mapping", {"lr": 1e-5, "demanded": "<RuntimeError>"})


def test_training_arguments_are_data_without_tokens(tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), hub_token=HUB, learning_rate=3e-5, use_cpu=True)
    kind, values = read(arguments)
    assert kind == "TrainingArguments"
    assert values["learning_rate"] == 3e-5
    assert values["lr_scheduler_type"] == "linear"
    assert "hub_token" not in values
    assert HUB not in json.dumps(values)


def test_several_configurations_stand_by_their_names() -> None:
    given = read_training_config((TrainConfig(), FsdpConfig()))
    assert given.config is not None
    assert given.config.kind == "several"
    assert given.config.values == {"TrainConfig": VALUES, "FsdpConfig": {"sharding_strategy": "FULL_SHARD"}}
    assert given.config.files == ("unshard.training_config.1.json", "unshard.training_config.2.json")
    assert parse_json(given.files["unshard.training_config.2.json"]) == {"sharding_strategy": "FULL_SHARD"}


def test_what_is_no_file_is_kept_as_json_beside_the_record() -> None:
    given = read_training_config(TrainConfig())
    assert list(given.files) == ["unshard.training_config.json"]
    kept = parse_json(given.files["unshard.training_config.json"])
    assert kept == {**VALUES, "optimizer": {"lr": 1e-5, "betas": [0.9, 0.95], "clip": "Infinity"}}


def test_a_file_of_yaml_is_kept_byte_for_byte(tmp_path: Path) -> None:
    content = b"# by hand\r\nlr: 1.0e-5\nmodel: {name: org/model, when: 2026-11-24}\n"
    (tmp_path / "run.yml").write_bytes(content)
    given = read_training_config(tmp_path / "run.yml")
    assert given.config is not None
    assert given.config.kind == "yaml"
    assert given.config.values["model"] == {"name": "org/model", "when": "<datetime.date>"}
    assert given.files == {"unshard.training_config.yaml": content}


def test_a_file_of_json_is_kept_byte_for_byte(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(b'{ "lr": 1 }')
    given = read_training_config(str(tmp_path / "run.json"))
    assert given.files == {"unshard.training_config.json": b'{ "lr": 1 }'}


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (f"tracker:\n  - wandb: {{api_key: x}}\nnote: {HUB}\n", "tracker[0].wandb.api_key, note"),
        (f"# login with {HUB}\nlr: 1\n", "a comment, or the name of a value"),
        ("store: s3://user:word@host/x\n", "store"),
    ],
)
def test_a_file_with_secrets_is_not_copied_and_its_other_values_are_told(
    tmp_path: Path, text: str, place: str
) -> None:
    (tmp_path / "run.yaml").write_text(text)
    given = read_training_config(tmp_path / "run.yaml")
    (found,) = given.findings
    assert (found.code, found.saw) == ("U720", f"what looks like a secret: {place}")
    assert given.files == {}
    assert given.config is not None
    assert given.config.files == ()
    assert not leaked(given)


def leaked(given: GivenConfig) -> bool:
    assert given.config is not None
    shown = json.dumps(given.config.values) + given.findings[0].saw
    return HUB in shown or "word" in shown or '"x"' in shown


def test_a_configuration_that_holds_itself_ends() -> None:
    values: dict[str, object] = {"lr": 1}
    values["self"] = values
    assert "nested too deeply" in json.dumps(read(values)[1])


def test_odd_numbers_and_text_have_a_form_in_json() -> None:
    given = read_training_config({"big": 1 << 70, "text": "\ud800", 3: [b"raw", range(3)]})
    assert given.config is not None
    assert given.config.values == {
        "big": "<an integer of 71 bits>",
        "text": "?",
        "3": ["<builtins.bytes>", "<builtins.range>"],
    }
    parse_json(given.files["unshard.training_config.json"])


@pytest.mark.parametrize("config", [3, object(), ("absent.yaml",), (None,), b"x"])
def test_what_is_no_configuration_is_refused(config: object) -> None:
    with pytest.raises(OptionError):
        read_training_config(config)


@pytest.mark.parametrize("text", ["- a list", "a: [", "", "\x00"])
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(OptionError, match="cannot be read as a training configuration"):
        read_training_config(tmp_path / "run.yaml")
