"""Checkpoints of DCP that ranks save together: read by torch, by this package, and by other ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import load

import command_line
import unshard
from command_line import Unshard
from trainers import tiny_llama
from trainers.loading_runs import Scene, load_scenes, quiet, wrong_of
from trainers.ranks import run_ranks
from trainers.sharded_saves import SAVED, save_scenes, truth_of
from unshard.record.description import RECORD_NAME
from unshard.record.reading import read_record

NAMES = [*SAVED[2], *SAVED[4]]


@pytest.fixture(scope="module")
def saves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of all saves, of two ranks and of four."""
    folder = tmp_path_factory.mktemp("sharded")
    tiny_llama.tiny_tokenizer().save_pretrained(folder / "tokenizer")
    for size in SAVED:
        run_ranks(size, save_scenes, folder, timeout_seconds=200)
    return folder


command = command_line.unshard


def told(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted((folder / name).glob("*.json"))]


@pytest.mark.parametrize("name", NAMES)
def test_every_number_is_in_the_checkpoint_under_the_names_of_the_module(name: str, saves: Path) -> None:
    truth = load_file(truth_of(saves, name))
    checkpoint = unshard.open(saves / name)
    saw = {key: as_torch(checkpoint, key) for key in checkpoint}
    again = truth.keys() - saw.keys()
    assert saw.keys() <= truth.keys()
    assert again <= {"lm_head.weight", "tied.weight"}
    assert wrong_of(saw, truth) == []
    assert all(saw[key].shape == truth[key].shape for key in saw)
    assert {key: tensor.dtype for key, tensor in saw.items()} == {key: truth[key].dtype for key in saw}


def as_torch(checkpoint: unshard.Checkpoint, name: str) -> torch.Tensor:
    tensor = checkpoint[name]
    fresh = torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype.name))
    if fresh.numel():
        tensor.read(0, fresh.numel(), fresh.view(-1).view(torch.uint8).numpy().data)
    return fresh


@pytest.mark.parametrize("name", NAMES)
def test_torch_loads_it(name: str, saves: Path) -> None:
    truth = load_file(truth_of(saves, name))
    state = {key: torch.zeros_like(truth[key]) for key in unshard.open(saves / name)}
    with quiet():
        load(state, checkpoint_id=saves / name, no_dist=True)
    assert wrong_of(state, truth) == []


@pytest.mark.parametrize("name", NAMES)
def test_saving_leaves_the_model_as_it_was(name: str, saves: Path) -> None:
    for facts in told(saves, f"told-{name}"):
        assert facts["untouched"]
        assert facts["bytes"] > 0


@pytest.mark.parametrize("name", ["fsdp2", "fsdp1-original-tied", "mixtral", "tensor-parallel"])
def test_it_is_converted_without_being_told_anything(name: str, saves: Path, tmp_path: Path) -> None:
    result = unshard.convert(saves / name, tmp_path / "out", download=False)
    assert not [found for found in result.findings if found.severity != "info"], result.findings
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= files
    model = load_file(tmp_path / "out" / "model.safetensors")
    truth = load_file(truth_of(saves, name))
    assert wrong_of({key: model[key] for key in model.keys() & truth.keys()}, truth) == []
    if name != "mixtral":
        assert model.keys() >= truth.keys() - {"lm_head.weight"}


def test_it_is_inspected_and_checked_by_its_path_alone(saves: Path, command: Unshard) -> None:
    assert command("inspect", saves / "fsdp1", "--json").json["layout"]["name"] == "dcp"
    assert command("check", saves / "fsdp1").code == 0


def test_a_model_with_an_adapter_is_converted_to_what_peft_merges_it_to(saves: Path, tmp_path: Path) -> None:
    assert "lora_A" in " ".join(unshard.open(saves / "peft"))
    unshard.convert(saves / "peft", tmp_path / "out", download=False)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    truth = load_file(truth_of(saves, "peft"))
    assert merged.keys() == truth.keys()
    for name, tensor in truth.items():  # one product of rank 4 in float32, added up in another order
        assert (merged[name] - tensor).abs().max() <= 1e-6, name


def test_the_record_has_digests_and_the_fingerprint(saves: Path) -> None:
    record = read_record(saves / "fsdp1" / RECORD_NAME)
    assert record is not None
    assert record.distribution.kind == "fsdp1"
    assert record.tensors.keys() == unshard.open(saves / "fsdp1").keys()
    assert all(tensor.digests for tensor in record.tensors.values())
    assert record.fingerprint is not None
    assert read_record(saves / "awkward" / RECORD_NAME) is not None


def test_what_lies_at_the_path_is_not_replaced_unasked(saves: Path) -> None:
    first, second = told(saves, "told-refused")
    assert first == second
    assert first["exists"].startswith("OutputExistsError")
    assert first["two places"].startswith("OptionError: `path` is not the same on all ranks")
    assert not list(saves.glob("new-*"))
    assert not list(saves.glob(".*"))


def test_two_ranks_load_what_four_saved_and_four_what_two_saved(saves: Path, tmp_path: Path) -> None:
    for size, names in ((2, SAVED[4]), (4, ["fsdp1", "fsdp1-original-tied", "awkward-fsdp1"])):
        scenes = [scene_of(name, saves) for name in names]
        run_ranks(size, load_scenes, scenes, tmp_path, timeout_seconds=200)
        for name in names:
            facts = told(tmp_path, name)
            assert len(facts) == size
            assert [each["wrong"] for each in facts] == [[]] * size
            assert facts[0]["names"] == []


def scene_of(name: str, saves: Path) -> Scene:
    saved = {**SAVED[2], **SAVED[4]}[name]
    return Scene(
        name, saves / name, truth_of(saves, name), model=saved.model, tied=saved.tied, dtype=saved.dtype
    )
