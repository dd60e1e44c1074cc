"""Runs of many steps, models and places: which of them is taken, and what is told of the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reader_suite import opened
from safetensors.torch import save_file

from step_folders import PARTS, write_step
from unshard.checkpoint import Checkpoint
from unshard.errors import IncompleteCheckpointError, OptionError, UnsafeFileError
from unshard.readers import open_checkpoint
from unshard.readers.opening import open_steps


def number_in(checkpoint: Checkpoint) -> float:
    return float(checkpoint["b"].numpy()[0])


def finding_of(checkpoint: Checkpoint, code: str) -> str:
    (found,) = (f for f in checkpoint.findings if f.code == code)
    return f"{found.subject}: {found.saw} {found.remedy}"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of three steps, the newest of which lacks a file."""
    for step in (100, 200, 300):
        write_step(tmp_path / "run" / f"checkpoint-{step}", step)
    (tmp_path / "run" / "checkpoint-300" / PARTS[1]).unlink()
    return tmp_path / "run"


def test_the_newest_step_that_is_whole_is_taken_and_the_other_is_told(run: Path) -> None:
    checkpoint = opened(run)
    assert number_in(checkpoint) == 200
    told = finding_of(checkpoint, "U115")
    assert told.startswith("checkpoint-300")
    assert PARTS[1] in told
    assert [step.number for step in checkpoint.steps] == [100, 200, 300]


@pytest.mark.parametrize("below", ["", "checkpoint-300"])
def test_a_step_that_was_asked_for_and_is_incomplete_names_the_best_earlier_one(
    below: str, run: Path
) -> None:
    with pytest.raises(IncompleteCheckpointError) as caught:
        open_checkpoint(run / below, step=None if below else 300, select=None)
    assert PARTS[1] in caught.value.message
    assert "Step 200 is whole" in str(caught.value.hint)
    assert "checkpoint-200" in str(caught.value.hint)


def test_a_run_without_a_whole_step_is_refused_for_its_newest(run: Path) -> None:
    for step in (100, 200):
        (run / f"checkpoint-{step}" / PARTS[0]).unlink()
    with pytest.raises(IncompleteCheckpointError, match="checkpoint-300") as caught:
        opened(run)
    assert "whole" not in str(caught.value.hint)


def test_every_step_is_opened_or_has_its_reason(run: Path) -> None:
    steps = open_steps([run], step=None, select=None)
    assert [(one.step.number, one.is_chosen, one.error is None) for one in steps] == [
        (100, False, True),
        (200, False, True),
        (300, True, False),
    ]
    assert isinstance(steps[-1].error, IncompleteCheckpointError)


@pytest.fixture
def nodes(tmp_path: Path) -> tuple[Path, Path]:
    """One checkpoint, whose second file lies on another node's disk."""
    first = write_step(tmp_path / "node0" / "checkpoint-5", 5)
    second = tmp_path / "node1" / "checkpoint-5"
    second.mkdir(parents=True)
    (first / PARTS[1]).rename(second / PARTS[1])
    return first.parent, second.parent


@pytest.mark.parametrize("order", [1, -1])
def test_a_checkpoint_in_several_places_is_one(nodes: tuple[Path, Path], order: int) -> None:
    places = nodes[::order]
    checkpoint = open_checkpoint(places, step=None, select=None)
    assert number_in(checkpoint) == 5
    assert {file.path.parent.parent for file in checkpoint.files} == set(nodes)


def test_the_folders_of_the_checkpoint_itself_can_be_given(nodes: tuple[Path, Path]) -> None:
    places = [place / "checkpoint-5" for place in nodes]
    assert number_in(open_checkpoint(places, step=None, select=None)) == 5


def test_one_of_several_places_alone_is_incomplete(nodes: tuple[Path, Path]) -> None:
    with pytest.raises(IncompleteCheckpointError, match=PARTS[1]):
        opened(nodes[0])


def test_equal_copies_in_several_places_are_one_file(nodes: tuple[Path, Path]) -> None:
    index = "checkpoint-5/model.safetensors.index.json"
    (nodes[1] / index).write_bytes((nodes[0] / index).read_bytes())
    assert number_in(open_checkpoint(nodes, step=None, select=None)) == 5


