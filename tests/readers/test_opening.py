"""From what a person points at to the checkpoint that is meant."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from reader_suite import opened
from safetensors.torch import save_file
from torch_archives import write_sparse_model

from unshard.checkpoint import Checkpoint
from unshard.errors import (
    AmbiguousModelError,
    DamagedFileError,
    InputError,
    OptionError,
    PathNotFoundError,
    TrainingStateError,
    UnknownLayoutError,
    UnsafeFileError,
    UnsupportedLayoutError,
)
from unshard.readers import open_checkpoint

NESTED = "model_checkpoints/fine-tuned-meta-llama/Llama-3.2-1B"


def save(path: Path, value: float = 0.0) -> Path:
    """Write a model of one number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"w": torch.full((1, 1), value)}, path)
    return path


def save_folder(path: Path, value: float = 0.0) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    save_file({"w": torch.full((1, 1), value)}, path / "model.safetensors")
    return path


def number_in(checkpoint: Checkpoint) -> float:
    return float(checkpoint["w"].numpy().item())


def at_step(path: Path, step: int) -> Checkpoint:
    return open_checkpoint(path, step=step, select=None)


def codes(checkpoint: Checkpoint) -> list[str]:
    return [found.code for found in checkpoint.findings]


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    """A llama-recipes run of eleven epochs, with a half-written optimizer beside it."""
    folder = tmp_path / NESTED
    for epoch in (0, 2, 10):
        save(folder / f"meta-llama--Llama-3.2-1B-{epoch}.pt", epoch)
    (folder / "optimizer-meta-llama--Llama-3.2-1B-10.pt").write_bytes(b"PK\x03\x04 half of")
    (folder / "train_params.yaml").write_text("model_name: meta-llama/Llama-3.2-1B\npure_bf16: 'True'\n")
    return tmp_path


@pytest.mark.parametrize("below", ["", "model_checkpoints", NESTED])
def test_the_newest_epoch_is_taken_by_its_number_and_the_others_are_told(below: str, recipes: Path) -> None:
    checkpoint = opened(recipes / below)
    assert number_in(checkpoint) == 10
    assert [step.number for step in checkpoint.steps] == [0, 2, 10]
    assert checkpoint.layout.writer == "llama-recipes"
    (told,) = [found for found in checkpoint.findings if found.code == "U101"]
    assert "Llama-3.2-1B-0.pt" in told.saw
    assert "Llama-3.2-1B-2.pt" in told.saw
    assert told.remedy is not None
    assert "--step 2" in told.remedy


@pytest.mark.parametrize("epoch", [0, 2, 10])
def test_a_step_is_taken_by_its_number(epoch: int, recipes: Path) -> None:
    assert number_in(at_step(recipes, epoch)) == epoch


def test_an_absent_step_lists_those_that_are_there(recipes: Path) -> None:
    with pytest.raises(OptionError, match=r"--step 1` is not among the checkpoints: saw steps 0, 2, 10"):
        at_step(recipes, 1)


def test_a_step_of_a_file_that_has_another_is_refused(recipes: Path) -> None:
    file = recipes / NESTED / "meta-llama--Llama-3.2-1B-2.pt"
    assert number_in(at_step(file, 2)) == 2
    with pytest.raises(OptionError, match=r"--step 0` cannot be taken from one file"):
        at_step(file, 0)


def test_an_optimizer_beside_a_model_is_told_by_its_size_and_never_opened(recipes: Path) -> None:
    checkpoint = opened(recipes)
    (extra,) = checkpoint.extras
    assert (extra.name, extra.kind, extra.size) == (
        "optimizer-meta-llama--Llama-3.2-1B-10.pt",
        "optimizer",
        12,
    )
    assert "U102" in codes(checkpoint)


def test_training_parameters_and_the_base_they_name_are_found(recipes: Path) -> None:
    checkpoint = opened(recipes)
    assert checkpoint.training is not None
    assert dict(checkpoint.training.values) == {"model_name": "meta-llama/Llama-3.2-1B", "pure_bf16": "True"}
    assert [(h.reference, h.origin) for h in checkpoint.base_hints] == [
        ("meta-llama/Llama-3.2-1B", "model_name in train_params.yaml")
    ]


def test_names_that_begin_with_dashes_are_names(tmp_path: Path) -> None:
    folder = tmp_path / "fine-tuned-" / "models" / "8B"
    save(folder / "--models--8B-0.pt")
    checkpoint = opened(tmp_path)
    assert (checkpoint.path.name, checkpoint.layout.writer) == ("--models--8B-0.pt", "llama-recipes")


