"""Two functions of llama-recipes' names leave what its own leave: the same files, tensors and texts."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import yaml

from trainers.catalogue import TrainedCheckpoint
from trainers.ranks import run_ranks
from unshard import convert, verify
from unshard.errors import OutputError
from unshard.training.integrations.llama_recipes import save_fsdp_model_checkpoint_full, save_train_params

RECORD = ".unshard.record.json"


@pytest.fixture(scope="module")
def base(trained_checkpoints: Mapping[str, TrainedCheckpoint]) -> Path:
    base = trained_checkpoints["plain"].base
    assert base is not None
    return base


@pytest.fixture(scope="module")
def saved(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what both left, in `theirs` and in `ours`."""
    from trainers.recipes_drop_in import leave_both

    folder = tmp_path_factory.mktemp("recipes")
    run_ranks(2, leave_both, folder, base, timeout_seconds=200)
    return folder


def files_of(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def is_theirs(path: Path) -> bool:
    return not path.name.startswith("unshard.") and not path.name.endswith(RECORD)


def test_files_lie_where_llama_recipes_has_them(saved: Path) -> None:
    theirs = files_of(saved / "theirs")
    assert {path for path in files_of(saved / "ours") if is_theirs(path)} == theirs
    assert len(theirs) == 3 * (2 + 1)
    assert any(path.name == "--models--of ours--8B-1.pt" for path in theirs)


def test_the_tensors_are_the_same_under_the_same_keys_in_the_same_order(saved: Path) -> None:
    for path in files_of(saved / "theirs"):
        if path.suffix == ".pt":
            ours, theirs = (torch.load(saved / who / path, weights_only=True) for who in ("ours", "theirs"))
            assert type(ours) is type(theirs)
            assert list(ours) == list(theirs)
            assert all(ours[name].dtype == tensor.dtype for name, tensor in theirs.items())
            assert all(ours[name].equal(tensor) for name, tensor in theirs.items())


def test_the_parameters_are_the_same_text(saved: Path) -> None:
    for path in files_of(saved / "theirs"):
        if path.suffix == ".yaml":
            assert (saved / "ours" / path).read_text() == (saved / "theirs" / path).read_text()


def test_every_epoch_has_a_record_of_its_own(saved: Path) -> None:
    checkpoints = {path for path in files_of(saved / "ours") if path.suffix == ".pt"}
    records = {path for path in files_of(saved / "ours") if path.name.endswith(RECORD)}
    assert records == {path.with_name(path.name + RECORD) for path in checkpoints}


def test_the_result_is_converted_without_an_option_and_proven(saved: Path, tmp_path: Path) -> None:
    run = saved / "ours" / "model_checkpoints" / "fine-tuned-tiny-org"
    conversion = convert(run, tmp_path / "model", download=False)
    assert conversion.output_bytes > 0
    assert (tmp_path / "model" / "unshard.record.json").is_file()
    verification = verify(tmp_path / "model")
    assert verification.sound, verification.levels


def test_the_functions_are_called_as_those_of_llama_recipes() -> None:
    from llama_cookbook.model_checkpointing import checkpoint_handler

    theirs = inspect.signature(checkpoint_handler.save_fsdp_model_checkpoint_full).parameters
    ours = inspect.signature(save_fsdp_model_checkpoint_full).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    assert [ours[name].default for name in theirs] == [each.default for each in theirs.values()]
    assert list(inspect.signature(save_train_params).parameters) == ["train_config", "fsdp_config", "rank"]


def test_parameters_that_cannot_be_written_are_an_error_with_the_path(tmp_path: Path) -> None:
    class Config:
        pass

    config = Config()
    vars(config).update(model_name="m", dist_checkpoint_root_folder=str(tmp_path), dist_checkpoint_folder="f")
    (tmp_path / "f-m" / "train_params.yaml").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"train_params\.yaml. cannot be written"):
        save_train_params(config, config, 0)  # type: ignore[arg-type]  # it has them, but does not declare them
    (tmp_path / "f-m" / "train_params.yaml").rmdir()
    save_train_params(config, config, 0)  # type: ignore[arg-type]
    assert yaml.safe_load((tmp_path / "f-m" / "train_params.yaml").read_text())["model_name"] == "m"
