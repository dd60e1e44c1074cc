"""Zip archives that contradict themselves are refused by name; those that any torch wrote are read."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from awkward import read_values
from reader_suite import opened
from torch_archives import Entry, StorageRef, TensorRef, pickled, torch_entries, write_archive

from unshard.errors import (
    DamagedFileError,
    InputError,
    UnknownLayoutError,
    UnsafeFileError,
    UnsupportedLayoutError,
)
from unshard.readers.torch_save.torch_zip import describe_torch_zip
from unshard.storage.files import InputFile

DATA = bytes(range(24))
STATE = {"w": TensorRef(StorageRef("0", 6, torch.FloatStorage), (6,), (1,))}


def entries(**data: Any) -> list[Entry]:
    """Return a healthy archive's members; keywords change the member that holds the storage."""
    small, order, storage, version = torch_entries(STATE, {"0": DATA})
    for key, value in data.items():
        setattr(storage, key, value)
    return [small, order, storage, version]


def with_member(*more: Entry) -> list[Entry]:
    return [*entries(), *more]


def test_the_archive_that_the_others_differ_from_is_read(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "m.pt", entries())
    assert read_values(opened(path).tensors)["w"][2] == DATA


HEALTHY: dict[str, Callable[[Path], Any]] = {
    "narrow ends": lambda p: write_archive(p, entries(), wide=False),
    "no descriptors": lambda p: write_archive(p, entries(flags=0x0800)),
    "no flags": lambda p: write_archive(p, entries(flags=0)),
    "padding": lambda p: write_archive(p, entries(padding=50)),
    "a file's mode": lambda p: write_archive(p, entries(external=0o100644 << 16)),
    "a mode alone": lambda p: write_archive(p, entries(external=0o600 << 16)),
    "a descriptor without mark": lambda p: write_archive(p, entries(descriptor=descriptor("<III"))),
    "a wide descriptor": lambda p: write_archive(p, entries(descriptor=b"PK\x07\x08" + descriptor("<IQQ"))),
    "wide sizes of a small file": lambda p: write_archive(p, entries(central=wide_central(24, 24))),
    "more members": lambda p: write_archive(p, with_member(Entry("archive/.data/serialization_id", b"1"))),
    "no byteorder": lambda p: write_archive(p, [e for e in entries() if not e.name.endswith("byteorder")]),
}


def descriptor(form: str) -> bytes:
    return struct.pack(form, zlib.crc32(DATA), 24, 24)


@pytest.mark.parametrize("write", HEALTHY.values(), ids=list(HEALTHY))
def test_every_form_that_a_writer_may_choose_is_read(write: Callable[[Path], Any], tmp_path: Path) -> None:
    write(tmp_path / "m.pt")
    assert read_values(opened(tmp_path / "m.pt").tensors)["w"][2] == DATA


def wide_central(size: int = 0, packed: int = 0, *, extra: bytes | None = None) -> dict[str, Any]:
    field = struct.pack("<HHQQ", 1, 16, size, packed) if extra is None else extra
    return {"size": 0xFFFFFFFF, "packed": 0xFFFFFFFF, "extra": field}


OTHER = b"archive/data/9"


def sizes(size: int) -> dict[str, int]:
    return {"size": size, "packed": size}


def with_small(**contents: bytes) -> list[Entry]:
    """Return a healthy archive's members, some of the small ones with other contents."""
    rest = [entry for entry in entries() if entry.name.partition("/")[2] not in contents]
    return rest + [Entry(f"archive/{name}", content) for name, content in contents.items()]


def miscounted() -> list[Entry]:
    return [Entry("archive/data.pkl", pickled(STATE), crc32=1), *entries()[1:]]


def packed_model(path: Path, **options: Any) -> Path:
    return write_archive(path, entries(), **options)


def fake_end() -> bytes:
    return struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 1, 1, 46, 0, 0)


