"""The geometry: ranges into boxes, boxes into ranges."""

import itertools
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from unshard.tensors.boxes import Box, box_range, box_ranges, row_ranges, split_range

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


@given(shapes, st.data())
def test_a_box_is_one_range_exactly_where_its_elements_follow_one_another(
    shape: tuple[int, ...], data: st.DataObject
) -> None:
    bounds = [sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n)))) for n in shape]
    box = Box(tuple(a for a, _ in bounds), tuple(b for _, b in bounds))
    elements = np.arange(math.prod(shape)).reshape(shape)[tuple(map(slice, box.start, box.stop))].ravel()
    found = box_range(shape, box)
    if elements.size:
        together = elements[-1] - elements[0] + 1 == elements.size
        assert found == ((elements[0], elements[-1] + 1) if together else None)
    else:
        assert found is None or found[0] == found[1]


@given(shapes, st.integers(1, 40), st.data())
def test_ranges_end_as_rows_do_where_rows_are_short_enough(
    shape: tuple[int, ...], most: int, data: st.DataObject
) -> None:
    count = math.prod(shape)
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    ranges = list(row_ranges(shape, start, stop, most))
    assert [i for a, b in ranges for i in range(a, b)] == list(range(start, stop))
    assert all(0 < b - a <= most for a, b in ranges)
    row = math.prod(shape[1:])
    if row <= most:
        assert all(b % row == 0 for _, b in ranges[:-1])


def test_a_box_of_whole_rows_is_one_range() -> None:
    assert list(box_ranges((8, 4, 2), Box((2, 0, 0), (5, 4, 2)))) == [(16, 40)]


def test_a_tensor_without_dimensions_is_one_element() -> None:
    assert split_range((), 0, 1) == [Box((), ())]
    assert list(box_ranges((), Box((), ()))) == [(0, 1)]
