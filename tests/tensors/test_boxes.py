"""The geometry: ranges into boxes, boxes into ranges."""

import itertools
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from unshard.tensors.boxes import Box, box_ranges, split_range

shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@given(shapes, st.data())
def test_a_range_splits_into_boxes_that_hold_exactly_its_elements(
    shape: tuple[int, ...], data: st.DataObject
) -> None:
    count = math.prod(shape)
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    elements = np.arange(count).reshape(shape)
    boxes = split_range(shape, start, stop)
    found = [elements[tuple(map(slice, box.start, box.stop))].ravel() for box in boxes]
    assert np.concatenate([*found, np.empty(0, int)]).tolist() == list(range(start, stop))
    assert len(boxes) <= max(1, 2 * len(shape) - 1)


@given(shapes, st.data())
def test_a_box_is_a_sequence_of_ranges_in_row_major_order(
    shape: tuple[int, ...], data: st.DataObject
) -> None:
    bounds = [sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n)))) for n in shape]
    box = Box(tuple(a for a, _ in bounds), tuple(b for _, b in bounds))
    elements = np.arange(math.prod(shape)).reshape(shape)[tuple(map(slice, box.start, box.stop))].ravel()
    ranges = list(box_ranges(shape, box))
    assert [i for start, stop in ranges for i in range(start, stop)] == elements.tolist()
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(ranges))


def test_a_box_of_whole_rows_is_one_range() -> None:
    assert list(box_ranges((8, 4, 2), Box((2, 0, 0), (5, 4, 2)))) == [(16, 40)]


def test_a_tensor_without_dimensions_is_one_element() -> None:
    assert split_range((), 0, 1) == [Box((), ())]
    assert list(box_ranges((), Box((), ()))) == [(0, 1)]
