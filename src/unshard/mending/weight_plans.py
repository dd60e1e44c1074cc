"""What becomes of every file of weights: left, called otherwise, given another header, or written anew.

Whatever can be said by headers is: a file is written anew only where its bytes are not those of the
tensors that belong into it. A tied duplicate, or a buffer that the model computes itself, stays where it is
rather than to have a file copied because of it: every engine passes over it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from unshard.mending.header_editing import Entry, data_start, extent_in, header_of, tiled
from unshard.mending.scene import Scene
from unshard.mending.weight_files import ONE_FILE, file_of, weight_map
from unshard.model_folder import WeightsOfFile
from unshard.plan import OutputFile, Placement
from unshard.storage.files import InputFile
from unshard.tensors import Tensor
from unshard.writers.safetensors_folder import plan_safetensors

Fate = Literal["unchanged", "header", "copied", "written", "removed"]
Tensors = Mapping[str, Tensor]

_UNLIMITED = 1 << 62
# What a folder of another format is split into.
_DEFAULT_FILE_BYTES = 5_000_000_000
_NUMBERED = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(frozen=True, slots=True)
class PlannedWeights:
    """One file of weights.

    Attributes:
        name: Its name in the result; in the folder, where it is removed.
        fate: `unchanged`; `header`, where a header of the same length is written over the old one;
            `copied`, where the new one is longer, and the data come after it as they were; `written`
            tensor by tensor; `removed`, because its tensors are in other files.
        source: The file of the folder that it is, or takes the place of; None where all are written anew.
        header: The header, with its length before it, where there is a new one.
        output: Every byte of it, where it is written to another place.
        tensors: The names of what it holds.
    """

    name: str
    fate: Fate
    source: str | None
    header: bytes | None
    output: OutputFile | None
    tensors: tuple[str, ...]

    @property
    def changes(self) -> bool:
        """Whether the folder has another file in its place."""
        return self.fate != "unchanged" or self.name != self.source


def plan_weights(
    scene: Scene, tensors: Tensors, spare: Tensors, *, max_file_bytes: int | None
) -> tuple[PlannedWeights, ...]:
    """Return what becomes of every file of weights.

    Args:
        scene: The folder.
        tensors: What the model is made of, by name.
        spare: What it can do without, and may stay where it is.
        max_file_bytes: The most bytes of tensors in a file; None leaves files as large as they are.
    """
    files = scene.weights.files
    if not all(file.name.endswith(".safetensors") for file in files):
        anew = plan_safetensors(tensors, max_file_bytes=max_file_bytes or _DEFAULT_FILE_BYTES)[0]
        return tuple(_written(each, each.name, None) for each in anew)
    if max_file_bytes is not None and any(_is_larger(file, max_file_bytes) for file in files):
        anew = plan_safetensors(tensors, max_file_bytes=max_file_bytes)[0]
        kept = {each.name for each in anew}
        gone = [_removed(file) for file in files if file.name not in kept]
        return (*(_written(each, each.name, None) for each in anew), *gone)
    inputs = {file.name: file_of(scene.folder, file) for file in files}
    homes = _homes(tensors, inputs)
    planned = [_planned(file, inputs[file.name], homes[file.name], spare) for file in files]
    return tuple(_with_names(scene, planned))


def has_right_index(scene: Scene, planned: Sequence[PlannedWeights]) -> bool:
    """Return whether the folder's index is that of the planned files, or there is none and need not be."""
    wanted = weight_map_of(planned)
    if scene.folder.index is None:
        return set(wanted.values()) <= {ONE_FILE}
    return dict(weight_map(scene.folder)) == wanted


def weight_map_of(planned: Sequence[PlannedWeights]) -> dict[str, str]:
    """Return the file of every tensor of the result."""
    return {name: file.name for file in planned if file.fate != "removed" for name in file.tensors}


def _is_larger(file: WeightsOfFile, limit: int) -> bool:
    return len(file.tensors) > 1 and sum(t.nbytes for t in file.tensors.values()) > limit


def _written(output: OutputFile, name: str, source: str | None) -> PlannedWeights:
    names = tuple(placement.name for placement in output.placements)
    return PlannedWeights(name, "written", source, None, replace(output, name=name), names)


def _removed(file: WeightsOfFile) -> PlannedWeights:
    return PlannedWeights(file.name, "removed", file.name, None, None, ())


def _homes(tensors: Tensors, inputs: Mapping[str, InputFile]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors by the file that each begins in."""
    names = {file: name for name, file in inputs.items()}
    homes: dict[str, dict[str, Tensor]] = {name: {} for name in inputs}
    first = next(iter(homes))
    for name, tensor in tensors.items():
        place = next(iter(tensor.places), None)
        homes[names.get(place.file, first) if place else first][name] = tensor
    return homes


def _planned(file: WeightsOfFile, source: InputFile, own: Tensors, spare: Tensors) -> PlannedWeights:
    """Return what becomes of one file, which is to hold the tensors `own`."""
    if not own:
        return _removed(file)
    beside = {n: t for n, t in spare.items() if n not in own and extent_in(source, t) is not None}
    entries = tiled(source, own) or tiled(source, {**own, **beside})
    if entries is None:
        return _written(plan_safetensors(own, max_file_bytes=_UNLIMITED)[0][0], file.name, file.name)
    names = tuple(entry.name for entry in entries)
    if all(_is_as_before(entry, file, source) for entry in entries):
        return PlannedWeights(file.name, "unchanged", file.name, None, None, names)
    header = header_of(source, entries, file.metadata)
    fate: Fate = "header" if len(header) == data_start(source) else "copied"
    output = _with_header(file.name, header, entries, data_start(source))
    return PlannedWeights(file.name, fate, file.name, header, output, names)


def _is_as_before(entry: Entry, file: WeightsOfFile, source: InputFile) -> bool:
    before = file.tensors.get(entry.name)
    if before is None or (before.shape, before.dtype) != (entry.tensor.shape, entry.tensor.dtype):
        return False
    return extent_in(source, before) == (entry.start, entry.stop)


def _with_header(name: str, header: bytes, entries: Sequence[Entry], start: int) -> OutputFile:
    """Return a whole file with a new header before the data that the old one has."""
    moved = len(header) - start
    placed = tuple(Placement(e.name, e.tensor, e.start + moved, e.stop + moved) for e in entries)
    return OutputFile(name, placed[-1].stop, ((0, header),), placed)


def _with_names(scene: Scene, planned: Sequence[PlannedWeights]) -> Iterator[PlannedWeights]:
    """Yield files under names by which they are found: their own where that is so, else the usual ones."""
    kept = [file for file in planned if file.fate != "removed"]
    names = [file.name for file in kept]
    if not _are_found(scene, names):
        total = len(kept)
        usual = [f"model-{number:05d}-of-{total:05d}.safetensors" for number in range(1, total + 1)]
        names = usual if total > 1 else [ONE_FILE]
    yield from (
        replace(file, name=name, output=file.output and replace(file.output, name=name))
        for file, name in zip(kept, names, strict=True)
    )
    taken = set(names)
    yield from (file for file in planned if file.fate == "removed" and file.name not in taken)


def _are_found(scene: Scene, names: Sequence[str]) -> bool:
    """Return whether engines find files of these names, once an index lists them."""
    if names == [ONE_FILE] or set(names) == set(weight_map(scene.folder).values()) != set():
        return True
    numbers = [found for name in names if (found := _NUMBERED.fullmatch(name))]
    wanted = [(f"{number:05d}", f"{len(names):05d}") for number in range(1, len(names) + 1)]
    return len(names) > 1 and [(found[1], found[2]) for found in numbers] == wanted
