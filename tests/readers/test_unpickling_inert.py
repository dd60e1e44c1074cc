"""The two machines that read metadata: they agree, and neither runs anything."""

from __future__ import annotations

import io
import os
import pickle
import random
import resource
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dcp_folders import HandWriter, class_paths, pickled_as, read_metadata, save, tiles
from unshard.errors import DamagedFileError, InputError, UnsafeFileError
from unshard.readers.dcp.metadata_file import read_metadata as read_metadata_file
from unshard.readers.dcp.metadata_file import read_tables_here
from unshard.readers.dcp.table_builder import build_tables
from unshard.readers.dcp.table_process import read_tables_apart
from unshard.readers.dcp.tables import MetadataError, Tables
from unshard.readers.unpickling import Limits, read_pickle
from unshard.readers.unpickling.inert_unpickler import InertUnpickler
from unshard.storage.files import InputFile

MUTATIONS = 1500
ROOM_BYTES = 1 << 30  # a broken pickle may ask for a memo of 32 GiB; the process has such a limit, too


def contents(tables: Tables) -> tuple[object, ...]:
    """Return everything that tables say, as plain values."""
    rows = {tensor.name: tables.rows(tensor).tolist() for tensor in tables.tensors}
    named = (list(tables.tensors), list(tables.items), list(tables.files), list(tables.transforms))
    return (*named, dict(tables.paths), set(tables.classes), dict(tables.facts), rows)


def by_our_machine(data: bytes) -> tuple[object, ...] | None:
    try:
        found = read_pickle(data, "test")
        return contents(build_tables(found.value, found.classes, len(data)))
    except (InputError, MetadataError):
        return None


def by_pythons_machine(data: bytes) -> tuple[object, ...] | None:
    """Return what the process would, without starting one."""
    stream = io.BytesIO(data)
    unpickler = InertUnpickler(stream, Limits())
    try:
        root = unpickler.load()
        return contents(build_tables(root, unpickler.names, len(data))) if not stream.read(1) else None
    except Exception:  # noqa: BLE001  a broken pickle raises anything, and the process ends
        return None


def checkpoint(folder: Path) -> Path:
    writer = HandWriter(folder)
    for name, tensor in {"model.w": torch.zeros(7, 5), "model.n": torch.tensor(1)}.items():
        writer.add(
            name, tensor, tiles(tensor), transform_descriptors=["stream.zstd/1"] if tensor.dim() else None
        )
    writer.add_item("epoch", 3)
    writer.metadata.planner_data = {"model.w": ("model", "w"), "model.n": ("model", "n"), "epoch": ("epoch",)}
    return writer.finish()


@pytest.fixture
def little_room() -> Iterator[None]:
    """Keep what a pickle asks for within bounds."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def pickles(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Metadata of several versions and writers."""
    folder = tmp_path_factory.mktemp("pickles")
    state = {
        "model": {"w": torch.ones(3, 4)},
        "optim": {"state": {"w": {"exp_avg": torch.ones(3, 4)}}},
        "step": 1,
    }
    real = (save(state, folder / "real") / ".metadata").read_bytes()
    by_hand = checkpoint(folder / "by hand")
    old = class_paths(
        "torch.distributed._shard.checkpoint",
        "torch.distributed._shard.sharded_tensor.metadata.TensorProperties",
    )
    renamed = pickled_as(read_metadata(by_hand), old)
    protocols = [pickle.dumps(read_metadata(by_hand), protocol=protocol) for protocol in range(2, 6)]
    return [real, (by_hand / ".metadata").read_bytes(), renamed, *protocols]


def test_both_machines_read_the_same(pickles: list[bytes]) -> None:
    for data in pickles:
        ours = by_our_machine(data)
        assert ours is not None
        assert by_pythons_machine(data) == ours


@pytest.mark.usefixtures("little_room")
def test_what_both_machines_read_of_a_damaged_pickle_is_the_same(pickles: list[bytes]) -> None:
    chance = random.Random(5)
    both = alone = 0
    for _ in range(MUTATIONS):
        data = bytearray(chance.choice(pickles))
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(data))
            match chance.randrange(4):
                case 0:
                    data[at] ^= 1 << chance.randrange(8)
                case 1:
                    data[at] = chance.choice(pickles[0])
                case 2:
                    del data[at : at + chance.randint(1, 8)]
                case _:
                    data[at:at] = data[at : at + chance.randint(1, 40)]
        ours, pythons = by_our_machine(bytes(data)), by_pythons_machine(bytes(data))
        if ours is not None and pythons is not None:
            both += 1
            assert ours == pythons
        elif ours is not None:  # a dictionary has a key that Python cannot hash
            alone += 1
    assert both > MUTATIONS // 20
    assert alone < both // 20


class Calls:
    """Something whose pickle asks for a call."""

    def __init__(self, callee: Any, *args: object) -> None:
        self.callee, self.args = callee, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.callee, self.args


