"""A plain state dict in torch's own format, planned without torch.

    archive/data.pkl                an OrderedDict of tensors by name
    archive/.format_version  archive/.storage_alignment  archive/byteorder
    archive/data/0 ...              one storage per tensor
    archive/version

The bytes are those of `torch.save`, except that `archive/.data/serialization_id` is left out: it
is made of hashes that differ from one build of torch to another, and torch only reports it.

Source:
    torch/serialization.py (`_save`).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from unshard.plan import OutputFile, Placement
from unshard.tensors import Tensor, byte_count
from unshard.writers.state_dict_pickle import pickle_state_dict
from unshard.writers.stored_zip import Member, directory, place_members


def is_torch_file_name(path: Path) -> bool:
    """Return whether an output of that name is one file in torch's format, and not a folder."""
    return path.suffix in (".pt", ".pth", ".bin")


def plan_torch_file(tensors: Mapping[str, Tensor], *, name: str) -> OutputFile:
    """Return the file `name`, which holds `tensors` in their order and nothing else."""
    before = {
        "archive/data.pkl": pickle_state_dict(tensors),
        "archive/.format_version": b"1",
        "archive/.storage_alignment": b"64",
        "archive/byteorder": b"little",
    }
    after = {"archive/version": b"3\n"}
    storages = {f"archive/data/{key}": byte_count(tensor) for key, tensor in enumerate(tensors.values())}
    known = before | after
    sizes = {**_sizes(before), **storages, **_sizes(after)}
    members = place_members(sizes)
    crc32s = {member: zlib.crc32(content) for member, content in known.items()}
    literals = []
    for member in members:
        content = known.get(member.name)
        tail = b"" if content is None else content + member.descriptor(crc32s[member.name])
        literals.append((member.header_start, member.header() + tail))
    stored = [member for member in members if member.name in storages]
    placements = [
        Placement(tensor_name, tensor, member.start, member.stop)
        for member, (tensor_name, tensor) in zip(stored, tensors.items(), strict=True)
    ]
    size = members[-1].end + len(directory(members, [0] * len(members)))
    seal = partial(_seal, members, crc32s, dict(zip(storages, tensors, strict=True)))
    return OutputFile(name, size, tuple(literals), tuple(placements), seal)


def _sizes(contents: Mapping[str, bytes]) -> dict[str, int]:
    return {name: len(content) for name, content in contents.items()}


def _seal(
    members: Sequence[Member],
    known: Mapping[str, int],
    names: Mapping[str, str],
    crc32s: Mapping[str, int],
) -> list[tuple[int, bytes]]:
    """Return what the checksums of the tensors complete: their descriptors, and the directory.

    Args:
        members: All members, in order.
        known: The checksums that were known in advance, by member.
        names: The tensor that every other member holds, by member.
        crc32s: The checksums of the tensors, by tensor.
    """
    every = [known[m.name] if m.name in known else crc32s[names[m.name]] for m in members]
    descriptors = [
        (member.stop, member.descriptor(crc32))
        for member, crc32 in zip(members, every, strict=True)
        if member.name in names
    ]
    return [*descriptors, (members[-1].end, directory(members, every))]
