"""Training that stopped and goes on: weights and optimizer, bit for bit as if it had never stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from trainers.ranks import run_ranks
from trainers.sharded_saves import OPTIONS, RESUMED, resume_training, stop_training, tell_moments
from unshard.training.optimizer_state import describe_optimizer


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what a training of two ranks left, and what others made of it."""
    folder = tmp_path_factory.mktemp("stopped")
    run_ranks(2, stop_training, folder, timeout_seconds=200)
    run_ranks(2, resume_training, folder, timeout_seconds=200)
    run_ranks(4, tell_moments, folder, timeout_seconds=200)
    return folder


def told(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted((folder / name).glob("*.json"))]


@pytest.mark.parametrize("kind", ["full", "sharded"])
@pytest.mark.parametrize("name", RESUMED)
def test_one_more_step_is_that_of_a_training_that_never_stopped(name: str, kind: str, stopped: Path) -> None:
    for facts in told(stopped, f"resumed-{name}-{kind}"):
        assert facts["wrong"] == []
        assert facts["lr"] == OPTIONS["lr"]


def test_the_state_goes_into_other_wrappers_and_onto_other_ranks(stopped: Path) -> None:
    truth = {
        name.removeprefix("state.").removesuffix(".exp_avg"): (torch.from_numpy(tensor.numpy()).double() ** 2)
        .sum()
        .item()
        for name, tensor in describe_optimizer(stopped / "fsdp2-full").tensors.items()
        if name.endswith("exp_avg")
    }
    assert len(truth) == 21
    assert min(truth.values()) > 0
    for facts in (
        *(each["moments"] for each in told(stopped, "resumed-otherwise")),
        *told(stopped, "moments-4"),
    ):
        assert facts == pytest.approx(truth, rel=1e-12)  # sums of squares in another order


def test_another_optimizer_is_refused_and_everything_is_as_it_was(stopped: Path) -> None:
    first, second = (dict(each) for each in told(stopped, "resumed-otherwise"))
    assert first["said"] == second["said"]
    assert first["said"].startswith("MatchError")
    assert "is not the state of this SGD" in first["said"]
    assert first["untouched"]
    assert first["state"] == 0


def test_an_optimizer_that_has_made_no_step_is_told_and_left_out(stopped: Path) -> None:
    for name in RESUMED:
        assert all("U165" in facts["unused"] for facts in told(stopped, f"told-{name}"))
        assert not (stopped / f"{name}-unused" / "optimizer").exists()


def test_the_state_is_no_model(stopped: Path) -> None:
    import unshard

    for kind in ("full", "sharded"):
        assert len(unshard.open(stopped / f"fsdp2-{kind}")) == 21
