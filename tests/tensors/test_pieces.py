"""Tensors in many pieces: whatever the arrangement, any range of them is what numpy says."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raw_tensors import EVERY_DTYPE, random_tensor, raw, store_in_pieces
from unshard.dtypes import DTYPES
from unshard.storage.files import InputFile
from unshard.tensors import Box, DescribedTensor, FileSource, Piece
from unshard.tensors import pieces as pieces_module

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")

INT32 = DTYPES["int32"]


def read(tensor: DescribedTensor, start: int, stop: int) -> bytes:
    into = bytearray((stop - start) * tensor.dtype.itemsize)
    tensor.read(start, stop, memoryview(into))
    return bytes(into)


def copied(tensor: DescribedTensor, start: int, stop: int) -> bytes | None:
    runs = tensor.runs(start, stop)
    return None if runs is None else b"".join(r.file.read(r.offset, r.offset + r.length) for r in runs)


def scattered(
    folder: Path, values: np.ndarray, boxes: Sequence[Box], strided: Sequence[bool]
) -> DescribedTensor:
    """Store boxes of an int32 array in one file; a strided one backwards in its dimensions."""
    pieces, content = [], b"?"
    for box, backwards in zip(boxes, strided, strict=True):
        part = values[tuple(map(slice, box.start, box.stop))]
        stored = np.ascontiguousarray(part.T if backwards else part)
        strides = [s // 4 for s in (stored.T if backwards else stored).strides]
        pieces.append((box, len(content), tuple(strides)))
        content += stored.tobytes() + b"?"  # so that hardly anything is aligned
    (folder / "raw").write_bytes(content)
    file = InputFile.describe(folder / "raw")
    return DescribedTensor(
        values.shape,
        INT32,
        tuple(Piece(b, FileSource(file, o, b.shape, s, INT32)) for b, o, s in pieces),
    )


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_grid_of_pieces_in_any_order_is_read_as_one_tensor(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    values = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    cuts = [sorted([0, n, *data.draw(st.lists(st.integers(0, n), max_size=2))]) for n in shape]
    cells = itertools.product(*(list(itertools.pairwise(c)) for c in cuts))
    boxes = [Box(tuple(a for a, _ in cell), tuple(b for _, b in cell)) for cell in cells]  # some are empty
    boxes = data.draw(st.permutations(boxes))
    strided = data.draw(st.lists(st.booleans(), min_size=len(boxes), max_size=len(boxes)))
    tensor = scattered(tmp_path_factory.mktemp("grid"), values, boxes, strided)
    start = data.draw(st.integers(0, values.size))
    stop = data.draw(st.integers(start, values.size))
    wanted = values.ravel()[start:stop].tobytes()
    assert read(tensor, start, stop) == wanted
    assert copied(tensor, start, stop) in (None, wanted)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_pieces_that_are_no_grid_are_read_as_one_tensor(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    rows = data.draw(st.integers(1, 8))
    values = np.arange(rows * 9, dtype=np.int32).reshape(rows, 9)
    edges = [sorted({0, 9, *data.draw(st.lists(st.integers(1, 8), max_size=3))}) for _ in range(rows)]
    boxes = [Box((i, a), (i + 1, b)) for i, cut in enumerate(edges) for a, b in itertools.pairwise(cut)]
    boxes = data.draw(st.permutations(boxes))
    tensor = scattered(tmp_path_factory.mktemp("ragged"), values, boxes, [False] * len(boxes))
    start = data.draw(st.integers(0, values.size))
    stop = data.draw(st.integers(start, values.size))
    assert read(tensor, start, stop) == values.ravel()[start:stop].tobytes()


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize("parts", [(3,), (1, 3), (2, 2), (1, 1, 2), (9, 2)], ids=str)
def test_every_dtype_is_read_from_rows_columns_and_both(
    tmp_path: Path, dtype: str, parts: tuple[int, ...]
) -> None:
    shapes = [(7, 5), (4, 6, 3), (8,), (), (0, 3), (5, 1)]
    truth = {f"{i}": random_tensor(shape, dtype, seed=i) for i, shape in enumerate(shapes)}
    for name, tensor in store_in_pieces(tmp_path / "ranks", truth, parts).items():
        count = truth[name].numel()
        assert tensor.dtype is DTYPES[dtype]
        assert read(tensor, 0, count) == raw(truth[name])
        assert read(tensor, count // 3, count) == raw(truth[name].reshape(-1)[count // 3 :])


@pytest.mark.parametrize("shape", [(40, 3000), (3, 70, 500), (2, 60_000), (2, 2, 30, 1000)], ids=str)
def test_columns_are_scattered_through_a_buffer_smaller_than_a_row(
    tmp_path: Path, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = random_tensor(shape, "float32", seed=0)
    parts = [(1, 3), (1, 1, 3), (1, 2, 2), (2, 1, 1, 3)]
    for number, cut in enumerate(p for p in parts if len(p) <= len(shape)):
        (tensor,) = store_in_pieces(tmp_path / f"{number}", {"a": truth}, cut).values()
        for size in (64, 1 << 12, 1 << 19):
            monkeypatch.setattr(
                pieces_module, "_scratch", type("Buffer", (), {"view": memoryview(bytearray(size))})
            )
            assert read(tensor, 0, truth.numel()) == raw(truth)
            assert read(tensor, 1001, truth.numel() - 7) == raw(truth.reshape(-1)[1001:-7])


def test_chunks_of_rows_are_runs_in_the_order_of_the_tensor(tmp_path: Path) -> None:
    truth = random_tensor((1000, 300), "float32", seed=0)
    (tensor,) = store_in_pieces(tmp_path, {"a": truth}, (4,)).values()
    tensor = DescribedTensor(tensor.shape, tensor.dtype, tuple(reversed(tensor.pieces)))
    runs = tensor.runs(100, 250_000)
    assert runs is not None
    assert [run.length for run in runs] == [4 * 74_900, 4 * 75_000, 4 * 75_000, 4 * 25_000]
    assert copied(tensor, 100, 250_000) == raw(truth.reshape(-1)[100:250_000])


def test_a_short_end_of_a_chunk_among_long_ones_does_not_make_them_be_read(tmp_path: Path) -> None:
    truth = random_tensor((1000, 300), "float32", seed=0)
    (tensor,) = store_in_pieces(tmp_path, {"a": truth}, (2,)).values()
    assert copied(tensor, 149_999, 300_000) == raw(truth.reshape(-1)[149_999:])


@pytest.mark.parametrize(
    ("shape", "parts"), [((512, 64), (1, 8)), ((512, 8), (256,))], ids=["columns", "rows"]
)
def test_short_pieces_are_read_not_copied_one_by_one(
    tmp_path: Path, shape: tuple[int, ...], parts: tuple[int, ...]
) -> None:
    truth = random_tensor(shape, "float32", seed=0)
    (tensor,) = store_in_pieces(tmp_path, {"a": truth}, parts).values()
    assert tensor.runs(0, truth.numel()) is None


def test_wide_columns_are_runs_for_the_kernel(tmp_path: Path) -> None:
    truth = random_tensor((3, 50_000), "float32", seed=0)
    (tensor,) = store_in_pieces(tmp_path, {"a": truth}, (1, 2)).values()
    assert copied(tensor, 0, 150_000) == raw(truth)
    runs = tensor.runs(0, 150_000)
    assert runs is not None
    assert len(runs) == 6


class Counted(Sequence[Piece]):
    """Pieces that are made anew whenever they are looked at, and counted."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = pieces
        self.made = 0

    def __len__(self) -> int:
        return len(self._pieces)

    @overload
    def __getitem__(self, index: int) -> Piece: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Piece]: ...
    def __getitem__(self, index: int | slice) -> Piece | Sequence[Piece]:
        self.made += 1
        return self._pieces[index]