HOSTILE = {
    "os.system": lambda path: Calls(os.system, f"touch {path}"),
    "open": lambda path: Calls(open, str(path), "w"),
    "eval": lambda path: Calls(eval, f"open({str(path)!r}, 'w')"),
    "exec": lambda path: Calls(exec, f"open({str(path)!r}, 'w')"),
    "getattr": lambda path: Calls(getattr, os, "system"),
    "import": lambda path: Calls(__import__, "antigravity"),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_neither_machine_runs_what_a_pickle_asks_for(tmp_path: Path, make: Any, protocol: int) -> None:
    data = (
        pickle.dumps({"a": make(tmp_path / "ran")}, protocol=protocol)
        if make is not HOSTILE["getattr"]
        else (b"cbuiltins\ngetattr\n(cos\nsystem\nS'__call__'\ntR.")
    )
    assert by_our_machine(data) is None
    assert by_pythons_machine(data) is None
    assert not (tmp_path / "ran").exists()


# Instructions that set attributes, call, or reach behind: none may find anything but inert classes.
TRICKS = {
    "attributes of a class": b"cm\nA\n(N}S'__new__'\ncm\nB\nstb.",
    "attributes of a class, as a state": b"cm\nA\n}S'__setstate__'\ncm\nB\nsb.",
    "attributes of a list": b"]}S'append'\ncm\nB\nsb.",
    "a tuple of something else": b"ctorch\nSize\n(I3\ntR.",
    "a call of an instance": b"cm\nA\n(tR(tR.",
    "an extension code": b"\x82\x01.",
    "a buffer from outside": b"\x97.",
    "a call of text": b"S'os.system'\n(S'id'\ntR.",
    "a name in a name": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x08__call__\x86R.",
    "items of text": b"S'abc'\n(S'd'\ne.",
    "a class of numbers": b"I1\n(tR.",
    "attributes twice": b"cm\nA\n(tR}S'a'\nI1\nsb}S'a'\nI2\nsb.",
}


@pytest.mark.parametrize("data", TRICKS.values(), ids=TRICKS)
def test_tricks_with_classes_give_nothing(data: bytes) -> None:
    assert by_our_machine(data) is None
    assert by_pythons_machine(data) is None


def test_names_are_classes_that_only_store() -> None:
    data = pickle.dumps((Calls(OrderedDict), torch.Size([2, 3]), torch.float32))
    unpickler = InertUnpickler(io.BytesIO(data), Limits())
    ordered, size, dtype = unpickler.load()
    assert (type(ordered), size, dtype.path, dtype.kind) == (dict, (2, 3), "torch.float32", None)
    record = dtype(1, key=2)
    assert (record.kind, record.args, record.state) == ("torch.float32", (1,), None)
    with pytest.raises(Exception, match="changes a class"):
        dtype.path = "os.system"


@pytest.mark.parametrize("limit", ["classes", "name_length"])
def test_names_are_limited(limit: str) -> None:
    names = b"".join(b"cm\nA%d\n0" % i for i in range(20)) + b"N."
    limits = Limits(**{limit: 2})
    with pytest.raises(Exception, match="more than 2"):
        InertUnpickler(io.BytesIO(names), limits).load()


class TestTheProcess:
    """Both ways from a file to tables, and how the process ends."""

    def file(self, folder: Path, content: bytes) -> InputFile:
        (folder / "metadata").write_bytes(content)
        return InputFile.describe(folder / "metadata")

    def test_it_says_what_is_said_here(self, tmp_path: Path, pickles: list[bytes]) -> None:
        for data in pickles[:3]:
            file = self.file(tmp_path, data)
            assert contents(read_tables_apart(file)) == contents(read_tables_here(file))

    def test_it_can_be_asked_twice_of_one_open_file(self, tmp_path: Path, pickles: list[bytes]) -> None:
        file = self.file(tmp_path, pickles[0])
        assert contents(read_tables_apart(file)) == contents(read_tables_apart(file))

    @pytest.mark.parametrize(
        ("content", "error", "words"),
        [
            (b"\x80\x04N", DamagedFileError, "middle"),
            (b"\x80\x04\xff.", DamagedFileError, "broken"),
            (b"\x80\x04N.more", UnsafeFileError, "4 bytes after"),
            (b"cos\nsystem\n(S'id'\ntR.", UnsafeFileError, "system"),
            (b"N.", InputError, "something else"),
            (b"r\xff\xff\xff\xff.", DamagedFileError, "broken"),
            (b"Nr\xff\xff\xff\xff.", UnsafeFileError, "memory"),
            (b"(" * 3_000_000, InputError, "middle|memory"),
            (b"N" + b"\x85" * 2_000_000 + b".", InputError, "something else|memory"),
        ],
        ids=["cut", "broken", "more", "call", "nothing", "no memo", "memo", "marks", "depth"],
    )
    def test_what_is_wrong_is_told(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        content: bytes,
        error: type[Exception],
        words: str,
    ) -> None:
        monkeypatch.setattr("unshard.readers.dcp.metadata_file._LARGEST_HERE", 0)
        with pytest.raises(error, match=words):
            read_metadata_file(self.file(tmp_path, content))

    def test_a_process_that_takes_too_much_time_is_ended(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("unshard.readers.dcp.metadata_file._LARGEST_HERE", 0)
        monkeypatch.setattr("unshard.readers.dcp.table_process._FREE_SECONDS", 1)
        # Numbers whose hashes are equal: every one of them is compared with all before it.
        keys = b"".join(
            b"\x8a\x0b" + (i * ((1 << 61) - 1)).to_bytes(11, "little") + b"N" for i in range(1, 200_000)
        )
        with pytest.raises(UnsafeFileError, match="time"):
            read_metadata_file(self.file(tmp_path, b"\x80\x04}(" + keys + b"u."))

    def test_without_processes_our_machine_reads(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pickles: list[bytes]
    ) -> None:
        monkeypatch.setattr("unshard.readers.dcp.metadata_file._LARGEST_HERE", 0)
        monkeypatch.setattr("sys.executable", str(tmp_path / "nothing"))
        file = self.file(tmp_path, pickles[0])
        assert contents(read_metadata_file(file)) == contents(read_tables_here(file))