def test_forks_that_count_epochs_and_steps_are_told_by_their_folder(tmp_path: Path) -> None:
    for epoch, step in ((0, 500), (0, 1000), (1, 1500)):
        save(tmp_path / "x-my-model" / f"my-model-{epoch}-{step}.pt", step)
    checkpoint = opened(tmp_path)
    assert number_in(checkpoint) == 1500
    assert [step.number for step in checkpoint.steps] == [500, 1000, 1500]
    assert number_in(at_step(tmp_path, 1000)) == 1000


def test_numbers_that_belong_to_a_model_s_name_are_no_epochs(tmp_path: Path) -> None:
    for epoch in (0, 1):
        save(tmp_path / "fine-tuned-org" / "net-7" / f"org--net-7-{epoch}.pt", epoch)
    checkpoint = opened(tmp_path)
    assert [step.number for step in checkpoint.steps] == [0, 1]
    assert number_in(checkpoint) == 1


@pytest.mark.parametrize(
    ("names", "newest"),
    [
        (["checkpoint-500", "checkpoint-1000"], "checkpoint-1000"),
        (["step_00010", "step_00009"], "step_00010"),
        (["global_step20", "global_step3"], "global_step20"),
        (["epoch_0/step_9", "epoch_1/step_2"], "epoch_1/step_2"),
        (["ep1-ba10", "ep1-ba9"], "ep1-ba10"),
    ],
)
def test_the_newest_folder_of_a_run_is_taken(names: list[str], newest: str, tmp_path: Path) -> None:
    for name in names:
        save(tmp_path / name / "pytorch_model_fsdp.bin", float(name == newest))
        (tmp_path / name / "optimizer.bin").write_bytes(b"")
        (tmp_path / name / "random_states_0.pkl").write_bytes(b"")
    checkpoint = opened(tmp_path)
    assert number_in(checkpoint) == 1
    assert checkpoint.root == tmp_path
    assert checkpoint.layout.writer == "accelerate"
    assert {extra.name for extra in checkpoint.extras} == {"optimizer.bin", "random_states_0.pkl"}


def test_files_of_lightning_are_steps(tmp_path: Path) -> None:
    for name in ("epoch=0-step=100.ckpt", "epoch=1-step=200.ckpt"):
        save(tmp_path / name, float(name[6]))
    assert number_in(opened(tmp_path)) == 1
    assert number_in(at_step(tmp_path, 100)) == 0


def test_a_model_at_the_top_is_taken_before_the_steps_below_it(tmp_path: Path) -> None:
    save_folder(tmp_path, 1)
    save_folder(tmp_path / "checkpoint-5", 5)
    checkpoint = opened(tmp_path)
    assert number_in(checkpoint) == 1
    assert [(f.code, f.saw) for f in checkpoint.findings] == [("U101", "also there: checkpoint-5/")]
    assert number_in(at_step(tmp_path, 5)) == 5


def test_the_folder_of_a_step_belongs_to_the_run_above_it(tmp_path: Path) -> None:
    save_folder(tmp_path / "checkpoint-5")
    (tmp_path / "train_params.yaml").write_text("model_name: a/b")
    checkpoint = opened(tmp_path / "checkpoint-5")
    assert checkpoint.root == tmp_path
    assert checkpoint.training is not None


def test_several_models_in_a_run_are_refused_and_listed(tmp_path: Path) -> None:
    save(tmp_path / "a" / "model.pt")
    save(tmp_path / "b" / "model.pt")
    with pytest.raises(AmbiguousModelError, match=r"2 checkpoints.*`a/model\.pt`, `b/model\.pt`") as caught:
        opened(tmp_path)
    assert (
        caught.value.hint == f"Give the one that is meant, for example: unshard inspect {tmp_path}/a/model.pt"
    )


def test_two_models_of_accelerate_are_no_steps(tmp_path: Path) -> None:
    save(tmp_path / "pytorch_model_fsdp.bin")
    save(tmp_path / "pytorch_model_fsdp_1.bin")
    with pytest.raises(AmbiguousModelError, match=r"pytorch_model_fsdp\.bin.*pytorch_model_fsdp_1\.bin"):
        opened(tmp_path)


def test_a_numbered_and_an_unnumbered_file_are_not_guessed_between(tmp_path: Path) -> None:
    save(tmp_path / "ckpt.pt")
    save(tmp_path / "ckpt-100.pt")
    with pytest.raises(AmbiguousModelError):
        opened(tmp_path)


