"""Late sources: found on first use, remembered, the same from every thread."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from unshard.dtypes import FLOAT32
from unshard.errors import DamagedFileError
from unshard.storage.files import InputFile
from unshard.tensors import FileSource, LateSource, Place, RangeSource, Run


@dataclass
class Blobs:
    """Blobs of a 4-byte header and four numbers each; the header must be the blob's own number."""

    file: InputFile
    looked: list[int] = field(default_factory=list)
    barrier: threading.Barrier | None = None

    def count(self, index: int) -> int:
        return 4

    def origin(self, index: int) -> str:
        return f"{self.file.path.name}, blob {index}"

    def locate(self, index: int) -> FileSource:
        self.looked.append(index)
        if self.barrier is not None:
            self.barrier.wait()
        if int.from_bytes(self.file.read(20 * index, 20 * index + 4), "little") != index:
            raise DamagedFileError(self.file.path, f"does not hold blob {index}")
        return FileSource.contiguous(self.file, 20 * index + 4, (4,), FLOAT32)


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    headers = np.arange(3, dtype=np.uint32).reshape(3, 1)
    (tmp_path / "blobs").write_bytes(np.hstack([headers.view(np.float32), values]).tobytes())
    return Blobs(InputFile.describe(tmp_path / "blobs"))


def read(source: LateSource | RangeSource, start: int, stop: int) -> list[float]:
    into = bytearray(4 * (stop - start))
    source.read(start, stop, memoryview(into))
    return [float(value) for value in np.frombuffer(into, np.float32)]


def test_nothing_is_looked_for_until_bytes_are_wanted(blobs: Blobs) -> None:
    source = LateSource(blobs, 1)
    assert (source.count, source.origin) == (4, "blobs, blob 1")
    assert RangeSource(source, 1, 3).count == 2
    assert blobs.looked == []


def test_what_is_found_is_remembered_and_exact(blobs: Blobs) -> None:
    source = LateSource(blobs, 1)
    assert read(source, 1, 3) == [5, 6]
    assert read(RangeSource(source, 2, 4), 0, 2) == [6, 7]
    assert source.place == Place(blobs.file, 24)
    assert source.runs(1, 4) == [Run(blobs.file, 28, 12)]
    assert source.origin == "blobs at byte 24"
    assert blobs.looked == [1]


def test_the_place_is_that_of_the_elements_even_before_they_are_read(blobs: Blobs) -> None:
    assert LateSource(blobs, 2).place == Place(blobs.file, 44)


def test_sources_are_equal_where_they_are_the_same_whether_found_or_not(blobs: Blobs) -> None:
    found = LateSource(blobs, 1)
    found.located()
    assert found == LateSource(blobs, 1)
    assert found != LateSource(blobs, 2)


def test_threads_that_look_at_once_find_the_same(blobs: Blobs) -> None:
    blobs.barrier = threading.Barrier(4, timeout=20)  # all four are inside `locate` before one returns
    source = LateSource(blobs, 2)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: read(source, i, i + 1), range(4))) == [[8], [9], [10], [11]]
    blobs.barrier = None
    assert read(source, 0, 1) == [8]
    assert blobs.looked == [2] * 4


def test_what_cannot_be_found_is_looked_for_again(tmp_path: Path, blobs: Blobs) -> None:
    source = LateSource(Blobs(blobs.file), 1)
    (tmp_path / "bad").write_bytes(bytes(60))
    damaged = LateSource(Blobs(InputFile.describe(tmp_path / "bad")), 1)
    for _ in range(2):
        with pytest.raises(DamagedFileError, match="does not hold blob 1"):
            read(damaged, 0, 1)
    assert read(source, 0, 1) == [4]
