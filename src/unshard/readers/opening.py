"""From a path to the checkpoint that is meant: a file, the folder of one, or a run with many."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

from unshard.checkpoint import Checkpoint
from unshard.errors import (
    InputError,
    OptionError,
    PathNotFoundError,
    TrainingStateError,
    UnknownLayoutError,
    UnsafeFileError,
    UnshardError,
)
from unshard.findings import Finding, finding
from unshard.readers.folders import Folder, look_into
from unshard.readers.layouts import hugging_face, state_dict
from unshard.readers.protocol import Candidate, Reader
from unshard.readers.rendering import as_argument, listed
from unshard.readers.search import Found, choose, find_below, find_here, steps_of
from unshard.readers.steps import split_words
from unshard.readers.surroundings import with_surroundings
from unshard.readers.training_files import training_kind
from unshard.readers.weights.safetensors_file import is_safetensors
from unshard.readers.weights.weight_index import part_of
from unshard.storage.files import InputFile


def open_checkpoint(path: Path, *, step: int | None, select: str | None) -> Checkpoint:
    """Return the checkpoint at `path`, its tensors described and not read.

    Args:
        path: A file, the folder of a checkpoint, or the folder of a run.
        step: Which of several steps is meant; None for the newest.
        select: Which of several models in a file is meant: a container, or a prefix of names.

    Raises:
        PathNotFoundError: Nothing lies at `path`.
        UnknownLayoutError: No checkpoint lies there.
        UnsupportedLayoutError: It is of a layout that is recognised, and not read.
        AmbiguousModelError: There are several models, and nothing says which one is meant.
        TrainingStateError: It holds an optimizer or other training state, and no model.
        IncompleteCheckpointError: Files of it are missing.
        DamagedFileError: A file is cut short, or disagrees with its checksum.
        UnsafeFileError: A file contradicts itself, or asks for code to be run.
        OptionError: `step` or `select` names nothing.
    """
    is_folder = _is_folder(path)
    if is_folder:
        root = path.parent if _is_step(path) else path
        folder = look_into(path, root)
        found = _in_folder(folder, root, step)
        chosen = choose(found, step, path)
    else:
        folder = look_into(path.parent, path.parent)
        root = path.parent.parent if _is_step(path.parent) else path.parent
        found = find_here(folder, root)
        chosen = _that_file(path, found, root)
        if step is not None and chosen.numbers[-1:] != (step,):
            problem = f"cannot be taken from one file, `{path.name}`"
            raise OptionError(f"--step {step}", problem, hint=f"Give the folder: {path.parent}")
    steps = steps_of(chosen, found)
    checkpoint = _opened(chosen, steps, folder, select)
    told = (*_others_told(chosen, steps, folder), *_unread_told(chosen, found)) if is_folder else ()
    checkpoint = with_surroundings(checkpoint, root)
    return replace(checkpoint, steps=tuple(f.step for f in steps), findings=(*told, *checkpoint.findings))


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


def _in_folder(folder: Folder, root: Path, step: int | None) -> list[Found]:
    """Return the candidates in a folder; those below it, too, where none is there or a step is meant."""
    if training_kind(folder.path.name):
        raise TrainingStateError(
            folder.path, "is a folder of training state, not of a model", hint=_beside(folder.path.parent)
        )
    here = find_here(folder, root)
    readable = [f for f in here if f.is_read]
    if readable and (step is None or any(f.numbers for f in readable)):
        return here
    below = find_below(folder, root)
    if not here and not below:
        raise _nothing(folder)
    return [*here, *below]


def _nothing(folder: Folder) -> UnshardError:
    """Return the error for a folder without a checkpoint."""
    if folder.outside:
        target = Path(os.path.realpath(folder.path / folder.outside[0]))
        return UnsafeFileError(
            folder.path,
            "holds links that lead out of it, which are not followed",
            saw=listed([f"`{name}`" for name in folder.outside]),
            hint=f"Give the place they lead to, if you trust it: {target.parent}",
        )
    names = [*(f"{name}/" for name in folder.folders), *folder.files]
    return UnknownLayoutError(
        folder.path,
        "holds no checkpoint, and neither do the folders in it",
        saw=listed([f"`{name}`" for name in names], at_most=5) if names else "an empty folder",
        expected="files of torch.save (.pt, .pth, .bin, .ckpt), safetensors, or a known layout",
        hint=_beside(folder.path.parent) or "Give the folder that training wrote, or a file in it.",
    )


def _beside(folder: Path, *, apart_from: Path | None = None) -> str | None:
    """Return a hint that names the checkpoint in a folder, if another one than a certain path is there."""
    try:
        here = look_into(folder, folder)
        found = [f for f in find_here(here, folder) if f.candidate.path != apart_from]
        found = found or find_below(here, folder)
    except InputError:
        return None
    if not found:
        return None
    newest = max(found, key=lambda f: (f.is_read, f.numbers))
    return f"There is one beside it: unshard inspect {as_argument(newest.candidate.path)}"


def _that_file(path: Path, found: list[Found], root: Path) -> Found:
    """Return the candidate that a file is, whatever its name."""
    for one in found:
        if one.candidate.path == path or (path.name in one.candidate.files and not one.is_read):
            return one
        if path.name in one.candidate.files and path.suffix == ".json":  # the index of a folder
            return one
    file = InputFile.describe(path)
    is_plain = path.suffix == ".safetensors" or is_safetensors(file.read(0, min(9, file.size)))
    reader: Reader = hugging_face if is_plain or part_of(path.name) else state_dict
    return Found(
        reader,
        Candidate(path, look_into(path.parent, root), (path.name,), "file", path.name),
        path.name,
        (path.name,),
        (),
    )


def _opened(chosen: Found, steps: list[Found], folder: Folder, select: str | None) -> Checkpoint:
    """Return the checkpoint that was chosen; where it cannot be read, the hint names what else there is."""
    try:
        return chosen.reader.open_candidate(chosen.candidate, select=select)
    except TrainingStateError as error:
        others = folder.without(chosen.candidate.files)
        error.hint = _model_among(find_here(others, folder.path)) or error.hint
        raise
    except InputError as error:
        earlier = [f for f in steps if f.is_read and f.numbers < chosen.numbers]
        if earlier:
            error.hint = f"{error.hint or ''} An earlier one: --step {earlier[-1].numbers[-1]}".strip()
        elif isinstance(error, UnknownLayoutError) and error.hint is None:
            error.hint = _beside(folder.path, apart_from=chosen.candidate.path)
        raise


def _model_among(found: list[Found]) -> str | None:
    readable = [f for f in found if f.is_read]
    if not readable:
        return "The model must be in another file: a state dict, without `optimizer` in its name."
    newest = max(readable, key=lambda f: f.numbers)
    return f"The model is in the file beside it: unshard inspect {as_argument(newest.candidate.path)}"


def _others_told(chosen: Found, steps: list[Found], folder: Folder) -> list[Finding]:
    """Tell of the other steps: those it was chosen from, or those below a model at the top."""
    others = [(f.place, f.numbers[-1]) for f in steps if f is not chosen]
    if not chosen.numbers:
        numbered = ((name, split_words(name)[1]) for name in folder.folders)
        others += [(f"{name}/", numbers[-1]) for name, numbers in numbered if numbers]
    if not others:
        return []
    return [
        finding(
            "U101",
            subject=chosen.place,
            saw=f"also there: {listed([place for place, _ in others], at_most=5)}",
            remedy=f"Take another one with --step, for example: --step {others[-1][1]}",
        )
    ]


def _unread_told(chosen: Found, found: list[Found]) -> list[Finding]:
    unread = [f"{f.place} ({f.candidate.title})" for f in found if not f.is_read and f is not chosen]
    return [finding("U107", subject=chosen.place, saw=listed(unread, at_most=5))] if unread else []
