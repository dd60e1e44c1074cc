"""Published folders of tiny models, made once for all tests of matching."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from specimens import State, published, state_of, tiny_model

Folder = Callable[[str], Path]


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Return a function that gives the published folder of a family."""
    root = tmp_path_factory.mktemp("bases")

    @cache
    def folder(family: str) -> Path:
        return published(tiny_model(family), root / family)

    return folder


@pytest.fixture(scope="session")
def state() -> Callable[[str], State]:
    """Return a function that gives the gathered state dict of a family, every time a new dict."""
    whole = cache(lambda family: state_of(tiny_model(family)))
    return lambda family: dict(whole(family))
