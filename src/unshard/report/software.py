"""The packages that bear on a model: as they were when it was made, as far as anything tells, and here."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from unshard import __version__
from unshard.base.configuration import read_config
from unshard.errors import BaseModelError
from unshard.report.contents import Software

_OTHERS = ("torch", "numpy", "safetensors")


def software_of(folder: Path, *, made_by: str | None = None) -> tuple[Software, ...]:
    """Return the packages that bear on the model in `folder`.

    Args:
        folder: Where its configuration lies, if it has one.
        made_by: The version of this program that made it, as its manifest says.
    """
    return (
        Software("unshard", made_by, __version__, "its manifest" if made_by else None),
        _transformers(folder),
        *(Software(name, None, _version(name)) for name in _OTHERS),
        Software("Python", None, platform.python_version()),
    )


def _transformers(folder: Path) -> Software:
    """Return the version of transformers that wrote the configuration, and the one that is here."""
    then = None
    with suppress(BaseModelError):  # what is wrong with it is a finding of its own
        then = read_config(folder / "config.json")[1].get("transformers_version")
    known = then if isinstance(then, str) else None
    return Software("transformers", known, _version("transformers"), "config.json" if known else None)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
