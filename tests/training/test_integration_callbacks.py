"""Callbacks in real trainers leave models that can be served beside checkpoints, and disturb nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainers.catalogue import TrainedCheckpoint
from trainers.ranks import run_ranks
from unshard import verify
from unshard.errors import OptionError
from unshard.record.reading import read_record
from unshard.training.integrations.lightning import UnshardCallback as ForLightning
from unshard.training.integrations.lightning import part_of
from unshard.training.integrations.transformers import UnshardCallback as ForTransformers

RUNS = {
    "transformers-fsdp1": ("checkpoint-3/unshard", "fsdp1"),
    "transformers-fsdp2": ("checkpoint-3/unshard", "fsdp2"),
    "lightning-fsdp1": ("unshard/step-3", "fsdp1"),
    "lightning-fsdp2": ("unshard/step-3", "fsdp2"),
    "lightning-ddp": ("unshard/step-3", "ddp"),
}


@pytest.fixture(scope="module")
def base(trained_checkpoints: Mapping[str, TrainedCheckpoint]) -> Path:
    base = trained_checkpoints["plain"].base
    assert base is not None
    return base


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what two ranks left with every trainer."""
    from trainers.callbacks import leave_all

    folder = tmp_path_factory.mktemp("callbacks")
    run_ranks(2, leave_all, folder, base, timeout_seconds=200)
    return folder


@pytest.mark.parametrize("run", RUNS)
def test_what_two_ranks_leave_is_the_model_that_torch_gathers(trained: Path, run: str) -> None:
    truth = load_file(trained / run / "truth.safetensors")
    names = {name.removeprefix("model.") if run.startswith("lightning") else name: name for name in truth}
    written = load_file(trained / run / RUNS[run][0] / "model.safetensors")
    assert written.keys() == names.keys() - {"lm_head.weight"}  # which is the embedding
    assert all(tensor.equal(truth[names[name]]) for name, tensor in written.items())


@pytest.mark.parametrize("run", RUNS)
def test_what_two_ranks_leave_is_proven_by_its_record(trained: Path, run: str) -> None:
    folder = trained / run / RUNS[run][0]
    record = read_record(folder / "unshard.record.json")
    assert record is not None
    assert record.distribution.kind == RUNS[run][1]
    assert (record.step, record.distribution.world_size) == (3, 2)
    assert record.fingerprint is not None
    verification = verify(folder)
    assert verification.sound, verification.levels


@pytest.mark.parametrize("run", RUNS)
def test_what_two_ranks_leave_loads_with_its_tokenizer(trained: Path, run: str, base: Path) -> None:
    folder = trained / run / RUNS[run][0]
    assert (
        AutoTokenizer.from_pretrained(folder).get_vocab() == AutoTokenizer.from_pretrained(base).get_vocab()
    )
    _, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_the_configuration_of_the_trainer_is_in_the_record(trained: Path) -> None:
    records = {
        run: read_record(trained / run / place / "unshard.record.json") for run, (place, _) in RUNS.items()
    }
    values = {run: record.training for run, record in records.items() if record is not None}
    theirs, lightning = values["transformers-fsdp1"], values["lightning-ddp"]
    assert theirs is not None
    assert lightning is not None
    assert (theirs.kind, theirs.values["max_steps"]) == ("TrainingArguments", 3)
    assert lightning.values == {"lr": 0.01, "is_sharded": False}
    assert [record.seed for record in records.values() if record is not None][:2] == [7, 7]


@pytest.mark.parametrize("version", [1, 2])
def test_the_trainers_limit_of_checkpoints_holds_for_ours(trained: Path, version: int) -> None:
    run = trained / f"transformers-fsdp{version}"
    assert sorted(path.parent.name for path in run.glob("*/unshard")) == ["checkpoint-2", "checkpoint-3"]
    assert (run / "checkpoint-3" / "pytorch_model_fsdp_0" / ".metadata").is_file()


