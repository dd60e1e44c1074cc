"""What a record tells of the program, the base, the tokenizer and the machines."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from trainers.tiny_llama import VOCABULARY, tiny_llama, tiny_tokenizer
from unshard.record.description import Device, Environment
from unshard.training.live.module_tree import full_class_name, model_without_adapters
from unshard.training.recording.describing_run import (
    describe_base,
    describe_code,
    describe_tokenizer,
    model_config_of,
)
from unshard.training.recording.environment import check_alike, united, with_own_device


def git(folder: Path, *words: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


@pytest.fixture
def main_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The main file of this process, for one test."""
    main = tmp_path / "project" / "train.py"
    main.parent.mkdir()
    main.write_text("print()\n")
    module = ModuleType("__main__")
    module.__file__ = str(main)
    monkeypatch.setitem(sys.modules, "__main__", module)
    monkeypatch.setattr(sys, "argv", ["train.py", "--hub_token", "abc", "--lr", "1"])
    return main


def test_a_program_outside_any_work_tree_has_no_commit(main_file: Path) -> None:
    code = describe_code()
    assert code.command_line == ("train.py", "--hub_token", "***", "--lr", "1")
    assert (code.commit, code.dirty) == (None, None)


def test_a_program_is_told_by_its_commit_and_whether_the_tree_has_changes(main_file: Path) -> None:
    folder = main_file.parent
    git(folder, "init")
    git(folder, "commit", "--allow-empty", "-m", "first")
    assert describe_code().dirty is True  # the main file is not known to git
    git(folder, "add", "train.py")
    git(folder, "commit", "-m", "second")
    head = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    (folder / "output.log").write_text("what a run leaves")
    assert (describe_code().commit, describe_code().dirty) == (head, False)
    main_file.write_text("print(1)\n")
    assert describe_code().dirty is True


def test_git_runs_no_program_that_the_repository_names(main_file: Path) -> None:
    folder = main_file.parent
    git(folder, "init")
    git(folder, "add", "train.py")
    git(folder, "commit", "-m", "first")
    ran = folder.parent / "ran"
    script = folder / "monitor.sh"
    script.write_text(f"#!/bin/sh\ntouch {ran}\n")
    script.chmod(0o755)
    git(folder, "config", "core.fsmonitor", str(script))
    assert describe_code().dirty is False
    assert not ran.exists()


def test_the_base_is_what_the_script_names_with_the_commit_of_its_snapshot(tmp_path: Path) -> None:
    commit = "a" * 40
    snapshot = tmp_path / "models--org--model" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    told = describe_base(snapshot, None)
    assert told is not None
    assert (told.reference, told.revision) == ("org/model", commit)
    folder = describe_base(tmp_path, None)
    assert folder is not None
    assert (folder.reference, folder.revision) == (str(tmp_path), None)
    assert describe_base(None, None) is None


def test_without_a_name_the_base_is_what_the_configuration_was_loaded_from() -> None:
    config = tiny_llama(1, tied=False, dtype=torch.float32).config
    assert describe_base(None, config) is None
    config._name_or_path, config._commit_hash = "org/model", "b" * 40
    told = describe_base(None, config)
    assert told is not None
    assert (told.reference, told.revision) == ("org/model", "b" * 40)
    other = describe_base("org/another", config)
    assert other is not None
    assert (other.reference, other.revision) == ("org/another", None)


def test_a_tokenizer_is_told_by_the_digests_of_what_it_saves(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    told = describe_tokenizer(tokenizer)
    assert told is not None
    tokenizer.save_pretrained(tmp_path)
    content = (tmp_path / "tokenizer.json").read_bytes()
    assert told.files["tokenizer.json"] == hashlib.sha256(content).hexdigest()
    assert told.files.keys() == {path.name for path in tmp_path.iterdir()}
    assert (told.tokens, told.class_name) == (VOCABULARY, type(tokenizer).__name__)


def test_the_folder_of_a_tokenizer_is_as_good_as_the_tokenizer(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    told, of_object = describe_tokenizer(tmp_path), describe_tokenizer(tiny_tokenizer())
    assert told is not None
    assert of_object is not None
    assert (told.tokens, told.files["tokenizer.json"]) == (VOCABULARY, of_object.files["tokenizer.json"])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
def test_wrappers_are_no_part_of_the_class_of_a_model() -> None:
    model = tiny_llama(1, tied=False, dtype=torch.float32)
    name = "transformers.models.llama.modeling_llama.LlamaForCausalLM"
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for wrapped in (model, checkpoint_wrapper(model), adapted):
        assert full_class_name(model_without_adapters(wrapped)) == name
        assert model_config_of(wrapped) is model.config
    assert model_config_of(torch.nn.Linear(2, 2)) is None


H100 = Device("NVIDIA H100", "9.0", 80 << 30, 1)


def machine(**others: object) -> Environment:
    plain = Environment(
        "3.11.9", "Linux", {"torch": "2.13.0"}, "cuda", {"driver": "560"}, (H100,), bfloat16=True
    )
    return dataclasses.replace(plain, **others)  # type: ignore[arg-type]


def test_devices_of_all_ranks_are_counted_together() -> None:
    a100 = dataclasses.replace(H100, name="NVIDIA A100", capability="8.0")
    found = united([machine(), machine(), machine(devices=(a100,))])
    assert found.devices == (dataclasses.replace(H100, count=2), a100)
    assert united([machine(), machine(bfloat16=False)]).bfloat16 is False
    assert united([machine(bfloat16=None)]).bfloat16 is None


def test_a_rank_counts_one_device_of_those_that_it_sees() -> None:
    eight = machine(devices=(dataclasses.replace(H100, count=8),))
    assert with_own_device(eight).devices == (H100,)
    assert with_own_device(machine(devices=())).devices == ()


def test_ranks_that_run_other_software_are_named() -> None:
    other = machine(packages={"torch": "2.12.0", "peft": "0.19"})
    found = list(check_alike([machine(), other, machine(), other]))
    assert [(f.code, f.subject, f.saw) for f in found] == [
        ("U725", "peft", "peft 0.19 on rank 1, 3"),
        ("U725", "torch", "torch 2.12.0 on rank 1, 3"),
    ]
    assert found[0].expected == "peft absent, as on rank 0"
    assert list(check_alike([machine()] * 3)) == []
