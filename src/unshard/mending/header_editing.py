"""Other names for the bytes of a safetensors file, without moving one of them.

The data of such a file are its tensors, one after the other. Whatever cuts the same bytes in another way
(a name changed, the experts of a layer taken apart) is a matter of the header alone. A header may end in
spaces: one that became shorter keeps its old length, and nothing but its own bytes is written. One that
became longer grows by whole pages, so that a file system can share the data with the old file.

Source:
    safetensors' README ("Format"): the header may be padded with spaces; its `Metadata::validate` accepts no
    gap between tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from unshard.errors import OutputError
from unshard.storage.files import InputFile
from unshard.tensors import Run, Tensor, element_count

_PAGE_BYTES = 4096
_LONGEST_HEADER = 100_000_000
_METADATA = "__metadata__"
# Older versions of transformers 4 refuse a file that does not say so.
_FORMAT = {"format": "pt"}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor and its bytes in a file; offsets count from the beginning of the file."""

    name: str
    tensor: Tensor
    start: int
    stop: int


def data_start(file: InputFile) -> int:
    """Return where the data of a safetensors file begin."""
    return 8 + int.from_bytes(file.read(0, 8), "little")


def extent_in(file: InputFile, tensor: Tensor) -> tuple[int, int] | None:
    """Return where in `file` the bytes of a tensor lie, in one stretch and as they are; None where not."""
    runs = tensor.runs(0, element_count(tensor))
    if runs is None or tensor.dtype.tag is None:
        return None
    if not runs:
        place = next(iter(tensor.places), None)
        return None if place is None or place.file != file else (place.offset, place.offset)
    first, last = runs[0], runs[-1]
    joined = all(_follows(a, b) for a, b in pairwise(runs))
    return (first.offset, last.offset + last.length) if joined and first.file == file else None


def _follows(before: Run, after: Run) -> bool:
    return before.file == after.file and before.offset + before.length == after.offset


def tiled(file: InputFile, tensors: Mapping[str, Tensor]) -> tuple[Entry, ...] | None:
    """Return tensors as they lie in a file, in that order; None unless they are its data, all and only."""
    entries: list[Entry] = []
    for name, tensor in tensors.items():
        extent = extent_in(file, tensor)
        if extent is None:
            return None
        entries.append(Entry(name, tensor, *extent))
    entries.sort(key=lambda entry: (entry.start, entry.stop))
    done = data_start(file)
    for entry in entries:
        if entry.start != done:
            return None
        done = entry.stop
    return tuple(entries) if done == file.size else None


def header_of(file: InputFile, entries: Sequence[Entry], metadata: Mapping[str, str]) -> bytes:
    """Return the header that gives the data of a file other names, its length before it.

    It is as long as the file's own where it fits, else longer by whole pages.

    Raises:
        OutputError: No reader would accept a header so long.
    """
    start = data_start(file)
    length = start - 8
    told = [_FORMAT | dict(metadata), dict(metadata)]
    texts = [_text(entries, each, start) for each in told]
    text = next((text for text in texts if len(text) <= length), texts[0])
    if len(text) > length:
        length += -(-(len(text) - length) // _PAGE_BYTES) * _PAGE_BYTES
    if length > _LONGEST_HEADER:
        raise OutputError(
            file.path,
            "would get a header that no reader accepts",
            saw=f"{length:,} bytes",
            expected=f"at most {_LONGEST_HEADER:,}",
            hint="Write smaller files with --max-shard-size.",
        )
    return length.to_bytes(8, "little") + text.ljust(length)


def _text(entries: Sequence[Entry], metadata: Mapping[str, str], start: int) -> bytes:
    header: dict[str, object] = {_METADATA: metadata} if metadata else {}
    for entry in entries:
        header[entry.name] = {
            "dtype": entry.tensor.dtype.tag,
            "shape": entry.tensor.shape,
            "data_offsets": (entry.start - start, entry.stop - start),
        }
    return json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
