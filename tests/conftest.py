"""Fixtures: checkpoints left by real training runs, made once for the whole session."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest

from trainers.catalogue import RUNS, TrainedCheckpoint, quiet_environment
from trainers.trained import TrainedCheckpoints

pytest_plugins = (
    "browser",
    "command_line",
    "published_models",
    "healthy_models",
    "saved_folders",
    "tiny_folders",
    "fingerprinted",
)
quiet_environment()


@pytest.fixture(scope="session")
def trained_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, TrainedCheckpoint]:
    """Every run of the catalogue by its name. The files are shared: tests copy what they damage."""
    return TrainedCheckpoints(tmp_path_factory.mktemp("trained"))


@pytest.fixture(params=[run.name for run in RUNS])
def trained_checkpoint(
    request: pytest.FixtureRequest, trained_checkpoints: Mapping[str, TrainedCheckpoint]
) -> TrainedCheckpoint:
    """Each run of the catalogue in turn."""
    return trained_checkpoints[request.param]


@pytest.fixture
def recipes_run(trained_checkpoints: Mapping[str, TrainedCheckpoint]) -> TrainedCheckpoint:
    """The main job: a finished llama-recipes run of two epochs, fp32, untied, with its parameters."""
    return trained_checkpoints["recipes-two-epochs"]


@pytest.fixture
def tied_recipes_run(trained_checkpoints: Mapping[str, TrainedCheckpoint]) -> TrainedCheckpoint:
    """A llama-recipes run of a tied model in bf16, the optimizer's files beside the model's."""
    return trained_checkpoints["recipes-tied-bf16"]


@pytest.fixture(scope="session")
def smollm2_base(pytestconfig: pytest.Config) -> Path:
    """A real instruct model of 135M parameters, kept in pytest's cache: it takes 25 s to make."""
    from unshard.demo import base_model

    version = hashlib.sha256(Path(base_model.__file__).read_bytes()).hexdigest()[:12]
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir(f"smollm2-{version}") / "base"
    if not folder.exists():
        base_model.write_base_model(folder)
    return folder
