"""Which files hold a model's weights: by an index, or by their names; and whether all of them do.

Source:
    huggingface_hub src/huggingface_hub/serialization/_base.py (the index and the names).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from unshard.errors import IncompleteCheckpointError, InputError, UnsafeFileError
from unshard.readers.folders import Folder
from unshard.readers.rendering import cut, listed
from unshard.storage.files import InputFile

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.(safetensors|bin)")
_LARGEST_INDEX = 64 << 20


@dataclass(frozen=True, slots=True)
class WeightIndex:
    """The files of a model's weights.

    Attributes:
        files: Their names, in order.
        name: The name of the index, or None where there is none.
        tensors: The file of every tensor as the index has it; empty without one.
    """

    files: tuple[str, ...]
    name: str | None
    tensors: Mapping[str, str]


def describe_weight_index(folder: Folder, stem: str, ending: str) -> WeightIndex:
    """Return the files `stem*.ending` that make up the model in a folder.

    Raises:
        IncompleteCheckpointError: One of them is not there.
        UnsafeFileError: The index is none, or names files elsewhere.
    """
    single, index = f"{stem}.{ending}", f"{stem}.{ending}.index.json"
    if single in folder.files:
        return WeightIndex((single,), None, {})
    if index in folder.files:
        tensors = _read_weight_map(InputFile.describe(folder.at(index)))
        _require_files(folder, index, tensors)
        return WeightIndex(tuple(sorted(set(tensors.values()))), index, tensors)
    return WeightIndex(_numbered_files(folder, stem, ending), None, {})


def require_agreement(folder: Folder, index: WeightIndex, found: Mapping[str, Iterable[str]]) -> None:
    """Raise unless every tensor is in one file, and in the one that the index says.

    Args:
        folder: Where the files lie.
        index: What the index says.
        found: The names of the tensors in each file.
    """
    homes: dict[str, list[str]] = {}
    for file, names in found.items():
        for name in names:
            homes.setdefault(name, []).append(file)
    twice = [f"`{cut(name)}` in {' and '.join(files)}" for name, files in homes.items() if len(files) > 1]
    if twice:
        raise _disagreement(folder.path, "has tensors that are in two files", twice)
    if index.name is None:
        return
    absent = [f"`{cut(n)}` not in {file}" for n, file in index.tensors.items() if homes.get(n) != [file]]
    if absent:
        raise _disagreement(folder.path / index.name, "names tensors that are not where it says", absent)
    unlisted = [f"`{cut(name)}` in {files[0]}" for name, files in homes.items() if name not in index.tensors]
    if unlisted:
        raise _disagreement(folder.path / index.name, "leaves out tensors that are in its files", unlisted)


def part_of(name: str) -> tuple[int, int] | None:
    """Return which of how many files of weights a name belongs to, or None where it is the only one."""
    found = _PART.fullmatch(name)
    return (int(found[2]), int(found[3])) if found else None


def _numbered_files(folder: Folder, stem: str, ending: str) -> tuple[str, ...]:
    """Return files without an index, which must be all that their names count."""
    pattern = re.compile(rf"{stem}-(\d{{5}})-of-(\d{{5}})\.{ending}")
    found = {name: match for name in folder.files if (match := pattern.fullmatch(name))}
    totals = {match[2] for match in found.values()}
    if len(totals) != 1:
        raise UnsafeFileError(
            folder.path,
            "has files of several sets of weights, and no index that says which one is meant",
            saw=listed([f"{stem}-*-of-{total}.{ending}" for total in sorted(totals)]),
        )
    total = totals.pop()
    wanted = [f"{stem}-{i:05d}-of-{total}.{ending}" for i in range(1, int(total) + 1)]
    if missing := [name for name in wanted if name not in found]:
        raise _incomplete(folder.path, missing, f"{len(found)} of {len(wanted)} files", [])
    return tuple(wanted)


def _read_weight_map(file: InputFile) -> dict[str, str]:
    """Return the file of every tensor, by name."""
    if file.size > _LARGEST_INDEX:
        raise UnsafeFileError(file.path, "is too large for an index", saw=f"{file.size:,} bytes")
    try:
        parsed = json.loads(file.read(0, file.size).decode(), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise InputError(
            file.path,
            "is no index of weights that can be read",
            saw=cut(str(error)),
            hint="Copy the file again; if the folder is a clone, run: git lfs pull",
        ) from error
    weight_map = parsed.get("weight_map") if isinstance(parsed, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(file.path, "is no index of weights", expected="an object with a `weight_map`")
    for name, value in weight_map.items():
        if not _is_plain(value):
            raise UnsafeFileError(
                file.path,
                f"says that `{cut(name)}` is in a file outside of the folder",
                saw=cut(str(value)) if isinstance(value, str) else "no name",
                expected="a plain name",
            )
    return weight_map


def _is_plain(value: object) -> bool:
    """Return whether a value is the name of a file in the folder, and cannot lead anywhere else."""
    if not isinstance(value, str) or value in ("", ".", "..") or not value.isprintable():
        return False
    return not {"/", "\\", ":"} & set(value)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is given twice")
    return found


def _require_files(folder: Folder, index: str, tensors: Mapping[str, str]) -> None:
    """Raise one error that names every missing file and what it held."""
    named = set(tensors.values())
    if missing := sorted(named - set(folder.files)):
        held = [name for name, file in tensors.items() if file in missing]
        there = f"{len(named) - len(missing)} of the {len(named)} files that {index} names"
        raise _incomplete(folder.path, missing, there, held)
    totals = {part[1] for part in map(part_of, named) if part}
    if totals and totals != {len(named)}:
        raise _disagreement(
            folder.path / index,
            "names other files than the names of these count",
            [f"{len(named)} files, such as `{min(named)}`"],
        )


def _incomplete(path: Path, missing: list[str], saw: str, held: list[str]) -> IncompleteCheckpointError:
    lost = f", which hold {len(held)} tensors ({listed([f'`{cut(n)}`' for n in held])})" if held else ""
    return IncompleteCheckpointError(
        path,
        f"lacks {listed([f'`{name}`' for name in missing])}{lost}",
        saw=saw,
        hint="Copy or download the missing files into the folder, then run the command again.",
    )


def _disagreement(subject: Path, problem: str, cases: list[str]) -> UnsafeFileError:
    return UnsafeFileError(
        subject,
        problem,
        saw=listed(cases),
        hint="The folder holds files of two saves. Remove what does not belong, or copy it again whole.",
    )
