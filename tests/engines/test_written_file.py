"""One output file: its place on the disk is taken before it is filled."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from unshard.engines.written_file import WrittenFile
from unshard.storage.files import InputFile
from unshard.tensors import Run

MIB = 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="only there a file system is known to reserve")
def test_the_space_of_a_file_is_taken_before_it_is_written(tmp_path: Path) -> None:
    written = WrittenFile(tmp_path / "out", 8 * MIB, subject=tmp_path, durable=False)
    status = (tmp_path / "out").stat()
    written.close()
    assert status.st_size == 8 * MIB
    if status.st_blocks == 0:
        pytest.skip("this file system does not reserve space")
    assert status.st_blocks * 512 >= 8 * MIB


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="space is not reserved here")
def test_where_reserving_means_writing_to_every_block_only_one_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def as_the_c_library_does(number: int, offset: int, length: int) -> None:
        asked.append(length)
        for block in range(offset, offset + length, 4096):
            os.pwrite(number, b"\0", block)

    monkeypatch.setattr(os, "posix_fallocate", as_the_c_library_does)
    WrittenFile(tmp_path / "out", 8 * MIB, subject=tmp_path, durable=False).close()
    assert asked == [1]


@pytest.mark.parametrize("size", [0, 1, 4095, 4097, 3 * MIB + 5])
@pytest.mark.parametrize("shift", [0, 1, 1000])
def test_runs_of_any_size_at_any_place_are_copied(tmp_path: Path, size: int, shift: int) -> None:
    content = os.urandom(size + shift + 7)
    (tmp_path / "source").write_bytes(content)
    run = Run(InputFile.describe(tmp_path / "source"), shift, size)
    written = WrittenFile(tmp_path / "out", size + 2, subject=tmp_path, durable=True)
    done = list(written.copy(run, 1, memoryview(bytearray(MIB))))
    written.close()
    assert sum(done) == size
    assert (tmp_path / "out").read_bytes() == b"\0" + content[shift : shift + size] + b"\0"
