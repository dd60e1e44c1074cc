"""One file of safetensors that holds boxes of tensors: where each box lies in its tensor.

    __metadata__.DCP_SHARDING_INFO      {name: {"saved_offsets": [first index, per dimension]}}

Source:
    torch/distributed/checkpoint/_hf_utils.py (`CUSTOM_METADATA_KEY`); filesystem.py
    (`_write_files_from_queue`), which writes an entry for every tensor of the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from unshard.errors import UnsafeFileError
from unshard.readers.rendering import cut, shown
from unshard.readers.weights.safetensors_file import read_safetensors_header
from unshard.storage.files import InputFile
from unshard.tensors import Box, FileSource, Piece

_KEY = "DCP_SHARDING_INFO"
_FIELD = "saved_offsets"
_TOO_MANY = 1 << 62


def describe_boxes(file: InputFile) -> dict[str, Piece]:
    """Return the box of every tensor that a file holds part of; no tensor is read.

    Raises:
        DamagedFileError: The file is cut short.
        UnsafeFileError: It contradicts itself.
        UnsupportedLayoutError: It has tensors of a dtype that is not read.
    """
    header = read_safetensors_header(file)
    offsets = _offsets(file, header.metadata)
    unlike = sorted(offsets.keys() ^ header.tensors.keys())
    if unlike:
        raise _contradiction(
            file,
            f"has another list of tensors in `{_KEY}` than in its header",
            saw=f"`{cut(unlike[0])}` in one of them, as are {len(unlike)} in all",
        )
    return {
        name: Piece(_box(file, name, offsets[name], shape), FileSource.contiguous(file, start, shape, dtype))
        for name, (dtype, shape, start, _) in header.tensors.items()
    }


def _offsets(file: InputFile, metadata: Mapping[str, str]) -> dict[str, object]:
    """Return what the file says of the offsets of every tensor."""
    if _KEY not in metadata:
        raise _contradiction(file, f"does not say which part of its tensors it holds: no `{_KEY}`")
    try:
        parsed = json.loads(metadata[_KEY], object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise _contradiction(file, f"has a `{_KEY}` that cannot be read", saw=cut(str(error))) from error
    if not isinstance(parsed, dict):
        raise _contradiction(file, f"has a `{_KEY}` that is no JSON object", saw=shown(parsed))
    return {name: entry.get(_FIELD) if isinstance(entry, dict) else None for name, entry in parsed.items()}


def _box(file: InputFile, name: str, offsets: object, shape: tuple[int, ...]) -> Box:
    fits = isinstance(offsets, list) and len(offsets) == len(shape)
    if not fits or not all(type(n) is int and 0 <= n < _TOO_MANY for n in offsets):  # type: ignore[attr-defined]
        raise _contradiction(
            file,
            f"gives `{cut(name)}` offsets that cannot be",
            saw=cut(json.dumps(offsets)),
            expected=f"{len(shape)} numbers, for shape {list(shape)}",
        )
    assert isinstance(offsets, list)
    return Box(tuple(offsets), tuple(a + n for a, n in zip(offsets, shape, strict=True)))


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is given twice")
    return found


def _contradiction(
    file: InputFile, problem: str, *, saw: str | None = None, expected: str | None = None
) -> UnsafeFileError:
    hint = "torch writes no such file. Copy it again, or ask whoever made it."
    return UnsafeFileError(file.path, problem, saw=saw, expected=expected, hint=hint)
