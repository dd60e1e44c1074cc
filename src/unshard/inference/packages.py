"""What running a model needs and reading one does not: the packages of the extra `hf`."""

from __future__ import annotations

from importlib.util import find_spec

from unshard.errors import MissingExtraError


def require_packages(feature: str) -> None:
    """Raise unless torch, transformers and accelerate are installed, which `feature` needs.

    Raises:
        MissingExtraError: One of them is not.
    """
    for package in ("torch", "transformers", "accelerate"):
        if find_spec(package) is None:
            raise MissingExtraError(feature, extra="hf", package=package)
