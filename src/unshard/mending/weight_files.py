"""Which files of a folder are its weights, and which only lie beside them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from unshard.errors import listed
from unshard.findings import Finding, finding
from unshard.model_folder import ModelFolder, WeightsOfFile
from unshard.readers.training_files import training_kind
from unshard.sizes import counted
from unshard.storage.files import InputFile

ONE_FILE = "model.safetensors"


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a folder.

    Attributes:
        files: The files that hold them.
        leftovers: Names of files of weights and of training that are no part of them.
        refusals: Why it cannot be told which they are.
    """

    files: tuple[WeightsOfFile, ...]
    leftovers: tuple[str, ...]
    refusals: tuple[Finding, ...]


def possible_weights(folder: ModelFolder) -> Iterator[Weights]:
    """Yield which files may hold the weights of a model: those that a sound index names, then all."""
    named = _named_by_index(folder)
    if named is not None and len(named) < len(folder.weights):
        yield _weights(folder, tuple(file for file in folder.weights if file.name in named))
    yield _weights(folder, folder.weights)


def _weights(folder: ModelFolder, files: tuple[WeightsOfFile, ...]) -> Weights:
    stale = [file.name for file in folder.weights if file not in files]
    training = [n for n in folder.names if "/" not in n and training_kind(n) is not None]
    refusals = (*_unreadable(folder), *_doubled(files), *_absent(folder, files))
    leftovers = dict.fromkeys([*stale, *folder.other_weights, *training])
    return Weights(files, tuple(leftovers), refusals)


def file_of(folder: ModelFolder, file: WeightsOfFile) -> InputFile:
    """Return a file of weights as the places of its tensors name it."""
    places = (place.file for tensor in file.tensors.values() for place in tensor.places)
    return next(places, None) or InputFile.describe(folder.path / file.name)


def weight_map(folder: ModelFolder) -> Mapping[str, str]:
    """Return the file of every tensor as the index has it; nothing where it has none."""
    said = {} if folder.index is None else folder.index.value.get("weight_map")
    return {str(k): str(v) for k, v in said.items()} if isinstance(said, Mapping) else {}


def _named_by_index(folder: ModelFolder) -> set[str] | None:
    """Return the files that an index names, if it is right in all it says; else None."""
    held = {file.name: file.tensors.keys() for file in folder.weights}
    said = weight_map(folder)
    if not said or ONE_FILE in held:
        return None
    if any(name not in held.get(file, ()) for name, file in said.items()):
        return None
    return set(said.values())


def _doubled(files: tuple[WeightsOfFile, ...]) -> Iterator[Finding]:
    """Yield that two files hold tensors of one name."""
    homes: dict[str, list[str]] = {}
    for file in files:
        for name in file.tensors:
            homes.setdefault(name, []).append(file.name)
    twice = {name: home for name, home in homes.items() if len(home) > 1}
    if twice:
        name, home = next(iter(twice.items()))
        yield finding(
            "U902",
            subject=listed(home),
            saw=f"{len(twice):,} tensors are in several files, `{name}` first",
            expected="every tensor in one file, or an index that tells which one is meant",
            remedy="Move the files that do not belong to the model out of the folder.",
        )


def _unreadable(folder: ModelFolder) -> Iterator[Finding]:
    """Yield weights that cannot be read."""
    for file in folder.unreadable:
        if not file.name.endswith((".json", ".jinja", ".model", ".txt")):
            yield finding("U903", subject=file.name, saw=file.problem, remedy=file.hint)


def _absent(folder: ModelFolder, files: tuple[WeightsOfFile, ...]) -> Iterator[Finding]:
    """Yield that there are no weights at all."""
    if not any(file.tensors for file in files):
        yield finding(
            "U901",
            subject=folder.path.name,
            saw="no file of weights that holds a tensor",
            expected="model.safetensors, or files that an index names",
            remedy="Copy the weights into the folder, or convert the training checkpoint again.",
        )


def lost_tensors(folder: ModelFolder, held: Collection[str]) -> Mapping[str, str]:
    """Return the tensors that the index names and nothing holds, with the missing file that each was in.

    Args:
        folder: The folder.
        held: The names that there are, by whatever way they are told.
    """
    said = weight_map(folder)
    return {name: file for name, file in said.items() if name not in held and file not in folder.names}


def check_lost(folder: ModelFolder, held: Collection[str]) -> Iterator[Finding]:
    """Yield that files are missing which the index names, with what they held; as `lost_tensors`."""
    lost = lost_tensors(folder, held)
    if lost:
        yield finding(
            "U901",
            subject=listed(sorted(set(lost.values()))),
            saw=f"missing, and with it {counted(len(lost), 'tensor')} of the index: {listed(list(lost))}",
            expected="every file that the index names",
            remedy="Copy or download the missing files into the folder. If the index is of another model, "
            "name the base with --base: it proves what is missing.",
        )