HOSTILE: dict[str, Callable[[Path], Any]] = {
    "two members of one name": lambda p: write_archive(p, with_member(Entry("archive/data/0", DATA))),
    "names that differ in case": lambda p: write_archive(p, with_member(Entry("archive/DATA/0", DATA))),
    "a pickle in another case": lambda p: write_archive(p, with_member(Entry("archive/data.PKL", b"x"))),
    "a name that leaves": lambda p: write_archive(p, with_member(Entry("archive/../x", b"x"))),
    "an absolute name": lambda p: write_archive(p, with_member(Entry("/archive/x", b"x"))),
    "a name with a backslash": lambda p: write_archive(p, with_member(Entry("archive\\x", b"x"))),
    "a name with a dot": lambda p: write_archive(p, with_member(Entry("archive/./data/0", b"x"))),
    "a name with a NUL": lambda p: write_archive(p, with_member(Entry("archive/data/0\0x", b"x"))),
    "a name that is no text": lambda p: write_archive(
        p, entries(central={"name": b"archive/data/\xff"}, local={"name": b"archive/data/\xff"})
    ),
    "an entry for a folder": lambda p: write_archive(p, with_member(Entry("archive/data/", b""))),
    "a folder's attribute": lambda p: write_archive(p, entries(external=0x10)),
    "a link's mode": lambda p: write_archive(p, entries(external=0o120777 << 16)),
    "a device's mode": lambda p: write_archive(p, entries(external=0o020666 << 16)),
    "encryption": lambda p: write_archive(p, entries(flags=0x0809)),
    "flags of patches": lambda p: write_archive(p, entries(flags=0x0828)),
    "a compressed storage": lambda p: write_archive(p, entries(deflate=True)),
    "an unknown method": lambda p: write_archive(p, entries(central={"method": 99}, local={"method": 99})),
    "another name in the local header": lambda p: write_archive(p, entries(local={"name": OTHER})),
    "another method in the local header": lambda p: write_archive(p, entries(local={"method": 8})),
    "other flags in the local header": lambda p: write_archive(p, entries(local={"flags": 0x0800})),
    "another size in the local header": lambda p: write_archive(p, entries(flags=0x0800, local={"size": 23})),
    "another checksum in the local header": lambda p: write_archive(p, entries(flags=0, local={"crc32": 1})),
    "a size in front of a descriptor": lambda p: write_archive(p, entries(local={"size": 23})),
    "a descriptor that disagrees": lambda p: write_archive(
        p, entries(descriptor=struct.pack("<4sIII", b"PK\x07\x08", 1, 24, 24))
    ),
    "no descriptor": lambda p: write_archive(p, entries(descriptor=b"")),
    "sizes that disagree": lambda p: write_archive(p, entries(central={"size": 20})),
    "a member that is shorter": lambda p: write_archive(p, entries(central=sizes(20))),
    "a member that is longer": lambda p: write_archive(p, entries(central=sizes(40))),
    "a member that is immense": lambda p: write_archive(p, entries(central=sizes(1 << 62))),
    "wide sizes that are missing": lambda p: write_archive(p, entries(central=wide_central(extra=b""))),
    "wide sizes that lie": lambda p: write_archive(p, entries(central=wide_central(24, 25))),
    "wide sizes that are too many": lambda p: write_archive(
        p, entries(central=wide_central(extra=struct.pack("<HHQQQ", 1, 24, 24, 24, 0)))
    ),
    "two entries of one member": lambda p: write_archive(p, aliased()),
    "a place outside": lambda p: write_archive(p, entries(central={"place": 1 << 40})),
    "a place in the middle": lambda p: write_archive(p, entries(central={"place": 3})),
    "bytes between members": lambda p: write_archive(p, entries(gap=b"hidden")),
    "many bytes between members": lambda p: write_archive(p, entries(gap=b"h" * 100)),
    "a comment": lambda p: packed_model(p, comment=b"hello"),
    "an end in a comment": lambda p: packed_model(p, comment=fake_end()),
    "a member's comment": lambda p: write_archive(p, entries(central={"comment": b"hello"})),
    "another volume": lambda p: write_archive(p, entries(central={"disk": 1})),
    "more members than there are": lambda p: packed_model(p, count=5),
    "fewer members than there are": lambda p: packed_model(p, count=3),
    "bytes in front": lambda p: packed_model(p, prefix=b"#!/bin/sh\n"),
    "bytes behind": lambda p: packed_model(p, suffix=b"x" * 100),
    "zeros behind": lambda p: packed_model(p, suffix=bytes(1000)),
    "two archives": lambda p: p.write_bytes(2 * packed_model(p).read_bytes()),
    "no pickle": lambda p: write_archive(p, [e for e in entries() if "pkl" not in e.name]),
    "two roots": lambda p: write_archive(p, with_member(Entry("other/data/0", DATA))),
    "an unknown byte order": lambda p: write_archive(p, with_small(byteorder=b"middle")),
    "a version from the future": lambda p: write_archive(p, with_small(version=b"99\n")),
    "a version of many bytes": lambda p: write_archive(p, with_small(version=b"3" * 1000)),
    "a pickle that unfolds to more": lambda p: write_archive(p, unfolding(size=-1)),
    "a pickle that unfolds to less": lambda p: write_archive(p, unfolding(size=1)),
    "a pickle that unfolds to a gigabyte": lambda p: write_archive(p, unfolding(size=1 << 30)),
    "a pickle that cannot be unfolded": lambda p: write_archive(p, garbled()),
    "a pickle of another checksum": lambda p: write_archive(p, miscounted()),
    "TorchScript": lambda p: write_archive(p, with_member(Entry("archive/constants.pkl", b"x"))),
    "torch.package": lambda p: write_archive(p, with_member(Entry("archive/.data/extern_modules", b"x"))),
    "NumPy": lambda p: write_archive(p, [Entry("arr_0.npy", b"x")]),
    "an office document": lambda p: write_archive(p, [Entry("word/document.xml", b"x")]),
    "no members": lambda p: write_archive(p, []),
}  # fmt: skip


