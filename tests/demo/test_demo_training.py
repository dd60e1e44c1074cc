"""The demonstration's training run, on a tiny model: the example itself, in processes that end with us."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from trainers.catalogue import TrainedCheckpoint
from unshard.demo.facts import FACTS
from unshard.demo.training import example, running, train


@pytest.fixture
def folder(trained_checkpoints: Mapping[str, TrainedCheckpoint], tmp_path: Path) -> Path:
    """A folder with a tiny base."""
    base = trained_checkpoints["plain"].base
    assert base is not None
    (tmp_path / "base").symlink_to(base)
    return tmp_path


def test_it_leaves_llama_recipes_files_and_tells_the_loss_of_every_step(folder: Path) -> None:
    losses: list[float] = []
    options = {"model_name": "base", "dist_checkpoint_root_folder": "run", "max_train_step": 2, "seed": 3}
    train(folder, FACTS, options, report_loss=losses.append)
    assert len(losses) == 2
    assert all(5 < loss < 8 for loss in losses)  # of a model that guesses blindly among 515 tokens
    run = folder / "run" / "fine-tuned-base"
    assert (run / "base-0.pt").is_file()
    assert (run / "base-0.pt.unshard.record.json").is_file()
    parameters = yaml.safe_load((run / "train_params.yaml").read_text())
    assert (parameters["seed"], parameters["dataset"]) == ("3", "facts.jsonl")


def test_what_a_training_that_fails_says_is_in_its_error(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        train(tmp_path, FACTS, {"model_name": "no/model"}, report_loss=lambda _: None)
    said = "".join(caught.value.__notes__)
    assert "OSError" in said
    assert "finetune_fsdp1.py FAILED" in said


def test_processes_end_with_the_block_that_started_them(tmp_path: Path) -> None:
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    seen: list[Path] = []

    def interrupted() -> None:
        with running([sys.executable, "-c", program], tmp_path) as lines:
            seen.append(Path("/proc", next(lines).strip()))
            assert seen[0].exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not seen[0].exists()


def test_the_example_is_found_in_the_source_tree() -> None:
    assert example("finetune_fsdp1.py") == Path(__file__).parents[2] / "examples" / "finetune_fsdp1.py"
