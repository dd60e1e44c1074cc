"""Healthy folders, made once; tests copy what they break."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the folder that `save_pretrained` leaves of a family, with a tokenizer."""
    from tiny_models import tiny_model, write_folder

    root = tmp_path_factory.mktemp("saved")
    return cache(lambda family: write_folder(tiny_model(family), root / family))


@pytest.fixture(scope="session")
def healthy(saved: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the same folders with a configuration that every engine reads."""
    from unshard import mend

    root = tmp_path_factory.mktemp("healthy")

    @cache
    def folder(family: str) -> Path:
        shutil.copytree(saved(family), root / family)
        mend(root / family, in_place=True, only=["spelling"])
        return root / family

    return folder


@pytest.fixture
def llama(healthy: Callable[[str], Path]) -> Path:
    return healthy("llama")