def test_files_that_turn_out_to_hold_no_model_do_not_stand_in_the_way(tmp_path: Path) -> None:
    save(tmp_path / "final.pt", 4)
    torch.save({"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}, tmp_path / "adam.pt")
    torch.save({"lr": 3}, tmp_path / "args.pt")
    assert number_in(opened(tmp_path)) == 4


def test_a_damaged_newest_step_names_an_earlier_one(recipes: Path) -> None:
    newest = recipes / NESTED / "meta-llama--Llama-3.2-1B-10.pt"
    os.truncate(newest, 700)
    with pytest.raises(DamagedFileError, match="is truncated") as caught:
        opened(recipes)
    assert caught.value.hint is not None
    assert "An earlier one: --step 2" in caught.value.hint


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


OTHERS = {
    "ZeRO": (["latest", "global_step5/zero_pp_rank_0_mp_rank_00_optim_states.pt"], "ZeRO"),
    "Megatron": (["iter_0000010/mp_rank_00/model_optim_rng.pt"], "Megatron"),
    "GGUF": (["model-q4.gguf"], "GGUF"),
    "NeMo": (["model.nemo"], "NeMo"),
}  # fmt: skip


@pytest.mark.parametrize(("names", "title"), OTHERS.values(), ids=list(OTHERS))
def test_layouts_that_are_not_read_are_refused_by_name(names: list[str], title: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedLayoutError, match=title):
        opened(touch(tmp_path, *names))


def test_a_file_of_a_layout_that_is_not_read_is_refused_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "latest", "mp_rank_00_model_states.pt")
    with pytest.raises(UnsupportedLayoutError, match="ZeRO"):
        opened(tmp_path / "mp_rank_00_model_states.pt")


def test_a_newer_step_that_cannot_be_read_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    save(tmp_path / "checkpoint-1" / "model.pt", 1)
    touch(tmp_path, "checkpoint-2/global_step2/zero_pp_rank_0_mp_rank_00_optim_states.pt")
    with pytest.raises(UnsupportedLayoutError, match="checkpoint-2/global_step2"):
        opened(tmp_path)
    assert number_in(at_step(tmp_path, 1)) == 1


def test_another_layout_beside_the_model_is_told(tmp_path: Path) -> None:
    save(tmp_path / "model.pt", 3)
    touch(tmp_path, "model.gguf")
    checkpoint = opened(tmp_path)
    assert number_in(checkpoint) == 3
    assert "U107" in codes(checkpoint)


MAGIC = {
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "gzip": b"\x1f\x8b\x08\x00" + bytes(50),
    "zstd": b"\x28\xb5\x2f\xfd" + bytes(50),
    "GGUF": b"GGUF\x03\x00\x00\x00",
    "HDF5": b"\x89HDF\r\n\x1a\n",
    "pickle of Python": b"\x80\x04\x95\x05\x00",
    "tar format": b"sys_info".ljust(512, b"\0"),
    "tar archive": b"model.ckpt".ljust(257, b"\0") + b"ustar\x00" + bytes(300),
}


@pytest.mark.parametrize("what", list(MAGIC))
def test_files_of_other_kinds_are_refused_by_name(what: str, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(MAGIC[what])
    with pytest.raises(UnsupportedLayoutError, match=what):
        opened(tmp_path)


NOTHING = {
    "is empty": b"",
    "begins with zeros": bytes(4096),
    "is a web page": b"<!DOCTYPE html><html>404</html>",
    "is not a checkpoint": b"hello, world",
    "is truncated": b"PK\x03\x04" + b"x" * 500,
    "ends in zeros": b"PK\x03\x04" + b"x" * 100 + bytes(70_000),
}


@pytest.mark.parametrize("why", list(NOTHING))
def test_what_is_no_checkpoint_is_told_with_evidence(why: str, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(NOTHING[why])
    with pytest.raises((DamagedFileError, UnknownLayoutError), match=why):
        opened(tmp_path / "model.pt")


def test_a_path_that_does_not_exist_names_what_is_there(tmp_path: Path) -> None:
    save(tmp_path / "run" / "model.pt")
    with pytest.raises(PathNotFoundError) as caught:
        opened(tmp_path / "run" / "modle.pt")
    assert caught.value.hint == f"`{tmp_path / 'run'}` exists; in it: model.pt"


def test_a_folder_without_a_checkpoint_says_what_it_holds(tmp_path: Path) -> None:
    touch(tmp_path, "notes/readme.txt", "log.txt")
    with pytest.raises(UnknownLayoutError, match=r"holds no checkpoint.*saw `notes/`, `log\.txt`"):
        opened(tmp_path)


def test_a_wrong_folder_names_the_one_that_was_meant(tmp_path: Path) -> None:
    save(tmp_path / "checkpoint-7" / "model.pt")
    touch(tmp_path, "checkpoint-7/tokenizer/tokenizer.json", "logs/events")
    for wrong in ("logs", "checkpoint-7/tokenizer"):
        with pytest.raises(UnknownLayoutError) as caught:
            opened(tmp_path / wrong)
        assert (
            caught.value.hint == f"There is one beside it: unshard inspect {tmp_path}/checkpoint-7/model.pt"
        )


def test_a_folder_of_optimizer_state_names_the_model_beside_it(tmp_path: Path) -> None:
    touch(tmp_path, "optimizer_0/.metadata")
    save(tmp_path / "pytorch_model_fsdp.bin")
    with pytest.raises(TrainingStateError) as caught:
        opened(tmp_path / "optimizer_0")
    assert caught.value.hint == f"There is one beside it: unshard inspect {tmp_path}/pytorch_model_fsdp.bin"


def test_a_file_beside_the_checkpoint_names_it(tmp_path: Path) -> None:
    save_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UnknownLayoutError) as caught:
        opened(tmp_path / "config.json")
    assert caught.value.hint == f"There is one beside it: unshard inspect {tmp_path}"


def test_pipes_and_devices_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.pt")
    with pytest.raises(UnsafeFileError, match="neither a file nor a folder"):
        opened(tmp_path / "model.pt")
    with pytest.raises(UnknownLayoutError):
        opened(tmp_path)
    with pytest.raises(UnsafeFileError):
        opened(Path("/dev/null"))


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    save(tmp_path / "a" / "model.pt")
    os.symlink(tmp_path, tmp_path / "a" / "up")
    os.symlink(tmp_path / "loop", tmp_path / "loop")
    assert opened(tmp_path).path == tmp_path / "a" / "model.pt"
    with pytest.raises(InputError):
        opened(tmp_path / "loop")


def test_a_link_to_the_newest_step_is_no_second_model(tmp_path: Path) -> None:
    save(tmp_path / "step-1" / "model.pt")
    os.symlink("step-1", tmp_path / "latest")
    assert opened(tmp_path).path.parent.name == "step-1"
    assert list(opened(tmp_path / "latest")) == ["w"]


@pytest.mark.parametrize("folder", ["huggingface", "tokenizer"])
def test_configuration_in_a_folder_of_its_own_is_a_hint(folder: str, tmp_path: Path) -> None:
    save(tmp_path / "model.pt")
    touch(tmp_path, f"{folder}/config.json", f"{folder}/tokenizer.json")
    checkpoint = opened(tmp_path)
    assert checkpoint.base_hints[0].reference == str(tmp_path / folder)
    assert set(checkpoint.side_files) == {"config.json", "tokenizer.json"}


def test_the_base_of_an_adapter_beside_the_model_is_a_hint(tmp_path: Path) -> None:
    save(tmp_path / "model.pt")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    assert [hint.reference for hint in opened(tmp_path).base_hints] == ["org/base"]


BAD_YAML: dict[str, Any] = {
    "cut off": b"model_name: 'x",
    "no mapping": b"- a\n- b\n",
    "binary": b"\xff\xfe\x00",
    "immense": b"a: b\n" * 20_000,
    "deep": b"a: " + b"[" * 5000,
}


@pytest.mark.parametrize("content", BAD_YAML.values(), ids=list(BAD_YAML))
def test_training_parameters_that_cannot_be_read_are_told_and_do_no_harm(
    content: bytes, tmp_path: Path
) -> None:
    save(tmp_path / "model.pt")
    (tmp_path / "train_params.yaml").write_bytes(content)
    checkpoint = opened(tmp_path)
    assert checkpoint.training is None
    assert "U106" in codes(checkpoint)


def test_training_parameters_are_text_whatever_yaml_makes_of_them(tmp_path: Path) -> None:
    save(tmp_path / "model.pt")
    plain, odd = "a: True\nb: 'None'\nc: null\nd: 1e-4\n", "e: [1, 2]\n<<: {g: 1}\n"
    call = f"f: !!python/object/apply:os.system ['touch {tmp_path}/ran']\n"
    (tmp_path / "train_params.yaml").write_text(plain + odd + call)
    training = opened(tmp_path).training
    assert training is not None
    assert dict(training.values) == {"a": "True", "b": "None", "c": "null", "d": "1e-4"}
    assert training.get("b") is None
    assert not (tmp_path / "ran").exists()


def test_a_model_of_810_gigabytes_is_described_from_its_headers(tmp_path: Path) -> None:
    shapes = {f"layers.{i}.{name}": (16384, 53248) for i in range(155) for name in ("up", "gate", "down")}
    path = write_sparse_model(tmp_path / "model.pt", shapes)
    assert path.stat().st_size > 810e9
    checkpoint = opened(path)
    assert {name: tensor.shape for name, tensor in checkpoint.tensors.items()} == shapes
    assert not checkpoint["layers.154.down"][-1, :5].any()
