"""For training scripts: save a model whole, record how it was trained, and go on from what was saved.

    save_full(model, path)       a complete model folder, written by all ranks without gathering
    save_sharded(model, path)    a checkpoint of torch's own DCP, with the record beside it
    record(model, path)          the record alone, for a checkpoint that the script saves by itself
    load_full(model, path)       the way back, from any layout, into a model that is sharded already

Every rank calls them. They need torch; nothing else of the package imports this room.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from unshard.errors import MissingExtraError

if TYPE_CHECKING:
    from unshard.training.loading import Loaded, load_full
    from unshard.training.record_alone import record
    from unshard.training.saving import Saved, save_full
    from unshard.training.sharded import save_sharded

__all__ = ["Loaded", "Saved", "load_full", "record", "save_full", "save_sharded"]

_MODULES = {
    "Loaded": "loading",
    "Saved": "saving",
    "load_full": "loading",
    "record": "record_alone",
    "save_full": "saving",
    "save_sharded": "sharded",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if find_spec("torch") is None:
        raise MissingExtraError("unshard.training", extra="hf", package="torch")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
