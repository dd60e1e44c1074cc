"""One safetensors file: its header, read strictly.

    8 bytes         length of the header, little-endian
    header          JSON: {name: {"dtype", "shape", "data_offsets": [start, stop]}, "__metadata__": {...}}
    data            the tensors, one after the other, without a gap

Stricter than the reference implementation where readers could disagree: names given twice, fields that
are not in the format, numbers that are no integers, text that is no UTF-8, space before the header.

Source:
    safetensors/src/tensor.rs (`Metadata::validate`) and its README ("Format").
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from unshard.dtypes import BY_TAG, DType
from unshard.errors import DamagedFileError, UnsafeFileError, UnsupportedLayoutError
from unshard.readers.rendering import cut, listed, shown
from unshard.readers.torch_save.zip_end import HINT_COPY
from unshard.storage.files import InputFile
from unshard.tensors import DescribedTensor, FileSource, whole_tensor

_LONGEST_HEADER = 100_000_000
_FIELDS = {"dtype", "shape", "data_offsets"}
_MOST_DIMENSIONS = 32
_TOO_MANY = 1 << 62
# In the format, and in no version of numpy, ml_dtypes or this program.
_UNREAD_TAGS = ("F4", "F6_E2M3", "F6_E3M2")


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """What the header of a safetensors file says.

    Attributes:
        tensors: dtype, shape, and first and last byte in the file, by name, in the header's order.
        metadata: The free text of the file.
    """

    tensors: Mapping[str, tuple[DType, tuple[int, ...], int, int]]
    metadata: Mapping[str, str]


def is_safetensors(head: bytes) -> bool:
    """Return whether a file that begins with `head` can only be a safetensors file."""
    length = int.from_bytes(head[:8], "little")
    return len(head) > 8 and head[8:9] == b"{" and 2 <= length <= _LONGEST_HEADER


def describe_safetensors_file(file: InputFile) -> dict[str, DescribedTensor]:
    """Return the tensors of a safetensors file by name; no tensor is read.

    Raises:
        DamagedFileError: It is cut short, or goes on after its tensors.
        UnsafeFileError: Its header contradicts itself or the format.
        UnsupportedLayoutError: It has tensors of a dtype that is not read.
    """
    return describe_tensors(file, read_safetensors_header(file))


def describe_tensors(file: InputFile, header: SafetensorsHeader) -> dict[str, DescribedTensor]:
    """Return the tensors that a header of `file` lists."""
    return {
        name: whole_tensor(FileSource.contiguous(file, start, shape, dtype))
        for name, (dtype, shape, start, _) in header.tensors.items()
    }


def read_safetensors_header(file: InputFile) -> SafetensorsHeader:
    """Return the header of a safetensors file.

    Raises:
        DamagedFileError: It is cut short, or goes on after its tensors.
        UnsafeFileError: Its header contradicts itself or the format.
        UnsupportedLayoutError: It has tensors of a dtype that is not read.
    """
    fields = _parse(file)
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _contradiction(file, "has metadata that is not text", saw=_shown(metadata))
    start = 8 + int.from_bytes(file.read(0, 8), "little")
    unread: list[str] = []
    tensors = {name: _entry(file, name, entry, start, unread) for name, entry in fields.items()}
    if unread:
        raise UnsupportedLayoutError(file.path, "has tensors of dtypes that are not read", saw=listed(unread))
    _require_tiled(file, tensors, start)
    return SafetensorsHeader(tensors, metadata)


def _parse(file: InputFile) -> dict[str, object]:
    """Return the header's JSON."""
    if file.size < 8:
        raise DamagedFileError(
            file.path, "is too short for a safetensors file", saw=f"{file.size} bytes", hint=HINT_COPY
        )
    length = int.from_bytes(file.read(0, 8), "little")
    if length > _LONGEST_HEADER:
        raise _contradiction(
            file,
            "does not begin with the length of a header",
            saw=f"{length:,}",
            expected=f"<= {_LONGEST_HEADER:,}",
        )
    if 8 + length > file.size:
        raise DamagedFileError(
            file.path,
            f"is truncated: its header goes through byte {8 + length:,}",
            saw=f"{file.size:,} bytes",
            hint=HINT_COPY,
        )
    content = file.read(8, 8 + length)
    if not content.startswith(b"{"):
        raise _contradiction(file, "has a header that does not begin with `{`", saw=repr(content[:8]))
    try:
        parsed = json.loads(
            content.decode(), object_pairs_hook=_object, parse_float=_no_number, parse_constant=_no_number
        )
    except (ValueError, RecursionError) as error:
        raise _contradiction(file, "has a header that cannot be read", saw=cut(str(error))) from error
    assert isinstance(parsed, dict)
    return parsed


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return a JSON object; readers differ in which of two equal keys they take."""
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"`{cut(twice)}` is given twice")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{cut(text)} is no integer")


def _entry(
    file: InputFile, name: str, entry: object, start: int, unread: list[str]
) -> tuple[DType, tuple[int, ...], int, int]:
    """Return what one entry says, with offsets in the file; note a dtype that is not read."""
    if not name or not name.isprintable():
        raise _contradiction(
            file, "has a tensor whose name is empty or cannot be printed", saw=repr(name[:20])
        )
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        fields = ", ".join(sorted(_FIELDS))
        raise _contradiction(file, f"describes `{cut(name)}` in other fields", expected=fields)
    tag, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not _are_counts(shape, _MOST_DIMENSIONS) or not _are_counts(offsets, 2) or len(offsets) != 2:
        raise _contradiction(file, f"gives `{cut(name)}` a shape or offsets that cannot be")
    dtype = BY_TAG.get(tag) if isinstance(tag, str) else None
    if dtype is None:
        if tag not in _UNREAD_TAGS:
            raise _contradiction(file, f"gives `{cut(name)}` an unknown dtype", saw=_shown(tag))
        unread.append(f"`{cut(name)}` ({tag})")
        dtype = BY_TAG["U8"]
    elif offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise _contradiction(
            file,
            f"gives `{cut(name)}` other offsets than its shape needs",
            saw=f"bytes {offsets[0]} to {offsets[1]}",
            expected=f"{math.prod(shape) * dtype.itemsize} bytes for {dtype} {shape}",
        )
    return dtype, tuple(shape), start + offsets[0], start + offsets[1]


def _are_counts(value: object, at_most: int) -> bool:
    if not isinstance(value, list) or len(value) > at_most:
        return False
    return all(type(n) is int and 0 <= n < _TOO_MANY for n in value)


def _require_tiled(
    file: InputFile, tensors: Mapping[str, tuple[DType, tuple[int, ...], int, int]], start: int
) -> None:
    """Raise unless the tensors follow one another from `start` to the end of the file."""
    done, last = start, "the header"
    for name, (_, _, first, stop) in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if first != done:
            what = "overlap" if first < done else "leave a gap"
            raise _contradiction(file, f"has tensors that {what} between `{cut(last)}` and `{cut(name)}`")
        done, last = stop, name
    if done > file.size:
        raise DamagedFileError(
            file.path,
            f"is truncated: its header declares tensor data through byte {done:,}",
            saw=f"{file.size:,} bytes",
            hint=HINT_COPY,
        )
    if done < file.size:
        raise DamagedFileError(
            file.path,
            f"goes on after its tensors, which end at byte {done:,}",
            saw=f"{file.size:,} bytes",
            hint=HINT_COPY,
        )


def _shown(value: object) -> str:
    """Return a value of JSON in a few words."""
    return f"{len(value)} fields" if isinstance(value, dict) else shown(value)


def _contradiction(
    file: InputFile, problem: str, *, saw: str | None = None, expected: str | None = None
) -> UnsafeFileError:
    hint = "No writer of safetensors makes such a file. Copy it again, or ask whoever made it."
    return UnsafeFileError(file.path, problem, saw=saw, expected=expected, hint=hint)
