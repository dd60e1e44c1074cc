"""Fixtures: published folders and gathered state dicts of tiny models, made once for the session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from specimens import State


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the published folder of a family."""
    from specimens import published, tiny_model

    root = tmp_path_factory.mktemp("bases")

    @cache
    def folder(family: str) -> Path:
        return published(tiny_model(family), root / family)

    return folder


@pytest.fixture(scope="session")
def state() -> Callable[[str], State]:
    """Return a function that gives the gathered state dict of a family, every time a new dict."""
    from specimens import state_of, tiny_model

    whole = cache(lambda family: state_of(tiny_model(family)))
    return lambda family: dict(whole(family))