def test_different_files_of_one_name_in_several_places_are_refused(nodes: tuple[Path, Path]) -> None:
    save_file({"b": torch.full((2,), 6.0)}, nodes[0] / "checkpoint-5" / PARTS[1])
    with pytest.raises(UnsafeFileError, match="two places") as caught:
        open_checkpoint(nodes, step=None, select=None)
    assert str(nodes[1]) in caught.value.message
    assert "different saves" in str(caught.value.hint)


def test_a_file_is_no_place_among_several(nodes: tuple[Path, Path]) -> None:
    file = nodes[1] / "checkpoint-5" / PARTS[1]
    with pytest.raises(OptionError, match="several places can only be folders"):
        open_checkpoint([nodes[0], file], step=None, select=None)


def test_a_critic_stands_back_behind_the_actor_and_is_told(tmp_path: Path) -> None:
    for model, value in (("actor", 1.0), ("critic", 2.0)):
        write_step(tmp_path / "global_step_7" / model, value)
    checkpoint = opened(tmp_path)
    assert number_in(checkpoint) == 1
    assert "critic" in finding_of(checkpoint, "U108")


def test_a_critic_alone_is_the_model(tmp_path: Path) -> None:
    write_step(tmp_path / "global_step_7" / "critic", 2.0)
    assert number_in(opened(tmp_path)) == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", "policy:\n  model_name: org/model\n  lr: 1e-5\n"),
        ("config.yaml", "model:\n  pretrained_model_name_or_path: org/model\n"),
        ("config.yaml", "actor_rollout_ref: {model: {path: org/model}}\n"),
        ("torchtune_config.yaml", "checkpointer:\n  checkpoint_dir: org/model\n"),
    ],
)
def test_the_base_is_found_where_trainers_name_it(name: str, content: str, tmp_path: Path) -> None:
    write_step(tmp_path / "step_3" / "policy" / "weights", 3)
    (tmp_path / "step_3" / name).write_text(content)
    hints = opened(tmp_path).base_hints
    assert [hint.reference for hint in hints] == ["org/model"]
    assert hints[0].origin.endswith(f"in {name}")


def test_a_configuration_that_names_no_model_is_not_training_parameters(tmp_path: Path) -> None:
    write_step(tmp_path / "step_3", 3)
    (tmp_path / "config.yaml").write_text("server: {port: 80}\n")
    assert opened(tmp_path).training is None


def test_hyper_parameters_of_lightning_name_the_base(tmp_path: Path) -> None:
    folder = write_step(tmp_path / "epoch=1-step=3.ckpt", 3)
    kept = {"hyper_parameters": {"model_name_or_path": "org/model", "lr": 1e-5}, "epoch": 1}
    torch.save(kept, folder / "meta.pt")
    checkpoint = opened(tmp_path)
    assert [hint.reference for hint in checkpoint.base_hints] == ["org/model"]
    assert checkpoint.training is not None
    assert "lr" not in checkpoint.training.values


def test_a_tokenizer_beside_the_folder_of_the_weights_is_found(tmp_path: Path) -> None:
    write_step(tmp_path / "step_3" / "policy" / "weights", 3)
    tokenizer = tmp_path / "step_3" / "policy" / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    assert opened(tmp_path).side_files["tokenizer.json"] == tokenizer / "tokenizer.json"


@pytest.mark.parametrize("below", ["", "global_step_7"])
def test_training_state_above_a_model_does_not_hide_it(below: str, tmp_path: Path) -> None:
    write_step(tmp_path / "global_step_7" / "actor", 7)
    torch.save({"_num_yielded": 3}, tmp_path / "global_step_7" / "data.pt")
    assert number_in(opened(tmp_path / below)) == 7


def test_what_lies_below_a_model_in_a_file_is_part_of_it(tmp_path: Path) -> None:
    torch.save({"b": torch.full((2,), 1.0)}, tmp_path / "model.pt")
    write_step(tmp_path / "older", 7)
    assert number_in(opened(tmp_path)) == 1