def test_lightning_saves_every_so_many_steps_and_at_the_end_once_each(trained: Path) -> None:
    assert sorted(path.name for path in (trained / "lightning-ddp" / "unshard").iterdir()) == [
        "step-2",
        "step-3",
    ]


@pytest.fixture(scope="module")
def alone(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what one process left with transformers' Trainer."""
    from trainers.callbacks import train_with_transformers

    folder = tmp_path_factory.mktemp("alone")
    callback = ForTransformers(every=2, at_end=True, dtype="bfloat16", data="a row of tokens")
    train_with_transformers(folder, base, {}, callback)
    return folder


def test_one_process_saves_with_every_second_checkpoint_and_at_the_end(alone: Path) -> None:
    assert sorted(str(path.relative_to(alone)) for path in alone.rglob("unshard")) == [
        "checkpoint-2/unshard",
        "unshard",
    ]
    written = load_file(alone / "unshard" / "model.safetensors")
    truth = load_file(alone / "truth.safetensors")
    assert all(tensor.equal(truth[name].to(torch.bfloat16)) for name, tensor in written.items())
    record = read_record(alone / "unshard" / "unshard.record.json")
    assert record is not None
    assert record.data == "a row of tokens"


def test_the_trainer_resumes_from_a_checkpoint_with_ours_inside(
    alone: Path, base: Path, tmp_path: Path
) -> None:
    from trainers.callbacks import train_with_transformers

    resumed = train_with_transformers(
        tmp_path, base, {}, ForTransformers(every=9), resume=alone / "checkpoint-2"
    )
    truth, state = load_file(alone / "truth.safetensors"), resumed.model.state_dict()
    assert all(state[name].equal(tensor) for name, tensor in truth.items())


def test_training_survives_a_save_that_fails_and_is_told(base: Path, tmp_path: Path) -> None:
    from trainers.callbacks import train_with_transformers

    callback = ForTransformers(base=tmp_path / "nowhere")
    with pytest.warns(UserWarning, match="training goes on without .*checkpoint-.*nowhere"):
        trainer = train_with_transformers(tmp_path, base, {}, callback)
    assert trainer.state.global_step == 3
    assert not list(tmp_path.rglob("unshard"))
    strict = ForTransformers(base=tmp_path / "nowhere", strict=True)
    with pytest.raises(Exception, match="nowhere"):
        train_with_transformers(tmp_path, base, {}, strict)


@pytest.mark.parametrize("trainer", ["transformers", "lightning"])
def test_options_that_mean_nothing_are_refused_before_training(trainer: str) -> None:
    kind: Any = {"transformers": ForTransformers, "lightning": ForLightning}[trainer]
    with pytest.raises(OptionError, match=r"saw max_shards, expected .*max_shard_size"):
        kind(max_shards=3)
    with pytest.raises(OptionError, match="adapter"):
        kind(adapter="melt")
    with pytest.raises(OptionError, match="every"):
        kind(**{{"transformers": "every", "lightning": "every_n_train_steps"}[trainer]: -1})


def test_a_part_that_a_lightning_module_does_not_have_is_named(base: Path) -> None:
    from trainers.callbacks import Module

    module = Module(base, is_sharded=False)
    assert part_of(module, None) is part_of(module, "model") is module.model
    with pytest.raises(OptionError, match="saw network, expected model"):
        part_of(module, "network")


@pytest.mark.parametrize(
    ("trainer", "hidden", "command"),
    [
        ("transformers", ["transformers"], 'pip install "unshard[hf]"'),
        ("lightning", ["lightning", "pytorch_lightning"], "pip install lightning"),
    ],
)
def test_a_missing_trainer_is_named_with_what_installs_it(
    trainer: str, hidden: list[str], command: str
) -> None:
    program = f"""
import sys
sys.modules.update(dict.fromkeys({hidden}))
from unshard.errors import MissingExtraError
try:
    import unshard.training.integrations.{trainer}
except MissingExtraError as error:
    assert "{hidden[-1] if trainer == "transformers" else "lightning"}" in str(error), str(error)
    print(error.hint)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == command
