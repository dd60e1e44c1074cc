"""Coverage of a declared shape: holes, overlaps, copies, and what lies outside."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unshard.tensors import Box, Coverage, check_coverage, check_ranges, described_box


def as_array(boxes: list[Box], ndim: int) -> np.ndarray:
    return np.array([[b.start, b.stop] for b in boxes], np.int64).reshape(len(boxes), 2, ndim)


def as_long_array(boxes: list[Box], ndim: int) -> np.ndarray:
    """Return the boxes and many empty ones: what is done in numpy is done for many."""
    empty = np.zeros((200 if ndim else 0, 2, ndim), np.int64)
    return np.concatenate([as_array(boxes, ndim), empty])


def painted(shape: tuple[int, ...], boxes: list[Box]) -> np.ndarray:
    """Return how many boxes hold each element."""
    layers = np.zeros(shape, int)
    for box in boxes:
        layers[tuple(map(slice, box.start, box.stop))] += 1
    return layers


def rows(*edges: int, columns: int = 4) -> list[Box]:
    return [Box((a, 0), (b, columns)) for a, b in itertools.pairwise(edges)]


def grid(*cuts: list[int]) -> list[Box]:
    intervals = [list(itertools.pairwise(c)) for c in cuts]
    return [
        Box(tuple(a for a, _ in cell), tuple(b for _, b in cell)) for cell in itertools.product(*intervals)
    ]


small_shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@settings(max_examples=300, deadline=None)
@given(shape=small_shapes, data=st.data())
def test_any_boxes_are_told_as_painting_every_element_tells(
    shape: tuple[int, ...], data: st.DataObject
) -> None:
    def box() -> Box:
        bounds = [sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n)))) for n in shape]
        return Box(tuple(a for a, _ in bounds), tuple(b for _, b in bounds))

    boxes = [box() for _ in range(data.draw(st.integers(0, 6)))]
    distinct = [b for b in dict.fromkeys(boxes) if b.volume]
    layers = painted(shape, distinct)
    forms = (boxes, as_array(boxes, len(shape)), as_long_array(boxes, len(shape)))
    for coverage in (check_coverage(shape, form) for form in forms):
        assert (painted(shape, list(coverage.holes)) == (layers == 0)).all()
        assert (painted(shape, [o.box for o in coverage.overlaps]) == (layers > 1)).all()
        assert coverage.exact == bool((layers == 1).all())
        assert [boxes[i] for i in coverage.kept] == sorted(distinct, key=lambda b: (b.start, b.stop))
        assert all(boxes.index(boxes[i]) == i for i in coverage.kept)
        groups = {b: tuple(i for i, other in enumerate(boxes) if other == b) for b in distinct}
        assert sorted(coverage.replicas) == sorted(g for g in groups.values() if len(g) > 1)
        for overlap in coverage.overlaps:
            touching = {i for i in coverage.kept if boxes[i].intersect(overlap.box)}
            assert set(overlap.among) == touching


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_grid_with_any_cuts_is_exact_and_not_without_one_of_its_boxes(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=4)))
    cuts = [sorted({0, n, *data.draw(st.lists(st.integers(0, n), max_size=4))}) for n in shape]
    boxes = data.draw(st.permutations(grid(*cuts)))
    assert check_coverage(shape, boxes).exact
    assert check_coverage(shape, as_long_array(boxes, len(shape))).exact
    coverage = check_coverage(shape, boxes[1:])
    assert coverage.holes == (boxes[0],)
    assert not coverage.overlaps


def test_missing_rows_are_one_hole_in_words() -> None:
    coverage = check_coverage((515, 4), [*rows(0, 96), *rows(128, 515)])
    assert [described_box((515, 4), hole) for hole in coverage.holes] == ["rows 96 to 128 of 515"]


def test_a_row_of_a_grid_that_is_missing_is_one_hole() -> None:
    boxes = [box for box in grid([0, 5, 10, 20], [0, 3, 6, 8]) if box.start[0] != 5]
    assert check_coverage((20, 8), boxes).holes == (Box((5, 0), (10, 8)),)


def test_boxes_that_share_rows_are_named_with_the_rows_they_share() -> None:
    coverage = check_coverage((10, 4), [*rows(0, 6), *rows(4, 10)])
    assert [(o.box, o.among) for o in coverage.overlaps] == [(Box((4, 0), (6, 4)), (0, 1))]
    assert not coverage.holes


def test_equal_boxes_are_copies_and_the_first_is_kept() -> None:
    boxes = [*rows(5, 10), *rows(0, 5), *rows(5, 10), *rows(0, 5), *rows(5, 10)]
    for coverage in (check_coverage((10, 4), boxes), check_coverage((10, 4), as_long_array(boxes, 2))):
        assert coverage.exact
        assert list(coverage.kept) == [1, 0]
        assert coverage.replicas == ((0, 2, 4), (1, 3))


def test_empty_boxes_hold_nothing() -> None:
    boxes = [*rows(0, 5), Box((5, 0), (5, 4)), Box((5, 0), (5, 4)), Box((2, 1), (2, 3))]
    coverage = check_coverage((5, 4), boxes)
    assert (coverage.exact, list(coverage.kept), coverage.replicas) == (True, [0], ())


@pytest.mark.parametrize(
    "box", [Box((0, 0), (6, 4)), Box((-1, 0), (5, 4)), Box((3, 0), (2, 4)), Box((9, 0), (9, 4))], ids=str
)
def test_a_box_that_is_not_inside_is_told_and_not_kept(box: Box) -> None:
    boxes = [box, *rows(0, 5)]
    for coverage in (check_coverage((5, 4), boxes), check_coverage((5, 4), as_long_array(boxes, 2))):
        assert (coverage.outside, list(coverage.kept), coverage.exact) == ((0,), [1], False)
        assert not coverage.holes


@pytest.mark.parametrize("box", [Box((0,), (5,)), Box((0, 0, 0), (5, 4, 1)), Box((), ())], ids=str)
def test_a_box_of_another_rank_lies_outside(box: Box) -> None:
    assert check_coverage((5, 4), [box]).outside == (0,)
    assert check_coverage((5, 4), [*rows(0, 5), box]).outside == (1,)


def test_a_tensor_without_dimensions_is_one_element() -> None:
    assert check_coverage((), [Box((), ())]).exact
    assert check_coverage((), [Box((), ()), Box((), ())]).replicas == ((0, 1),)
    assert check_coverage((), []).holes == (Box((), ()),)
    assert check_coverage((), np.zeros((2, 2, 0), np.int64)).replicas == ((0, 1),)
    assert check_coverage((), np.zeros((0, 2, 0), np.int64)).holes == (Box((), ()),)


def test_an_empty_tensor_needs_no_boxes() -> None:
    assert check_coverage((0, 4), []).exact
    assert check_coverage((0, 4), [Box((0, 0), (0, 4))]).exact
    assert list(check_coverage((3, 0), [Box((0, 0), (3, 0))]).kept) == []


def test_nothing_at_all_is_one_hole() -> None:
    assert check_coverage((515, 4), []).holes == (Box((0, 0), (515, 4)),)
    assert described_box((515, 4), Box((0, 0), (515, 4))) == "all of it"


def test_ranges_are_checked_as_boxes_of_one_dimension() -> None:
    coverage = check_ranges(20, [(0, 5), (9, 12), (11, 20)])
    assert coverage.holes == (Box((5,), (9,)),)
    assert [(o.box, o.among) for o in coverage.overlaps] == [(Box((11,), (12,)), (1, 2))]
    assert described_box((20,), coverage.holes[0]) == "elements 5 to 9 of 20"
    assert check_ranges(20, [(12, 20), (0, 12), (20, 20)]).exact


@pytest.mark.parametrize(
    ("shape", "box", "words"),
    [
        ((8, 128), Box((0, 0), (8, 64)), "columns 0 to 64 of 128"),
        ((8, 128), Box((2, 64), (4, 128)), "columns 64 to 128 of 128 of rows 2 to 4"),
        ((60_000, 2, 3), Box((1_000, 0, 0), (2_000, 2, 3)), "rows 1,000 to 2,000 of 60,000"),
        ((6, 2, 3), Box((1, 0, 0), (2, 1, 3)), "elements [1:2, 0:1, 0:3]"),
        ((), Box((), ()), "all of it"),
    ],
    ids=str,
)
def test_a_part_is_told_in_rows_and_columns(shape: tuple[int, ...], box: Box, words: str) -> None:
    assert described_box(shape, box) == words


def test_many_holes_and_overlaps_are_told_in_part() -> None:
    every_other = check_ranges(10_000, [(i, i + 1) for i in range(0, 10_000, 2)])
    assert [h.start[0] for h in every_other.holes] == list(range(1, 2000, 2))
    chained = check_ranges(20_001, [(i, i + 2) for i in range(20_000)])
    assert len(chained.overlaps) == 1  # they overlap without a gap
    assert chained.overlaps[0].among == tuple(range(16))
    apart = check_ranges(3000, [r for i in range(0, 3000, 3) for r in ((i, i + 2), (i + 1, i + 3))])
    assert len(apart.overlaps) == 100
    assert not apart.exact


def ragged(count: int) -> tuple[tuple[int, int], list[Box]]:
    """Return rows of two boxes each, every row cut at another column: a grid of their edges is huge."""
    shape = (count, count + 1)
    return shape, [
        b for i in range(count) for b in (Box((i, 0), (i + 1, i + 1)), Box((i, i + 1), (i + 1, count + 1)))
    ]


def test_rows_that_are_each_cut_elsewhere_are_examined_in_parts() -> None:
    shape, boxes = ragged(3000)
    assert check_coverage(shape, boxes).exact
    del boxes[2345]
    coverage = check_coverage(shape, boxes)
    assert coverage.holes == (Box((1172, 1173), (1173, 3001)),)
    assert not coverage.overlaps


def test_boxes_cut_too_wildly_are_called_irregular_and_never_exact() -> None:
    generator = np.random.default_rng(0)
    bounds = np.sort(generator.integers(0, 1 << 40, (20_000, 2, 3)), axis=1)
    coverage = check_coverage((1 << 40,) * 3, bounds)
    assert coverage.irregular
    assert not coverage.exact


def test_a_spiral_of_boxes_is_examined() -> None:
    """No two boxes of a pinwheel can be told apart by one cut."""
    boxes = [
        Box((0, 0), (1, 2)),
        Box((0, 2), (2, 3)),
        Box((2, 1), (3, 3)),
        Box((1, 0), (3, 1)),
        Box((1, 1), (2, 2)),
    ]
    assert check_coverage((3, 3), boxes).exact
    assert check_coverage((3, 3), boxes[:-1]).holes == (boxes[-1],)


def test_sizes_beyond_what_a_machine_counts_are_no_error() -> None:
    huge = 1 << 70
    assert check_coverage((huge,), [Box((0,), (5,)), Box((5,), (huge,))]).exact
    assert not check_coverage((huge,), [Box((0,), (5,))]).exact
    assert check_coverage((5,), [Box((0,), (huge,))]).outside == (0,)


@pytest.mark.parametrize("kind", ["rows", "columns", "grid"])
def test_a_thousand_ranks_are_checked_in_every_arrangement(kind: str) -> None:
    cuts = {"rows": (1024, 1), "columns": (1, 1024), "grid": (128, 8)}[kind]
    shape = (16_384, 53_248)
    edges = [np.linspace(0, n, c + 1).astype(int).tolist() for n, c in zip(shape, cuts, strict=True)]
    boxes = grid(*edges)
    assert math.prod(cuts) == len(boxes)
    coverage: Coverage = check_coverage(shape, as_array(boxes, 2))
    assert coverage.exact
    assert list(coverage.kept) == list(range(1024))