def aliased() -> list[Entry]:
    first, *rest = entries()
    return [
        first,
        *rest,
        Entry("archive/data/1", b"", central={"place": 0, "size": 5, "packed": 5, "flags": 0x0808}),
    ]


def unfolding(size: int) -> list[Entry]:
    content = pickled(STATE)
    wrong = Entry("archive/data.pkl", content, deflate=True, flags=0x0800)
    stated = size if size > 1 else len(content) + size
    wrong.central, wrong.local = {"size": stated}, {"size": stated}
    return [wrong, *entries()[1:]]


def garbled() -> list[Entry]:
    lying = {"method": 8}
    return [Entry("archive/data.pkl", b"\xff" * 50, flags=0x0800, central=lying, local=lying), *entries()[1:]]


@pytest.mark.parametrize("write", HOSTILE.values(), ids=list(HOSTILE))
def test_an_archive_that_contradicts_itself_is_refused(write: Callable[[Path], Any], tmp_path: Path) -> None:
    write(tmp_path / "m.pt")
    with pytest.raises(
        (UnsafeFileError, DamagedFileError, UnsupportedLayoutError, UnknownLayoutError)
    ) as caught:
        opened(tmp_path / "m.pt")
    assert "m.pt" in str(caught.value)


def test_an_archive_inside_another_file_is_read_at_any_offset(tmp_path: Path) -> None:
    inner = write_archive(tmp_path / "inner.pt", entries()).read_bytes()
    for before in (1, 7, 4096):
        (tmp_path / "outer").write_bytes(b"x" * before + inner + b"after")
        file = InputFile.describe(tmp_path / "outer")
        saved = describe_torch_zip(file, before, before + len(inner))
        storage = saved.storages["0"]
        assert file.read(storage.start, storage.stop) == DATA


def test_every_byte_of_a_small_archive_may_flip_without_an_unforeseen_error(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "m.pt", entries())
    content = bytearray(path.read_bytes())
    start = content.find(DATA)
    for at in range(len(content)):
        bit = 1 << at % 8
        content[at] ^= bit
        path.write_bytes(content)
        try:
            unchanged = read_values(opened(path).tensors) == {"w": ((6,), "float32", DATA)}
            assert unchanged or start <= at < start + len(DATA), f"byte {at}"
        except InputError:
            pass
        content[at] ^= bit
