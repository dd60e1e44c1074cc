"""A folder of safetensors files, split and named as Hugging Face's libraries split and name them.

    model.safetensors                        where everything fits into one file, else
    model-00001-of-00003.safetensors ...     and
    model.safetensors.index.json             which file holds which tensor

Every file: 8 bytes, the length of the header (little-endian); the header, JSON padded with spaces to
a multiple of 8; the tensors, without gaps. The widest dtypes come first, so every tensor is aligned.
The bytes are those that the reference writer gives for the same tensors.

Refused: dtypes without a safetensors tag, empty names, names with control characters.

Source:
    safetensors/src/tensor.rs (`prepare`, `Dtype`); huggingface_hub/serialization/_base.py
    (`split_state_dict_into_shards_factory`); transformers/modeling_utils.py (`save_pretrained`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from unshard.errors import OptionError, OutputError, listed
from unshard.plan import OutputFile, Placement, SideFile
from unshard.tensors import Tensor, byte_count, element_count

INDEX_NAME = "model.safetensors.index.json"
_METADATA = "__metadata__"

# The order of the reference writer: its own list of dtypes, backwards, so the widest come first.
_ORDER = (
    *("U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16"),
    *("F8_E5M2FNUZ", "F8_E4M3FNUZ", "F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"),
)
# The reference reader refuses longer headers.
_MAX_HEADER_BYTES = 100_000_000


def plan_safetensors(
    tensors: Mapping[str, Tensor], *, max_file_bytes: int
) -> tuple[tuple[OutputFile, ...], tuple[SideFile, ...]]:
    """Return the files of tensors, and the index where there is more than one of them.

    Args:
        tensors: By name; files are filled in this order.
        max_file_bytes: The most tensor bytes in one file; a larger tensor has a file of its own.

    Raises:
        OptionError: `max_file_bytes` is not positive.
        OutputError: Names or dtypes that a safetensors file cannot hold, all of them.
    """
    if max_file_bytes < 1:
        raise OptionError("max_file_bytes", "must be at least 1", saw=max_file_bytes)
    _require_writable(tensors)
    groups = _split(tensors, max_file_bytes)
    if len(groups) <= 1:
        return (_plan_file("model.safetensors", tensors),), ()
    total = len(groups)
    names = [f"model-{number:05d}-of-{total:05d}.safetensors" for number in range(1, total + 1)]
    files = tuple(
        _plan_file(file, {name: tensors[name] for name in group})
        for file, group in zip(names, groups, strict=True)
    )
    return files, (_index(files),)


def plan_safetensors_file(file: str, tensors: Mapping[str, Tensor]) -> OutputFile:
    """Return one file of this name with all tensors.

    Raises:
        OutputError: Names or dtypes that a safetensors file cannot hold, all of them.
    """
    _require_writable(tensors)
    return _plan_file(file, tensors)


def _require_writable(tensors: Mapping[str, Tensor]) -> None:
    """Raise if there is a tensor that no safetensors file can hold.

    Raises:
        OutputError: With all of them.
    """
    untagged = {name: tensor.dtype.name for name, tensor in tensors.items() if tensor.dtype.tag is None}
    if untagged:
        raise OutputError(
            listed(list(untagged)),
            "cannot be written as safetensors, which has no such dtype",
            saw=", ".join(sorted(set(untagged.values()))),
            expected="a dtype of the safetensors format",
            hint="Write torch's own format with --to pt, which has every dtype.",
        )
    unnameable = [ascii(name) for name in tensors if not name.isprintable() or name in ("", _METADATA)]
    if unnameable:
        raise OutputError(
            listed(unnameable),
            "cannot be the name of a tensor in a safetensors file",
            expected=f"printable characters, and not {_METADATA}",
        )


def _split(tensors: Mapping[str, Tensor], max_file_bytes: int) -> list[list[str]]:
    """Return the names of every file, by the reference's rule: fill a file until the next would not fit."""
    groups: list[list[str]] = []
    group: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        length = byte_count(tensor)
        if length > max_file_bytes:
            groups.append([name])
            continue
        if size + length > max_file_bytes:
            groups.append(group)
            group, size = [], 0
        group.append(name)
        size += length
    return [*groups, group] if group else groups


def _plan_file(file: str, tensors: Mapping[str, Tensor]) -> OutputFile:
    """Return one file, in which the reference writer's order decides what lies where."""
    order = sorted(tensors, key=lambda name: (_ORDER.index(tensors[name].dtype.tag or ""), name))
    header: dict[str, object] = {_METADATA: {"format": "pt"}}
    offset = 0
    for name in order:
        tensor = tensors[name]
        end = offset + byte_count(tensor)
        header[name] = {
            "dtype": tensor.dtype.tag,
            "shape": tensor.shape,
            "data_offsets": (offset, end),
        }
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_HEADER_BYTES:
        raise OutputError(
            file,
            "would have a header that no reader accepts",
            saw=f"{len(text):,} bytes for {len(order):,} tensors",
            expected=f"at most {_MAX_HEADER_BYTES:,}",
            hint="Write smaller files with --max-shard-size.",
        )
    literal = len(text).to_bytes(8, "little") + text
    placements = []
    start = len(literal)
    for name in order:
        stop = start + byte_count(tensors[name])
        placements.append(Placement(name, tensors[name], start, stop))
        start = stop
    return OutputFile(file, start, ((0, literal),), tuple(placements))


def _index(files: Sequence[OutputFile]) -> SideFile:
    """Return the index: which file holds which tensor."""
    placements = [(placement, file.name) for file in files for placement in file.placements]
    index = {
        "metadata": {
            "total_parameters": sum(element_count(placement.tensor) for placement, _ in placements),
            "total_size": sum(placement.stop - placement.start for placement, _ in placements),
        },
        "weight_map": {placement.name: file for placement, file in placements},
    }
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    return SideFile(INDEX_NAME, text.encode(), None, "the names of the files of tensors")
