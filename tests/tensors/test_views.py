"""Views of described tensors: whatever is done to the pieces, the values are numpy's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unshard.dtypes import DTYPES, FLOAT32
from unshard.storage.files import InputFile
from unshard.tensors import Box, DescribedTensor, FileSource, Piece, RangeSource, Source
from unshard.tensors.boxes import row_major_strides, split_range
from unshard.tensors.view_sources import ViewSource
from unshard.tensors.views import (
    concatenate,
    narrow,
    permute,
    reshape,
    split,
    stack,
    unstack,
)

Shape = tuple[int, ...]
Cut = Callable[[InputFile, Shape], DescribedTensor]


def stored(folder: Path, array: np.ndarray, name: str = "data") -> InputFile:
    (folder / name).write_bytes(array.tobytes())
    return InputFile.describe(folder / name)


def read(tensor: DescribedTensor) -> np.ndarray:
    """Return the values as the reading of the whole, in two unequal parts, and as the runs give them."""
    count = math.prod(tensor.shape)
    buffer = bytearray(count * tensor.dtype.itemsize)
    middle = count // 3
    for start, stop in ((0, middle), (middle, count)):
        size = tensor.dtype.itemsize
        tensor.read(start, stop, memoryview(buffer)[start * size : stop * size])
    runs = tensor.runs(0, count)
    if runs is not None:
        assert b"".join(run.file.read(run.offset, run.offset + run.length) for run in runs) == buffer
    return np.frombuffer(buffer, tensor.dtype.numpy).reshape(tensor.shape)


def in_one_piece(file: InputFile, shape: Shape) -> DescribedTensor:
    return DescribedTensor(
        shape, FLOAT32, (Piece(Box.whole(shape), FileSource.contiguous(file, 0, shape, FLOAT32)),)
    )


def as_one_vector(file: InputFile, shape: Shape) -> DescribedTensor:
    """Return the tensor whose source has another rank than its box."""
    source = FileSource.contiguous(file, 0, (math.prod(shape),), FLOAT32)
    return DescribedTensor(shape, FLOAT32, (Piece(Box.whole(shape), source),))


def by_rows(file: InputFile, shape: Shape) -> DescribedTensor:
    """Return the tensor in unequal pieces along the first dimension, each a part of the file."""
    return cut_along(file, shape, 0)


def by_columns(file: InputFile, shape: Shape) -> DescribedTensor:
    """Return the tensor in strided pieces along the last dimension."""
    return cut_along(file, shape, len(shape) - 1)


def cut_along(file: InputFile, shape: Shape, dim: int) -> DescribedTensor:
    strides, middle = row_major_strides(shape), (shape[dim] + 1) // 3
    pieces = []
    for first, last in ((0, middle), (middle, shape[dim])):
        start, stop = [0] * len(shape), list(shape)
        start[dim], stop[dim] = first, last
        box = Box(tuple(start), tuple(stop))
        pieces.append(Piece(box, FileSource(file, 4 * first * strides[dim], box.shape, strides, FLOAT32)))
    return DescribedTensor(shape, FLOAT32, tuple(pieces))


def as_flat_ranges(file: InputFile, shape: Shape) -> DescribedTensor:
    """Return the tensor as ranks of flat parameters hold it: ranges of a vector, split into boxes."""
    count = math.prod(shape)
    whole = FileSource.contiguous(file, 0, (count,), FLOAT32)
    pieces: list[Piece] = []
    for start, stop in ((0, count // 2), (count // 2, count)):
        for box in split_range(shape, start, stop):
            pieces.append(Piece(box, RangeSource(whole, start, start + box.volume)))
            start += box.volume
    return DescribedTensor(shape, FLOAT32, tuple(pieces))


CUTS: tuple[Cut, ...] = (in_one_piece, as_one_vector, by_rows, by_columns, as_flat_ranges)


@st.composite
def operations(
    draw: st.DrawFn, shape: Shape
) -> tuple[Callable[[DescribedTensor], DescribedTensor], Callable[[np.ndarray], np.ndarray]]:
    """Draw one thing to do, to a described tensor and to an array."""
    kind = draw(st.sampled_from(["narrow", "select", "permute", "reshape", "stack", "concatenate", "split"]))
    dim = draw(st.integers(0, len(shape) - 1)) if shape else 0
    if kind == "permute":
        order = draw(st.permutations(range(len(shape))))
        return lambda t: permute(t, order), lambda a: a.transpose(order)
    if kind == "stack":
        at = draw(st.integers(0, len(shape)))
        return lambda t: stack([t, t], at), lambda a: np.stack([a, a], at)
    if kind == "reshape" or not shape:
        other = draw(st.sampled_from(shapes_like(shape)))
        return lambda t: reshape(t, other), lambda a: a.reshape(other)
    if kind == "concatenate":
        return lambda t: concatenate([t, t], dim), lambda a: np.concatenate([a, a], dim)
    if kind == "select" and shape[dim]:
        index = draw(st.integers(0, shape[dim] - 1))
        return lambda t: unstack(t, dim)[index], lambda a: a.take(index, dim)
    if kind == "split":
        first = draw(st.integers(0, shape[dim]))
        sizes = [first, shape[dim] - first]
        return lambda t: split(t, dim, sizes)[1], lambda a: np.split(a, [first], dim)[1]
    bounds = [sorted((draw(st.integers(0, n)), draw(st.integers(0, n)))) for n in shape]
    box = Box(tuple(a for a, _ in bounds), tuple(b for _, b in bounds))
    return lambda t: narrow(t, box), lambda a: a[tuple(slice(x, y) for x, y in bounds)]


def shapes_like(shape: Sequence[int]) -> list[Shape]:
    """Return other shapes of as many elements."""
    count, found = math.prod(shape), [tuple(shape), (*shape, 1), (1, *shape)]
    found += [(count,), *((n, count // n) for n in range(2, 7) if count % n == 0)]
    found += [(n, m, count // n // m) for n in (2, 3) for m in (2, 3) if count % (n * m) == 0]
    return found + ([()] if count == 1 else [])


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_views_of_views_read_as_numpy_reads_them(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=4)))
    array = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    tensor = data.draw(st.sampled_from(CUTS))(stored(tmp_path_factory.mktemp("view"), array), shape)
    for _ in range(data.draw(st.integers(1, 4))):
        view, numpy_view = data.draw(operations(tuple(tensor.shape)))
        tensor, array = view(tensor), numpy_view(array)
        assert tensor.shape == array.shape
        assert np.array_equal(read(tensor), array)
        assert sum(piece.box.volume for piece in tensor.pieces) == array.size
        assert all(piece.source.count == piece.box.volume for piece in tensor.pieces)


@pytest.mark.parametrize("cut", [in_one_piece, by_rows, by_columns])
def test_views_of_pieces_of_files_are_pieces_of_files(tmp_path: Path, cut: Cut) -> None:
    array = np.arange(4 * 6 * 5, dtype=np.float32).reshape(4, 6, 5)
    tensor = cut(stored(tmp_path, array), (4, 6, 5))
    for view in (unstack(tensor, 0)[2], permute(tensor, (0, 2, 1)), split(tensor, 1, (3, 3))[1]):
        assert {type(piece.source) for piece in view.pieces} == {FileSource}


def test_the_half_of_one_expert_is_one_run_for_the_kernel(tmp_path: Path) -> None:
    array = np.arange(4 * 6 * 5, dtype=np.float32).reshape(4, 6, 5)
    tensor = in_one_piece(stored(tmp_path, array), (4, 6, 5))
    (run,) = split(unstack(tensor, 0)[2], 0, (3, 3))[1].runs(0, 15) or []
    assert (run.offset, run.length) == (4 * (2 * 30 + 15), 4 * 15)


class CountingSource:
    """A source that is no file, and says how much was read of it at once."""

    def __init__(self, array: np.ndarray) -> None:
        self._bytes = array.tobytes()
        self.count = array.size
        self.place = None
        self.origin = "memory"
        self.largest = 0

    def read(self, start: int, stop: int, into: memoryview) -> None:
        self.largest = max(self.largest, len(into))
        into[:] = self._bytes[4 * start : 4 * stop]

    def runs(self, start: int, stop: int) -> None:
        return None


def test_a_transposed_view_of_what_is_no_file_is_read_in_bounded_memory() -> None:
    array = np.random.default_rng(0).standard_normal((700, 900)).astype(np.float32)
    source: Source = CountingSource(array)
    tensor = permute(DescribedTensor((700, 900), FLOAT32, (Piece(Box.whole((700, 900)), source),)), (1, 0))
    assert np.array_equal(read(tensor), array.T)
    assert isinstance(tensor.pieces[0].source, ViewSource)
    assert isinstance(source, CountingSource)
    assert source.largest <= 1 << 20


def test_numbers_in_the_other_byte_order_stay_so_in_a_view(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    file = stored(tmp_path, array.astype(">f4"))
    source = FileSource(file, 0, (3, 4), (4, 1), FLOAT32, "big")
    tensor = DescribedTensor((3, 4), FLOAT32, (Piece(Box.whole((3, 4)), source),))
    assert np.array_equal(read(permute(tensor, (1, 0))), array.T)


def test_pieces_are_made_when_they_are_looked_at() -> None:
    class Untouchable(Sequence[Piece]):
        def __len__(self) -> int:
            raise AssertionError("looked at")

        def __getitem__(self, index: object) -> Piece:  # type: ignore[override]
            raise AssertionError("looked at")

    tensor = DescribedTensor((4, 6), FLOAT32, Untouchable())
    parts = [
        narrow(tensor, Box((0, 0), (2, 2))),
        *unstack(tensor, 0),
        permute(tensor, (1, 0)),
        reshape(tensor, (24,)),
    ]
    assert stack(parts[1:3], 0).shape == (2, 6)
    with pytest.raises(AssertionError, match="looked at"):
        parts[0].numpy()


def test_many_parts_of_many_pieces_are_taken_apart_in_one_go(tmp_path: Path) -> None:
    count = 3000  # pairwise, this would be nine million intersections
    file = stored(tmp_path, np.arange(2 * count, dtype=np.float32))
    looked = 0

    class Counted(Sequence[Piece]):
        def __len__(self) -> int:
            return count

        def __getitem__(self, index: int) -> Piece:  # type: ignore[override]
            nonlocal looked
            if index >= count:
                raise IndexError(index)
            looked += 1
            return Piece(
                Box((index, 0), (index + 1, 2)), FileSource.contiguous(file, 8 * index, (1, 2), FLOAT32)
            )

    parts = unstack(DescribedTensor((count, 2), FLOAT32, Counted()), 0)
    assert [part.numpy().tolist() for part in parts[-2:]] == [[5996, 5997], [5998, 5999]]
    assert looked == count


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda a, b: stack([a, b], 0), "2 kinds cannot be stacked"),
        (lambda a, b: concatenate([a, b], 1), "2 kinds cannot be concatenated"),
        (lambda a, b: stack([], 0), "0 kinds cannot be stacked"),
        (lambda a, b: concatenate([a, DescribedTensor((2, 3), DTYPES["int32"], ())], 0), "2 kinds"),
        (lambda a, b: split(a, 0, (1, 2)), r"parts of \[1, 2\] do not make up 2"),
        (lambda a, b: permute(a, (0, 0)), "is no order of 2 dimensions"),
        (lambda a, b: reshape(a, (4,)), "do not have equally many elements"),
    ],
)
def test_what_makes_no_tensor_is_refused(
    wrong: Callable[[DescribedTensor, DescribedTensor], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        wrong(DescribedTensor((2, 3), FLOAT32, ()), DescribedTensor((4, 3), FLOAT32, ()))
