"""Vectors in ranges, the tensors in them, and where parameters can lie in a flat one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unshard.dtypes import DTYPES
from unshard.readers.flat.module_order import agrees, in_order_of, prefixes, without_wrappers
from unshard.readers.flat.unit_layout import ALIGNED, PACKED, layout_of, starts_in
from unshard.readers.flat.vectors import Stretch, Vector
from unshard.storage.files import InputFile
from unshard.tensors import FileSource

INT32 = DTYPES["int32"]


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> InputFile:
    path = tmp_path_factory.mktemp("numbers") / "numbers"
    path.write_bytes(np.arange(4000, dtype=np.int32).tobytes())
    return InputFile.describe(path)


def vector_of(file: InputFile, cuts: list[int]) -> Vector:
    """Return 0, 1, 2, ... up to the last cut, in ranges between the cuts; more lies after each of them."""
    bounds = zip([0, *cuts], cuts, strict=False)
    return Vector(
        INT32,
        tuple(
            Stretch(a, b, FileSource.contiguous(file, 4 * a, (b - a + 3,), INT32)) for a, b in bounds if a < b
        ),
    )


shapes = st.lists(st.lists(st.integers(0, 6), max_size=3), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(shapes=shapes, data=st.data())
def test_tensors_in_a_vector_are_its_elements_wherever_it_is_cut(
    numbers: InputFile, shapes: list[list[int]], data: st.DataObject
) -> None:
    total = sum(map(math.prod, shapes))
    cuts = data.draw(st.lists(st.integers(0, total), max_size=5))
    vector = vector_of(numbers, [*sorted(cuts), total])
    assert vector.count == total
    start = 0
    for shape in shapes:
        tensor = vector.part(start, shape)
        expected = np.arange(start, start + math.prod(shape), dtype=np.int32).reshape(shape)
        assert np.array_equal(tensor.numpy(), expected)
        assert sum(piece.box.volume for piece in tensor.pieces) == expected.size
        start += expected.size


def test_parameters_lie_packed_or_at_multiples(numbers: InputFile) -> None:
    vector = vector_of(numbers, [11, 22])
    assert starts_in(vector, [(3,), (4, 2), (11,)], 1) == [0, 3, 11]
    assert starts_in(vector, [(3,), (4, 2), (10,)], 4) == [0, 4, 12]
    assert starts_in(vector, [(3,), (4, 2), (9,)], 4) == [0, 4, 12]  # padded to a multiple of two ranks
    assert starts_in(vector, [(3,), (4, 2), (8,)], 4) is None
    assert starts_in(vector, [(3,), (4, 2), (10,)], 1) is None


def test_a_layout_is_accepted_only_where_one_alignment_fits_all_units(numbers: InputFile) -> None:
    first, second = vector_of(numbers, [11, 22]), vector_of(numbers, [7, 14])
    one = {"a": [(3,), (19,)], "b": [(7,), (7,)]}
    assert layout_of({"a": first, "b": second}, one, PACKED) == {"a": [0, 3], "b": [0, 7]}
    assert layout_of({"a": first, "b": second}, one, ALIGNED) == {"a": [0, 3], "b": [0, 7]}
    # Of 13 elements one is padding: after the first parameter, or at the end.
    assert layout_of({"b": second}, {"b": [(7,), (6,)]}, ALIGNED) == {"b": [0, 8]}
    assert layout_of({"a": first}, {"a": [(9,), (9,)]}, ALIGNED) == {"a": [0, 12]}
    assert layout_of({"a": first, "b": second}, {"a": [(9,), (9,)], "b": [(7,), (7,)]}, ALIGNED) is None
    # Eight ranks pad up to seven elements, so that two alignments fit.
    eighths = vector_of(numbers, [3, 6, 9, 12, 15, 18, 21, 24])
    assert layout_of({"a": eighths}, {"a": [(5,), (12,)]}, ALIGNED) is None


MODULES = ("", "net", "net.embed", "net.layers", "net.layers.0", "net.layers.0.norm", "net.head")


def test_parameters_follow_the_order_of_their_modules_weights_first() -> None:
    parameters = {
        "net.head.weight": (2,),
        "net.layers.0.norm.bias": (1,),
        "net.layers.0.norm.weight": (1,),
        "net.embed.weight": (3,),
    }
    ordered = in_order_of(MODULES, parameters)
    assert ordered is not None
    assert list(ordered) == [
        "net.embed.weight",
        "net.layers.0.norm.weight",
        "net.layers.0.norm.bias",
        "net.head.weight",
    ]
    assert agrees(MODULES, ordered)
    assert not agrees(MODULES, reversed(ordered))


def test_a_module_of_other_parameters_has_no_known_order() -> None:
    assert in_order_of(MODULES, {"net.head.gate": (2,), "net.head.down": (2,)}) is None
    assert in_order_of(MODULES, {"net.head.gate": (2,)}) == {"net.head.gate": (2,)}


def test_prefixes_are_those_below_which_every_module_is_there() -> None:
    assert prefixes(MODULES, ["head.weight", "layers.0.norm.weight"]) == ["net."]
    assert prefixes(MODULES, ["net.head.weight"]) == [""]
    assert prefixes(MODULES, ["head.weight", "other.weight"]) == []
    assert prefixes((), ["head.weight"]) == []
    assert prefixes(MODULES, []) == []


def test_wrappers_are_removed_wherever_they_stand() -> None:
    name = "_fsdp_wrapped_module.model.layers.0._checkpoint_wrapped_module._orig_mod.norm"
    assert without_wrappers(name) == "model.layers.0.norm"
    assert without_wrappers("model.norm") == "model.norm"