def test_a_range_looks_only_at_the_pieces_it_meets(tmp_path: Path) -> None:
    truth = random_tensor((4000, 3), "int32", seed=0)
    (stored,) = store_in_pieces(tmp_path, {"a": truth}, (1000,)).values()
    counted = Counted(stored.pieces)
    tensor = DescribedTensor(stored.shape, stored.dtype, counted)
    assert counted.made == 0
    read(tensor, 0, 3)
    counted.made = 0
    assert read(tensor, 7 * 12, 9 * 12) == raw(truth[28:36])
    assert counted.made == 2


def test_places_are_told_one_by_one(tmp_path: Path) -> None:
    truth = random_tensor((4000, 3), "int32", seed=0)
    (stored,) = store_in_pieces(tmp_path, {"a": truth}, (1000,)).values()
    counted = Counted(stored.pieces)
    places: Iterator[object] = DescribedTensor(stored.shape, stored.dtype, counted).places
    assert next(places) == stored.pieces[0].source.place
    assert counted.made == 1


def test_an_index_reads_across_pieces(tmp_path: Path) -> None:
    truth = torch.arange(60, dtype=torch.int32).reshape(6, 10)
    (tensor,) = store_in_pieces(tmp_path, {"a": truth}, (2, 2)).values()
    assert tensor[2:5, 3:8].tolist() == truth[2:5, 3:8].tolist()
    assert tensor[..., -1].tolist() == truth[..., -1].tolist()
