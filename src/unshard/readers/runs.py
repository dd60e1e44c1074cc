"""What lies at a path, told by names: a file, the folder of a checkpoint, a run, or several folders."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unshard.errors import (
    InputError,
    OptionError,
    PathNotFoundError,
    TrainingStateError,
    UnknownLayoutError,
    UnsafeFileError,
    UnshardError,
)
from unshard.readers.folders import Folder, Tree
from unshard.readers.layouts import hugging_face, state_dict
from unshard.readers.protocol import Candidate, Reader
from unshard.readers.rendering import as_argument, listed
from unshard.readers.search import Found, choose, find_below, find_here, hold_no_model, steps_of
from unshard.readers.steps import split_words
from unshard.readers.training_files import training_kind
from unshard.readers.weights.safetensors_file import is_safetensors
from unshard.readers.weights.weight_index import part_of
from unshard.storage.files import InputFile


@dataclass(frozen=True, slots=True)
class Run:
    """What was found at the path that was given, and nothing of it opened.

    Attributes:
        tree: The folders.
        folder: The folder that was given, or that of the file.
        found: Every candidate.
        chosen: The one that is meant, by its name.
        steps: All steps of its model, oldest first.
        of_folder: Whether a folder was given, in which other steps may lie, and not a file.
        step: The step that was asked for.
    """

    tree: Tree
    folder: Folder
    found: tuple[Found, ...]
    chosen: Found
    steps: tuple[Found, ...]
    of_folder: bool
    step: int | None


def find_run(paths: Sequence[Path], *, step: int | None) -> Run:
    """Return what lies at one path, or in several folders seen as one; `open_checkpoint` says the rest."""
    path = paths[0]
    if len(paths) > 1:
        _require_folders(paths)
        tree = Tree(tuple(paths))
    elif _is_folder(path):
        tree = Tree((path.parent if _is_step(path) else path,))
    else:
        return _run_of_file(path, step)
    folder = tree.look_into(path)
    found = _in_folder(folder, tree, step)
    chosen = choose(found, step, path)
    return Run(tree, folder, tuple(found), chosen, tuple(steps_of(chosen, found)), of_folder=True, step=step)


def _run_of_file(path: Path, step: int | None) -> Run:
    tree = Tree((path.parent.parent if _is_step(path.parent) else path.parent,))
    folder = tree.look_into(path.parent)
    found = find_here(folder, tree)
    chosen = _that_file(path, found, folder)
    if step is not None and chosen.numbers[-1:] != (step,):
        problem = f"cannot be taken from one file, `{path.name}`"
        raise OptionError(f"--step {step}", problem, hint=f"Give the folder: {path.parent}")
    return Run(tree, folder, tuple(found), chosen, tuple(steps_of(chosen, found)), of_folder=False, step=step)


def _require_folders(paths: Sequence[Path]) -> None:
    files = [path for path in paths if not _is_folder(path)]
    if files:
        raise OptionError(
            files[0],
            "is a file, and several places can only be folders",
            hint="Give the folder of every node, as they lie side by side.",
        )


def _is_folder(path: Path) -> bool:
    """Return whether a path is a folder; it must be one, or a file."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise PathNotFoundError(path, "does not exist", hint=_nearest(path)) from error
    except OSError as error:
        raise InputError(path, "cannot be looked at", saw=error.strerror) from error
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise UnsafeFileError(path, "is neither a file nor a folder", saw=stat.filemode(mode))
    return stat.S_ISDIR(mode)


def _nearest(path: Path) -> str | None:
    """Return what does exist on the way to a path that does not."""
    above = next((parent for parent in path.absolute().parents if parent.is_dir()), path)
    try:
        names = sorted(name for name in os.listdir(above) if not name.startswith("."))
    except OSError:
        return None
    return f"`{above}` exists; in it: {listed(names, at_most=8)}" if names else f"`{above}` is empty"


def _is_step(path: Path) -> bool:
    return bool(split_words(path.name)[1])


def _in_folder(folder: Folder, tree: Tree, step: int | None) -> list[Found]:
    """Return the candidates in a folder; those below it, too, where none is there or a step is meant."""
    if training_kind(folder.path.name):
        hint = beside(folder.path.parent) or "The model lies in another folder: give the run, or that folder."
        raise TrainingStateError(folder.path, "is a folder of training state, not of a model", hint=hint)
    here = find_here(folder, tree)
    readable = [f for f in here if f.is_read]
    is_here = readable and (step is None or any(f.numbers for f in readable))
    if is_here and not (folder.folders and hold_no_model(here)):
        return here
    below = find_below(folder, tree)
    if not here and not below:
        raise _nothing(folder, tree)
    return below if below and is_here else [*here, *below]


def _nothing(folder: Folder, tree: Tree) -> UnshardError:
    """Return the error for a folder without a checkpoint."""
    if folder.outside:
        target = Path(os.path.realpath(folder.path / folder.outside[0]))
        return UnsafeFileError(
            folder.path,
            "holds links that lead out of it, which are not followed",
            saw=listed([f"`{name}`" for name in folder.outside]),
            hint=f"Give the place they lead to, if you trust it: {target.parent}",
        )
    if left := _training_state(folder, tree):
        return TrainingStateError(
            folder.path,
            "holds training state and no model",
            saw=listed(left, at_most=5),
            hint="The folders of the model are not there. Copy them from where they were written.",
        )
    names = [*(f"{name}/" for name in folder.folders), *folder.files]
    return UnknownLayoutError(
        folder.path,
        "holds no checkpoint, and neither do the folders in it",
        saw=listed([f"`{name}`" for name in names], at_most=5) if names else "an empty folder",
        expected="files of torch.save (.pt, .pth, .bin, .ckpt), safetensors, or a known layout",
        hint=beside(folder.path.parent) or "Give the folder that training wrote, or a file in it.",
    )


def _training_state(folder: Folder, tree: Tree) -> list[str]:
    """Return the files and folders of training state in a folder and below it."""
    return [
        f"`{tree.relative(place.path / name)}`"
        for place in (folder, *tree.below(folder))
        for name in (*place.files, *place.folders)
        if training_kind(name)
    ]


def beside(folder: Path, *, apart_from: Path | None = None) -> str | None:
    """Return a hint that names the checkpoint in a folder, if another one than a certain path is there."""
    try:
        tree = Tree((folder,))
        here = tree.look_into(folder)
        found = [f for f in find_here(here, tree) if f.candidate.path != apart_from]
        found = found or find_below(here, tree)
    except InputError:
        return None
    if not found:
        return None
    newest = max(found, key=lambda f: (f.is_read, f.numbers))
    return f"There is one beside it: unshard inspect {as_argument(newest.candidate.path)}"


def _that_file(path: Path, found: list[Found], folder: Folder) -> Found:
    """Return the candidate that a file is, or is part of, whatever its name."""
    for one in found:
        if one.candidate.path == path:
            return one
        # A part of a sharded checkpoint is nothing without the others; the index of a folder means it.
        is_part = one.reader is not hugging_face or path.suffix == ".json"
        if path.name in one.candidate.files and is_part:
            return one
    file = InputFile.describe(path)
    is_plain = path.suffix == ".safetensors" or is_safetensors(file.read(0, min(9, file.size)))
    reader: Reader = hugging_face if is_plain or part_of(path.name) else state_dict
    candidate = Candidate(path, folder, (path.name,), "file", path.name)
    return Found(reader, candidate, path.name, (path.name,), ())
