"""Healthy folders, made once; tests copy what they break."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the folder that `save_pretrained` leaves of a family, with a tokenizer."""
    from tiny_models import tiny_model, write_folder

    root = tmp_path_factory.mktemp("healthy")
    return cache(lambda family: write_folder(tiny_model(family), root / family))


@pytest.fixture
def llama(healthy: Callable[[str], Path]) -> Path:
    return healthy("llama")
