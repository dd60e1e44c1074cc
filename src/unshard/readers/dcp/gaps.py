"""What a checkpoint lacks: files, ends of files, the metadata; and files that do not belong to it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unshard.findings import Finding, finding
from unshard.readers.dcp.tables import NOWHERE, PLACE_FIELDS, TensorRow
from unshard.readers.folders import Folder, size_of
from unshard.readers.rendering import cut, listed
from unshard.sizes import format_size
from unshard.storage.files import InputFile

if TYPE_CHECKING:
    import numpy as np

_DATA_FILE = re.compile(r"(.*__)(\d{1,9})(_\d+\.distcp)")


@dataclass(frozen=True, slots=True)
class Held:
    """What one file holds of a model.

    Attributes:
        tensors: Names of the tensors it has chunks of.
        stop: After the last byte of the last of them.
    """

    tensors: list[str]
    stop: int


def held_by_file(rows: Sequence[TensorRow], numbers: Sequence[np.ndarray]) -> dict[int, Held]:
    """Return what every file holds, by its number; files that hold nothing of the model are absent."""
    tensors: dict[int, list[str]] = {}
    stops: dict[int, int] = {}
    for row, one in zip(rows, numbers, strict=True):
        places = one[one[:, -PLACE_FIELDS] != NOWHERE]
        for file in sorted(set(places[:, -4].tolist())):  # np.unique would import more of numpy
            tensors.setdefault(file, []).append(row.name)
        for file, start, length, _ in places[:, -PLACE_FIELDS:].tolist():
            stops[file] = max(stops.get(file, 0), start + length)
    return {file: Held(names, stops[file]) for file, names in tensors.items()}


def find_missing(
    held: Mapping[int, Held], names: Sequence[str], missing: Collection[int]
) -> Iterator[Finding]:
    """Yield the files that are not there, those of many ranks in one finding."""
    if not missing:
        return
    tensors = list(dict.fromkeys(name for file in missing for name in held[file].tensors))
    ranks = ranks_of(names[file] for file in missing)
    written = f", written by {_ranks(ranks)}" if ranks else ""
    yield finding(
        "U110",
        subject=described_files([names[file] for file in missing]),
        saw=f"{len(missing)} of {len(held)} files are absent{written}; they hold parts of {_named(tensors)}",
        remedy="Copy them here from the nodes that wrote them, or give the folders of all nodes. Every part"
        " is saved once: without them the model cannot be rebuilt.",
    )


def find_short(
    held: Mapping[int, Held], files: Mapping[int, InputFile], numbers: Mapping[str, np.ndarray]
) -> Iterator[Finding]:
    """Yield the files that end before the last chunk that they should hold."""
    for number, file in files.items():
        if file.size >= held[number].stop:
            continue
        lost = [name for name in held[number].tensors if _reaches_beyond(numbers[name], number, file.size)]
        yield finding(
            "U111",
            subject=file.path.name,
            saw=f"it ends at byte {file.size:,}; parts of {_named(lost)} are cut off",
            expected=f"{held[number].stop:,} bytes",
            remedy="Copy the file again. If the original ends there, too, its save was cut short: take an"
            " earlier step.",
        )


def _reaches_beyond(numbers: np.ndarray, file: int, size: int) -> bool:
    places = numbers[:, -PLACE_FIELDS:]
    return bool(((places[:, 0] == file) & (places[:, 1] + places[:, 2] > size)).any())


def find_stale(folder: Folder, names: Collection[str]) -> Iterator[Finding]:
    """Yield what is known of files of another save that lie in the folder."""
    known = set(names)
    stale = [name for name in folder.files if _DATA_FILE.fullmatch(name) and name not in known]
    if stale:
        size = format_size(sum(size_of(folder.at(name)) for name in stale))
        ranks, own = ranks_of(stale), ranks_of(known)
        more = f", of {_ranks(ranks)}, where {len(own)} ranks wrote this checkpoint" if ranks and own else ""
        yield finding(
            "U113",
            subject=described_files(stale),
            saw=f"{len(stale)} file{'s' * (len(stale) != 1)}, {size}{more}",
            expected="only files that `.metadata` names",
            remedy="They are of another save, and nothing names what is in them. Delete them.",
        )


def find_silent_ranks(folder: Folder, names: Collection[str]) -> Iterator[Finding]:
    """Yield the ranks that left no metadata, where every rank writes its own.

    Args:
        folder: The folder.
        names: Names of the metadata of ranks in it.
    """
    told = {int(name[len("__") : -len(".metadata")]) for name in names}
    wrote = ranks_of(folder.files)
    silent = sorted((set(range(max(told) + 1)) | set(wrote)) - told)
    if silent:
        yield finding(
            "U110",
            subject=f"__{_ranges(silent) if len(silent) == 1 else '{' + _ranges(silent) + '}'}.metadata",
            saw=f"no metadata of {_ranks(silent)}; there are those of {_ranks(sorted(told))}",
            remedy="Copy their files here from the nodes that wrote them, or give the folders of all nodes."
            " If data files of these ranks are of an older save, delete them.",
        )


def find_unfinished(folder: Folder, *, leftover: str | None, is_whole: bool) -> Finding:
    """Return what is known of a folder without metadata.

    Args:
        folder: The folder.
        leftover: A file that would have become the metadata, or None.
        is_whole: Whether that file can be read to its end.
    """
    data = [name for name in folder.files if _DATA_FILE.fullmatch(name)]
    saw = "no `.metadata`"
    if data:
        saw = f"{len(data)} file{'s' * (len(data) != 1)} of {_ranks(ranks_of(data))}, and {saw}"
    if leftover is None:
        remedy = (
            "If every node wrote to its own disk, `.metadata` is on that of rank 0: copy it here, or give the"
            " folders of all nodes. Without it the model cannot be rebuilt, because the data files hold no"
            " names: take an earlier step."
        )
    elif is_whole:
        remedy = (
            f"All data were written, and `{leftover}` is whole: only its renaming is missing. Do it:"
            f" mv {leftover} {leftover.removesuffix('.tmp')}"
        )
    else:
        remedy = f"`{leftover}` breaks off, so nothing names what is in the data files. Take an earlier step."
    return finding(
        "U118", subject=folder.path.name, saw=saw, expected="`.metadata`, written last", remedy=remedy
    )


def ranks_of(names: Iterable[str]) -> list[int]:
    """Return the ranks that wrote files of these names, sorted."""
    return sorted({int(found[2]) for name in names if (found := _DATA_FILE.fullmatch(name))})


def described_files(names: Sequence[str]) -> str:
    """Return names of files in a few words, those that differ in their rank only as one."""
    patterns: dict[tuple[str, str], list[int]] = {}
    others = []
    for name in names:
        found = _DATA_FILE.fullmatch(name)
        if found:
            patterns.setdefault((found[1], found[3]), []).append(int(found[2]))
        else:
            others.append(cut(name))
    for (prefix, suffix), ranks in patterns.items():
        numbers = _ranges(sorted(ranks))
        others.append(cut(f"{prefix}{numbers if len(ranks) == 1 else '{' + numbers + '}'}{suffix}"))
    return listed(others, at_most=4)


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {_ranges(ranks)}"


def _ranges(numbers: Sequence[int]) -> str:
    """Return sorted numbers, those that follow one another as ranges: `0, 2, 8-31`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return listed([f"{a}" if a == b else f"{a}-{b}" for a, b in parts], at_most=8)


def _named(tensors: Sequence[str]) -> str:
    names = listed([f"`{cut(name)}`" for name in tensors])
    return names if len(tensors) == 1 else f"{len(tensors)} tensors ({names})"
