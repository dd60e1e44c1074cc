"""Archives that are told by their likeness: the same is found as by reading them, and damage is, too."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unshard.dtypes import DTYPES
from unshard.errors import InputError
from unshard.readers.dcp.blobs import Blob, look_into
from unshard.readers.dcp.likeness import Likeness
from unshard.storage.files import InputFile

COUNT = 5


def archive(value: int) -> bytes:
    buffer = io.BytesIO()
    torch.save(torch.full((3, 7), value, dtype=torch.int32), buffer)
    return buffer.getvalue()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Archives one after the other, at odd offsets, as DCP writes them."""
    (tmp_path / "__0_0.distcp").write_bytes(b"".join(b"-" + archive(value) for value in range(COUNT)))
    return tmp_path / "__0_0.distcp"


def blobs(path: Path) -> list[Blob]:
    described, length = InputFile.describe(path), len(archive(0))
    first = Blob("w", "model.w", described, 1, 1 + length, (0, 0), (3, 7), DTYPES["int32"])
    starts = [1 + number * (length + 1) for number in range(COUNT)]
    return [replace(first, start=start, stop=start + length) for start in starts]


def test_what_is_found_by_likeness_is_what_reading_finds(file: Path) -> None:
    likeness = Likeness()
    first, *others = blobs(file)
    assert likeness.find(first) is None
    likeness.remember(first, look_into(first))
    assert [likeness.find(blob) for blob in (first, *others)] == [look_into(b) for b in (first, *others)]


def test_a_chunk_of_another_shape_is_not_like_it(file: Path) -> None:
    likeness = Likeness()
    first, second, *_ = blobs(file)
    likeness.remember(first, look_into(first))
    assert likeness.find(replace(second, shape=(7, 3))) is None


def test_any_byte_around_the_numbers_is_compared(file: Path) -> None:
    _, second, *_ = blobs(file)
    checksum = look_into(second).checksum
    assert checksum is not None
    whole = file.read_bytes()
    told, silent = 0, 0
    for at in (*range(second.start, checksum.start), *range(checksum.stop, second.stop)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        here = blobs(file)
        likeness = Likeness()
        likeness.remember(here[0], look_into(here[0]))
        found = likeness.find(here[1])
        try:
            expected = look_into(here[1])
        except InputError:
            assert found is None, at
            told += 1
            continue
        assert found is None or found == expected, at
        silent += found is not None
    assert told > 400
    assert silent <= 40  # the id of the file, which nothing depends on


def test_other_numbers_have_another_checksum(file: Path) -> None:
    first, second, *_ = blobs(file)
    likeness = Likeness()
    likeness.remember(first, look_into(first))
    one, other = likeness.find(first), likeness.find(second)
    assert one is not None
    assert other is not None
    assert one.checksum is not None
    assert other.checksum is not None
    assert one.checksum.crc32 != other.checksum.crc32
