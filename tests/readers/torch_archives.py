"""Torch files made by hand: torch's own pickles, in archives that torch would not write."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

FULL = 0xFFFFFFFF


@dataclass
class StorageRef:
    """A storage by key, pickled as torch's persistent id."""

    key: str
    count: int
    kind: Any = torch.BFloat16Storage
    location: str = "cpu"


@dataclass
class TensorRef:
    """A view of a storage, pickled as torch pickles a tensor."""

    storage: StorageRef
    shape: Sequence[Any]
    strides: Sequence[Any]
    offset: Any = 0
    rest: tuple[Any, ...] = (False, OrderedDict())
    rebuild: Any = torch._utils._rebuild_tensor_v2

    def __reduce__(self) -> tuple[Any, ...]:
        return self.rebuild, (self.storage, self.offset, self.shape, self.strides, *self.rest)


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, StorageRef):
            return ("storage", obj.kind, obj.key, obj.location, obj.count)
        return None


def pickled(value: Any, protocol: int = 2) -> bytes:
    """Return a pickle in which storages are persistent ids."""
    out = io.BytesIO()
    _Pickler(out, protocol).dump(value)
    return out.getvalue()


@dataclass
class Entry:
    """One member of an archive; every field of its two headers can be made to lie.

    `content` may be a count of bytes that are zero and are not written.
    """

    name: str
    content: bytes | int = b""
    deflate: bool = False
    flags: int = 0x0808
    external: int = 0
    crc32: int | None = None
    central: dict[str, Any] = field(default_factory=dict)
    local: dict[str, Any] = field(default_factory=dict)
    padding: int = 0
    descriptor: bytes | None = None
    gap: bytes = b""


def write_archive(
    path: Path,
    entries: Sequence[Entry],
    *,
    wide: bool = True,
    count: int | None = None,
    comment: bytes = b"",
    prefix: bytes = b"",
    suffix: bytes = b"",
) -> Path:
    """Write a zip archive in torch's manner: 64-bit end records, descriptors after the members."""
    central = b""
    with path.open("wb") as file:
        file.write(prefix)
        for entry in entries:
            place = file.tell() - len(prefix)
            central += _write_entry(file, entry, place)
        start = file.tell() - len(prefix)
        total = len(entries) if count is None else count
        file.write(central)
        if wide:
            record = file.tell() - len(prefix)
            file.write(
                struct.pack(
                    "<4sQHHIIQQQQ", b"PK\x06\x06", 44, 0x1E03, 45, 0, 0, total, total, len(central), start
                )
            )
            file.write(struct.pack("<4sIQI", b"PK\x06\x07", 0, record, 1))
        small = [min(total, 0xFFFF), min(total, 0xFFFF), len(central), min(start, 0xFFFFFFFF)]
        file.write(struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, *small, len(comment)) + comment + suffix)
    return path


def _write_entry(file: Any, entry: Entry, place: int) -> bytes:
    name = entry.name.encode()
    size = entry.content if isinstance(entry.content, int) else len(entry.content)
    data = b"" if isinstance(entry.content, int) else entry.content
    crc32 = zlib.crc32(data) if entry.crc32 is None else entry.crc32
    if entry.deflate:
        packer = zlib.compressobj(wbits=-15)
        data = packer.compress(data) + packer.flush()
    packed = size if isinstance(entry.content, int) else len(data)
    flags = entry.flags if size else entry.flags & ~8
    later = bool(flags & 8)
    local = {
        "flags": flags, "method": 8 if entry.deflate else 0, "crc32": 0 if later else crc32,
        "packed": 0 if later else packed, "size": 0 if later else size, "name": name,
    } | entry.local  # fmt: skip
    extra = struct.pack("<HH", 0x4246, entry.padding) + b"Z" * entry.padding
    file.write(
        struct.pack("<4sHHHHHIIIHH", b"PK\x03\x04", 0, local["flags"], local["method"], 0, 0, local["crc32"],
                    local["packed"], local["size"], len(local["name"]), len(extra))
        + local["name"] + extra
    )  # fmt: skip
    if isinstance(entry.content, int):
        file.seek(entry.content, 1)
    file.write(data)
    if later:
        form = "<4sIQQ" if max(size, packed, place) > 0xFFFFFFFF else "<4sIII"
        default = struct.pack(form, b"PK\x07\x08", crc32, packed, size)
        file.write(default if entry.descriptor is None else entry.descriptor)
    file.write(entry.gap)
    stated = {
        "flags": flags, "method": 8 if entry.deflate else 0, "crc32": crc32, "packed": packed, "size": size,
        "name": name, "place": place, "comment": b"", "disk": 0,
    } | entry.central  # fmt: skip
    wide = [stated[key] for key in ("size", "packed", "place") if stated[key] >= FULL]
    more = stated.get("extra", struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b"")
    size, packed, place = (min(stated[key], FULL) for key in ("size", "packed", "place"))
    return bytes(
        struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\x01\x02", 0, 0, stated["flags"], stated["method"], 0, 0,
                    stated["crc32"], packed, size, len(stated["name"]), len(more), len(stated["comment"]),
                    stated["disk"], 0, entry.external, place)
        + stated["name"] + more + stated["comment"]
    )  # fmt: skip


def torch_entries(
    value: Any, storages: Mapping[str, bytes | int], *, root: str = "archive", **more: Any
) -> list[Entry]:
    """Return the members of a torch file that holds `value`, whose storages are given by key."""
    small = [
        Entry(f"{root}/data.pkl", value if isinstance(value, bytes) else pickled(value), **more),
        Entry(f"{root}/byteorder", b"little"),
    ]
    data = [Entry(f"{root}/data/{key}", content) for key, content in storages.items()]
    return [*small, *data, Entry(f"{root}/version", b"3\n")]


def write_sparse_model(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """Write a state dict of zeros in bfloat16 whose storages take no room on the disk."""
    state, storages = OrderedDict(), {}
    for i, (name, shape) in enumerate(shapes.items()):
        count = 1
        for length in shape:
            count *= length
        strides = [1] * len(shape)
        for d in range(len(shape) - 2, -1, -1):
            strides[d] = strides[d + 1] * shape[d + 1]
        state[name] = TensorRef(StorageRef(str(i), count), shape, tuple(strides))
        storages[str(i)] = 2 * count
    return write_archive(path, torch_entries(state, storages))
