"""What the callbacks of all trainers share: options checked before training, and what failing means."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.nn import Module

from unshard.errors import OptionError, UnshardError
from unshard.training.publishing.options import require_options
from unshard.training.saving import Saved, save_full

_ASKED = ("format", "dtype", "adapter", "max_shard_size")


def require_known(options: Mapping[str, Any], path: Path) -> None:
    """Raise unless `save_full` knows all options and they go together: now, and not after hours of training.

    Args:
        options: Keyword arguments.
        path: A path like those that will be written.

    Raises:
        OptionError: It does not.
    """
    parameters = inspect.signature(save_full).parameters
    known = {name: each for name, each in parameters.items() if each.kind is each.KEYWORD_ONLY}
    if unknown := sorted(options.keys() - known.keys()):
        raise OptionError(
            "UnshardCallback",
            "has options that `save_full` does not know",
            saw=", ".join(unknown),
            expected=", ".join(known),
        )
    require_options(path, **{name: options.get(name, known[name].default) for name in _ASKED})


def save_beside(model: Module, path: Path, options: Mapping[str, Any], *, strict: bool) -> Saved | None:
    """Save a model where its trainer has saved its own checkpoint, and warn of what is found to be wrong.

    Every rank calls it.

    Args:
        model: The model, as it is trained.
        path: Where to.
        options: Keyword arguments of `save_full`.
        strict: Whether failing ends the training; if not, it is warned of, and None returned. All ranks fail
            alike, so none of them waits for another.

    Raises:
        UnshardError: It cannot be saved, and `strict`.
    """
    try:
        saved = save_full(model, path, **options)
    except UnshardError as error:
        if strict:
            raise
        _warn(f"training goes on without {path}: {error}")
        return None
    for found in saved.findings:
        if found.severity != "info":
            _warn(f"{path}: {found.code} {found.title}: {found.subject} ({found.saw})")
    return saved


def _warn(text: str) -> None:
    """Warn, on one rank of all."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        warnings.warn(text, UserWarning, stacklevel=4)
