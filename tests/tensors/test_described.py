"""Described tensors: whatever the pieces, the values are those of the file."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unshard.dtypes import DTYPES, FLOAT32
from unshard.errors import DamagedFileError
from unshard.storage.files import InputFile
from unshard.tensors import Box, DescribedTensor, FileSource, Piece, whole_tensor


def stored(folder: Path, array: np.ndarray, name: str = "data") -> InputFile:
    (folder / name).write_bytes(array.tobytes())
    return InputFile.describe(folder / name)


def read(tensor: DescribedTensor, start: int, stop: int) -> bytes:
    buffer = bytearray((stop - start) * tensor.dtype.itemsize)
    tensor.read(start, stop, memoryview(buffer))
    return bytes(buffer)


def copied(tensor: DescribedTensor, start: int, stop: int) -> bytes | None:
    runs = tensor.runs(start, stop)
    return None if runs is None else b"".join(r.file.read(r.offset, r.offset + r.length) for r in runs)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_view_of_a_storage_is_read_as_numpy_reads_it(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    strides = tuple(data.draw(st.integers(0, 12)) for _ in shape)
    offset = data.draw(st.integers(0, 5))
    needed = offset + 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    storage = np.arange(needed, dtype=np.float32)
    file = stored(tmp_path_factory.mktemp("view"), storage)
    view = np.lib.stride_tricks.as_strided(storage[offset:], shape, [4 * s for s in strides])
    tensor = whole_tensor(FileSource(file, 4 * offset, shape, strides, FLOAT32))
    start = data.draw(st.integers(0, view.size))
    stop = data.draw(st.integers(start, view.size))
    assert read(tensor, start, stop) == view.ravel()[start:stop].tobytes()
    assert copied(tensor, start, stop) in (None, view.ravel()[start:stop].tobytes())


def test_a_large_transposed_tensor_is_read_in_stretches(tmp_path: Path) -> None:
    storage = np.random.default_rng(0).standard_normal((700, 900)).astype(np.float32)
    tensor = whole_tensor(FileSource(stored(tmp_path, storage), 0, (900, 700), (1, 900), FLOAT32))
    assert np.array_equal(tensor.numpy(), storage.T)
    assert tensor.runs(0, 900 * 700) is None


def test_long_rows_of_a_view_are_runs_for_the_kernel(tmp_path: Path) -> None:
    storage = np.random.default_rng(0).standard_normal((4, 40_000)).astype(np.float32)
    tensor = whole_tensor(FileSource(stored(tmp_path, storage), 0, (4, 20_000), (40_000, 1), FLOAT32))
    runs = tensor.runs(10_000, 70_000)
    assert runs is not None
    assert [run.length for run in runs] == [40_000, 80_000, 80_000, 40_000]
    assert copied(tensor, 10_000, 70_000) == storage[:, :20_000].ravel()[10_000:70_000].tobytes()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_tensor_in_a_grid_of_pieces_is_read_as_one(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    shape = (data.draw(st.integers(1, 7)), data.draw(st.integers(1, 7)), data.draw(st.integers(1, 3)))
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    rows = sorted({0, shape[0], data.draw(st.integers(0, shape[0]))})
    columns = sorted({0, shape[1], data.draw(st.integers(0, shape[1]))})
    folder = tmp_path_factory.mktemp("grid")
    pieces = []
    for r0, r1 in itertools.pairwise(rows):
        for c0, c1 in itertools.pairwise(columns):
            part = np.ascontiguousarray(values[r0:r1, c0:c1])
            source = FileSource.contiguous(stored(folder, part, f"{r0}-{c0}"), 0, part.shape, FLOAT32)
            pieces.append(Piece(Box((r0, c0, 0), (r1, c1, shape[2])), source))
    tensor = DescribedTensor(shape, FLOAT32, tuple(data.draw(st.permutations(pieces))))
    start = data.draw(st.integers(0, values.size))
    stop = data.draw(st.integers(start, values.size))
    assert read(tensor, start, stop) == values.ravel()[start:stop].tobytes()
    assert copied(tensor, start, stop) in (None, values.ravel()[start:stop].tobytes())


@pytest.mark.parametrize(
    "index",
    [..., 0, -1, slice(1, 4), (slice(None), 2), (..., slice(0, 5, 2)), (3, slice(1, 2), -1), slice(4, 2)],
    ids=str,
)
def test_an_index_gives_what_numpy_gives(tmp_path: Path, index: Any) -> None:
    values = np.arange(5 * 4 * 6, dtype=np.float32).reshape(5, 4, 6)
    tensor = whole_tensor(FileSource.contiguous(stored(tmp_path, values), 0, values.shape, FLOAT32))
    assert np.array_equal(tensor[index], values[index])
    assert tensor[index].shape == values[index].shape


@pytest.mark.parametrize("index", [5, (0, 0, 0, 0), (..., ...), (0, -5)], ids=str)
def test_an_index_outside_the_shape_is_an_index_error(tmp_path: Path, index: Any) -> None:
    values = np.zeros((5, 4, 6), np.float32)
    tensor = whole_tensor(FileSource.contiguous(stored(tmp_path, values), 0, values.shape, FLOAT32))
    with pytest.raises(IndexError):
        tensor[index]


@pytest.mark.parametrize("name", ["float32", "int64", "int16", "complex64", "bfloat16", "bool", "complex128"])
def test_big_endian_numbers_are_turned_around(tmp_path: Path, name: str) -> None:
    dtype = DTYPES[name]
    values = np.arange(12).astype(dtype.numpy)
    part = dtype.itemsize // 2 if dtype.kind == "complex" else dtype.itemsize
    file = stored(tmp_path, values.view(f"u{part}").byteswap())
    tensor = whole_tensor(FileSource(file, 0, (12,), (1,), dtype, "big"))
    assert tensor.numpy().tobytes() == values.tobytes()


def test_a_file_that_is_too_short_is_named(tmp_path: Path) -> None:
    file = stored(tmp_path, np.zeros(10, np.float32))
    tensor = whole_tensor(FileSource.contiguous(file, 0, (11,), FLOAT32))
    with pytest.raises(
        DamagedFileError, match=r"data` ends in the middle .* saw 40 bytes, expected at least 44"
    ):
        tensor.numpy()


def test_a_file_that_changes_is_refused(tmp_path: Path) -> None:
    file = stored(tmp_path, np.zeros(10, np.float32))
    stored(tmp_path, np.zeros(20, np.float32))
    with pytest.raises(DamagedFileError, match="changed while it was being read"):
        file.read(0, 4)
