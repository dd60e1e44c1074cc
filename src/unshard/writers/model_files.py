"""The small files of a model folder: config.json with a few keys edited, all others copied.

config.json is the base's own, byte for byte except for the keys that the tensors prove wrong; it is
never serialised again, because engines read spellings that transformers would change.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from unshard.base import Base
from unshard.base.side_files import is_side_file, outside_links
from unshard.checkpoint import Checkpoint
from unshard.errors import BaseModelError
from unshard.match.model import Model
from unshard.plan import SideFile
from unshard.writers.json_editing import edit_json


def plan_model_files(checkpoint: Checkpoint, base: Base | None, model: Model) -> tuple[SideFile, ...]:
    """Return every file of a model folder but its weights, their index and the manifest.

    Without a base, what lies beside the tensors and belongs to a model is all there is.

    Raises:
        BaseModelError: An edit does not fit the base's config.json.
    """
    if base is None:
        own = {name: path for name, path in checkpoint.side_files.items() if is_side_file(name)}
        unsafe = outside_links(own)
        return tuple(
            SideFile(name, None, path, "beside the checkpoint")
            for name, path in own.items()
            if name not in unsafe
        )
    return (_config(base, model.config_edits), *_copies(base))


def _config(base: Base, edits: Mapping[str, object]) -> SideFile:
    count = f"{len(edits)} key{'s' if len(edits) > 1 else ''} edited" if edits else "unchanged"
    try:
        content = edit_json(base.config_bytes, edits)
    except ValueError as error:
        raise BaseModelError(base.path / "config.json", "cannot be edited", saw=str(error)) from error
    return SideFile("config.json", content, None, f"base, {count}")


def _copies(base: Base) -> list[SideFile]:
    copies = [SideFile(name, None, path, _origin(base, path)) for name, path in base.side_files.items()]
    inside = [
        SideFile(name, content, None, "inside the checkpoint")
        for name, content in base.embedded.items()
        if name not in base.side_files
    ]
    return [*copies, *inside]


def _origin(base: Base, path: Path) -> str:
    """Return where a file comes from; a tokenizer may lie elsewhere than the base."""
    return (
        "base"
        if path.is_relative_to(base.path)
        else f"beside the checkpoint or named by it: {path.parent.name}"
    )
