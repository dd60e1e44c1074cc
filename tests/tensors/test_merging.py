"""A merged weight is computed by ranges, in small tiles, to the last bit whatever is asked for."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from unshard.dtypes import DTYPES, FLOAT32
from unshard.storage.files import InputFile
from unshard.tensors import DescribedTensor, FileSource, merging, whole_tensor
from unshard.tensors.computed import computed_tensor
from unshard.tensors.merging import MergedSource

Writer = Callable[..., DescribedTensor]


@pytest.fixture
def written(tmp_path: Path) -> Writer:
    """Write an array to a file of its own, and describe it."""

    def write(array: np.ndarray, dtype: str = "float32") -> DescribedTensor:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.raw"
        path.write_bytes(array.astype(DTYPES[dtype].numpy).tobytes())
        return whole_tensor(FileSource.contiguous(InputFile.describe(path), 0, array.shape, DTYPES[dtype]))

    return write


@pytest.fixture
def numbers() -> np.random.Generator:
    return np.random.default_rng(5)


def read(source: MergedSource, cuts: list[int]) -> np.ndarray:
    """Return all elements, read in the ranges between cuts."""
    raw = bytearray(source.count * 4)
    for start, stop in pairwise([0, *cuts, source.count]):
        source.read(start, stop, memoryview(raw)[start * 4 : stop * 4])
    return np.frombuffer(raw, np.float32)


SHAPES = [(40, 24, 3), (300, 500, 8), (3, 150_000, 2), (150_000, 3, 2)]  # outputs, inputs, rank


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
@pytest.mark.parametrize("scaled", [False, True], ids=["lora", "dora"])
def test_every_element_is_the_exact_sum_rounded_once(
    written: Writer, numbers: np.random.Generator, shape: tuple[int, int, int], transposed: bool, scaled: bool
) -> None:
    outputs, inputs, rank = shape
    weight = numbers.normal(size=(outputs, inputs)).astype(np.float32)
    a, b = numbers.normal(size=(rank, inputs)), numbers.normal(size=(outputs, rank))
    a, b = a.astype(np.float32), b.astype(np.float32)
    magnitude = numbers.uniform(0.5, 2, size=outputs).astype(np.float32)
    exact = weight.astype(np.longdouble) + np.longdouble(0.7) * (
        b.astype(np.longdouble) @ a.astype(np.longdouble)
    )
    if scaled:
        exact *= (magnitude / np.sqrt((exact**2).sum(axis=1)))[:, None]
    if transposed:
        weight, exact = weight.T, exact.T
    source = MergedSource(
        written(np.ascontiguousarray(weight)),
        written(a),
        written(b),
        0.7,
        transposed,
        written(magnitude) if scaled else None,
    )
    found = read(source, [])
    # Rounding is right but where float64 cannot tell on which side of a tie a value lies.
    np.testing.assert_array_max_ulp(found, exact.astype(np.float32).reshape(-1), maxulp=1)
    assert np.count_nonzero(found != exact.astype(np.float32).reshape(-1)) <= found.size // 100_000
    cuts = sorted(int(cut) for cut in numbers.integers(1, source.count, 25))
    assert np.array_equal(read(source, cuts), found)


def test_factors_too_large_to_keep_are_read_again_and_give_the_same_bits(
    written: Writer, numbers: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, a, b = (numbers.normal(size=size) for size in ((70, 900), (6, 900), (70, 6)))
    for transposed in (False, True):
        own = np.ascontiguousarray(weight.T) if transposed else weight
        base, first, second = (written(array, "bfloat16") for array in (own, a, b))
        kept = read(MergedSource(base, first, second, 2.0, transposed), [])
        with monkeypatch.context() as patch:
            patch.setattr(merging, "_KEPT_BYTES", 16)
            patch.setattr(merging, "_STRETCH", 6 * 128)
            again = read(MergedSource(base, first, second, 2.0, transposed), [5000])
        np.testing.assert_array_max_ulp(again, kept, maxulp=1)


def test_what_is_computed_begins_at_the_same_places_whatever_is_asked_for(
    written: Writer, numbers: np.random.Generator
) -> None:
    """A matrix product may round differently in other company."""
    weight, a, b = (written(numbers.normal(size=size)) for size in ((900, 500), (3, 500), (900, 3)))
    source = MergedSource(weight, a, b, 1.0)
    for start in (0, 17, 250_123, 449_999):
        source.read(start, start + 1, memoryview(bytearray(4)))
        _, row, column = merging._last.key
        assert (row % (65_536 // 500), column) == (0, 0)


def test_a_convolution_counts_its_later_dimensions_as_one(
    written: Writer, numbers: np.random.Generator
) -> None:
    weight, a, b = (numbers.normal(size=s) for s in ((8, 4, 3, 3), (2, 4, 3, 3), (8, 2, 1, 1)))
    exact = weight + 0.5 * np.einsum("or,rihw->oihw", b[:, :, 0, 0], a)
    source = MergedSource(written(weight), written(a), written(b), 0.5)
    assert np.allclose(read(source, []), exact.astype(np.float32).reshape(-1), rtol=0, atol=1e-6)


def test_nothing_of_it_lies_on_disk_and_its_origin_names_both(
    written: Writer, numbers: np.random.Generator
) -> None:
    weight, a, b = (written(numbers.normal(size=size)) for size in ((4, 5), (2, 5), (4, 2)))
    tensor = computed_tensor(MergedSource(weight, a, b, 1.0), (4, 5), FLOAT32)
    assert tensor.runs(0, 20) is None
    assert tensor.origin == "0.raw at byte 0, with the adapter from 1.raw at byte 0"
    assert [place.file.path.name for place in tensor.places] == ["0.raw"]
    assert tensor[1:3, 2].tolist() == tensor.numpy()[1:3, 2].tolist()


def test_values_beyond_float32_become_infinite_without_a_warning(written: Writer) -> None:
    big = np.full((2, 2), 3e38)
    source = MergedSource(written(big), written(np.full((1, 2), 1e38)), written(np.full((2, 1), 1e38)), 1.0)
    assert np.isinf(read(source, [])).all()
