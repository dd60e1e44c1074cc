"""The files of a model folder by name: which of them are a model's, and whether it is still growing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from unshard.errors import InputError
from unshard.readers.folders import Folder, Tree

# Checkpoints of training and copies in other formats have folders of their own.
_OTHER_FOLDERS = re.compile(r"(checkpoint|step|epoch|global_step|iter)[-_]?\d+|runs|logs|wandb")
_DOWNLOADS = Path(".cache", "huggingface", "download")
# huggingface_hub, torch and safetensors writers, browsers and curl, rsync, and ourselves.
_UNFINISHED = re.compile(r".*\.(incomplete|part|partial|crdownload|tmp|download)|\.?tmp[-_.\w]*|\.unshard-.*")


@dataclass(frozen=True, slots=True)
class Listing:
    """What lies in a model folder.

    Attributes:
        folder: Its top.
        names: Every file by its name relative to the top, sorted; hidden ones left out.
        outside: Names of links that lead out of the tree.
        is_growing: Whether something in it says that it is still being written.
    """

    folder: Folder
    names: tuple[str, ...]
    outside: tuple[str, ...]
    is_growing: bool


def list_model_folder(path: Path) -> Listing:
    """Return what lies in the folder `path`; no file is opened.

    Raises:
        InputError: It cannot be listed.
    """
    tree = Tree((path,))
    top = tree.look_into(path)
    below = [found for found in tree.below(top) if _is_of_model(found.path.relative_to(path))]
    names, outside = list[str](), list[str]()
    for found in (top, *below):
        place = found.path.relative_to(path)
        names += [str(place / name) for name in found.files if not name.startswith(".")]
        outside += [str(place / name) for name in found.outside if not name.startswith(".")]
    growing = any(map(_UNFINISHED.fullmatch, _all_names(path)))
    return Listing(top, tuple(sorted(names)), tuple(sorted(outside)), growing)


def _is_of_model(place: Path) -> bool:
    return not any(map(_OTHER_FOLDERS.fullmatch, place.parts))


def _all_names(path: Path) -> Iterator[str]:
    """Yield the names of everything at the top, and of what a download into the folder has open."""
    for place in (path, path / _DOWNLOADS):
        try:
            yield from os.listdir(place)
        except OSError:
            continue


def require_folder(path: Path) -> None:
    """Raise unless there is a folder at `path`.

    Raises:
        InputError: There is not.
    """
    if not path.is_dir():
        problem = "is not a folder" if path.exists() else "does not exist"
        raise InputError(path, problem, expected="a model folder in Hugging Face's format")
