"""Tensors of torch: in place where the file holds them ready, read where it does not."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tiny_models import same_bits
from unshard.dtypes import DTYPES, FLOAT32, DType
from unshard.errors import DamagedFileError
from unshard.inference.torch_tensors import UnreadTensor, torch_tensors
from unshard.storage.files import InputFile
from unshard.tensors import Box, CastTensor, DescribedTensor, FileSource, Piece, Tensor, whole_tensor


def stored(folder: Path, content: bytes) -> InputFile:
    (folder / "data").write_bytes(content)
    return InputFile.describe(folder / "data")


def contiguous(
    file: InputFile, offset: int, shape: tuple[int, ...], dtype: DType = FLOAT32
) -> DescribedTensor:
    return whole_tensor(FileSource.contiguous(file, offset, shape, dtype))


def only(tensor: Tensor) -> torch.Tensor | UnreadTensor:
    return torch_tensors({"only": tensor})["only"]


FLOATS = np.random.default_rng(0).standard_normal(600).astype(np.float32)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_bytes_that_lie_ready_are_used_in_place_in_every_dtype(dtype: DType, tmp_path: Path) -> None:
    content = np.random.default_rng(1).integers(0, 2, 64 * dtype.itemsize, dtype=np.uint8).tobytes()
    tensor = only(contiguous(stored(tmp_path, content), 16, (3, 4), dtype))
    assert isinstance(tensor, torch.Tensor)
    expected = torch.frombuffer(bytearray(content), dtype=tensor.dtype, count=12, offset=16).reshape(3, 4)
    assert same_bits(tensor, expected)


@pytest.mark.parametrize("offset", [1, 2, 6])
def test_a_tensor_at_an_odd_offset_is_read(offset: int, tmp_path: Path) -> None:
    file = stored(tmp_path, b"x" * offset + FLOATS.tobytes())
    tensor = only(contiguous(file, offset, (20, 30)))
    assert isinstance(tensor, UnreadTensor)
    assert same_bits(tensor[...], torch.from_numpy(FLOATS.reshape(20, 30)))
    assert tensor[...].data_ptr() % 8 == 0


def test_a_cast_a_transpose_pieces_and_other_byte_orders_are_read(tmp_path: Path) -> None:
    file = stored(tmp_path, FLOATS.tobytes())
    whole = contiguous(file, 0, (20, 30))
    halves = [contiguous(file, start * 120, (10, 30)).pieces[0].source for start in (10, 0)]
    boxes = [Box((0, 0), (10, 30)), Box((10, 0), (20, 30))]
    swapped = DescribedTensor((20, 30), FLOAT32, tuple(map(Piece, boxes, halves)))
    expected = torch.from_numpy(FLOATS.reshape(20, 30))
    cases: list[tuple[Tensor, torch.Tensor]] = [
        (CastTensor(whole, DTYPES["bfloat16"]), expected.to(torch.bfloat16)),
        (whole_tensor(FileSource(file, 0, (30, 20), (1, 30), FLOAT32)), expected.T),
        (swapped, torch.cat([expected[10:], expected[:10]])),
        (
            whole_tensor(FileSource(file, 0, (20, 30), (30, 1), FLOAT32, "big")),
            torch.from_numpy(FLOATS.byteswap().reshape(20, 30)),
        ),
    ]
    for tensor, values in cases:
        found = only(tensor)
        assert isinstance(found, UnreadTensor)
        assert same_bits(found[...], values)
        assert found.dtype == values.dtype


def test_scalars_are_in_place_and_empty_tensors_are_made(tmp_path: Path) -> None:
    file = stored(tmp_path, FLOATS.tobytes())
    scalar, empty = only(contiguous(file, 8, ())), only(contiguous(file, 8, (0, 5)))
    assert isinstance(scalar, torch.Tensor)
    assert same_bits(scalar, torch.tensor(FLOATS[2]))
    assert isinstance(empty, UnreadTensor)
    assert empty[...].shape == (0, 5)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's mappings from /proc")
def test_all_tensors_of_a_file_share_one_mapping(tmp_path: Path) -> None:
    file = stored(tmp_path, FLOATS.tobytes())
    tensors = torch_tensors({str(i): contiguous(file, 4 * i, (5, 5)) for i in range(40)})
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(file.path) in line]
    assert len(tensors) == 40
    assert len(mapped) == 1
    assert "rw-p" in mapped[0]


def test_every_tensor_has_a_storage_of_its_own(tmp_path: Path) -> None:
    file = stored(tmp_path, FLOATS.tobytes())
    first, second = (only(contiguous(file, offset, (5, 5))) for offset in (0, 100))
    assert isinstance(first, torch.Tensor)
    assert isinstance(second, torch.Tensor)
    assert first.untyped_storage().nbytes() == 100
    assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()


def test_a_tensor_that_ends_beyond_its_file_is_named_when_it_is_read(tmp_path: Path) -> None:
    tensor = only(contiguous(stored(tmp_path, FLOATS.tobytes()), 2000, (200,)))
    assert isinstance(tensor, UnreadTensor)
    with pytest.raises(DamagedFileError, match=r"ends in the middle of bytes 2000\.\.2800"):
        tensor[...]


def test_a_file_that_has_changed_is_refused_before_it_is_mapped(tmp_path: Path) -> None:
    file = stored(tmp_path, FLOATS.tobytes())
    file.open()
    (tmp_path / "data").write_bytes(FLOATS.tobytes() * 2)
    with pytest.raises(DamagedFileError, match="changed while it was being read"):
        only(contiguous(file, 0, (20,)))


def test_where_files_cannot_be_mapped_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> mmap.mmap:
        raise OSError(19, "No such device")

    monkeypatch.setattr(mmap, "mmap", refuse)
    tensor = only(contiguous(stored(tmp_path, FLOATS.tobytes()), 0, (20, 30)))
    assert isinstance(tensor, UnreadTensor)
    assert same_bits(tensor[...], torch.from_numpy(FLOATS.reshape(20, 30)))
