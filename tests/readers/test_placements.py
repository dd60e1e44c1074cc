"""Which part of a tensor a rank holds, against torch's own splitting of real tensors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.distributed.tensor import Placement, Replicate, Shard
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard

from unshard.readers.distributed.placements import (
    Cut,
    box_count,
    local_spans,
    nested,
    part_of,
    placed_boxes,
    span_shape,
)

SIZES = st.integers(0, 23)
MESHES = st.lists(st.integers(1, 4), min_size=1, max_size=3)


@st.composite
def distributions(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], list[Placement]]:
    """Return a tensor's shape, a mesh's, and a placement for every dimension of the mesh."""
    shape = tuple(draw(st.lists(SIZES, min_size=1, max_size=3)))
    mesh = tuple(draw(MESHES))
    dimensions = st.integers(0, len(shape) - 1)
    placements = [
        draw(
            st.one_of(
                st.just(Replicate()),
                dimensions.map(Shard),
                st.builds(lambda d, f: _StridedShard(d, split_factor=f), dimensions, st.integers(1, 5)),
            )
        )
        for _ in mesh
    ]
    return shape, mesh, placements


def held_by_torch(
    shape: Sequence[int], mesh: Sequence[int], placements: Sequence[Placement], coordinate: Sequence[int]
) -> torch.Tensor:
    """Return the row-major positions of what torch leaves a rank, split after split."""
    local = torch.arange(math.prod(shape)).reshape(tuple(shape))
    for size, placement, index in zip(mesh, placements, coordinate, strict=True):
        if isinstance(placement, Shard | _StridedShard):
            parts, _ = placement._split_tensor(local, size, with_padding=False, contiguous=True)
            local = parts[index]
    return local


def cuts_of(mesh: Sequence[int], placements: Sequence[Placement], coordinate: Sequence[int]) -> list[Cut]:
    return [
        Cut(p.dim, size, index, p.split_factor if isinstance(p, _StridedShard) else 1)
        for size, p, index in zip(mesh, placements, coordinate, strict=True)
        if isinstance(p, Shard | _StridedShard)
    ]


def held_by_boxes(shape: Sequence[int], cuts: Sequence[Cut]) -> torch.Tensor:
    """Return the same from our boxes, each put where it says that it is in the local tensor."""
    whole = torch.arange(math.prod(shape)).reshape(tuple(shape))
    spans = local_spans(shape, cuts)
    local = torch.full(span_shape(spans), -1)
    for box in placed_boxes(spans):
        there = tuple(map(slice, box.local.start, box.local.stop))
        local[there] = whole[tuple(map(slice, box.whole.start, box.whole.stop))]
    return local


@settings(deadline=None, max_examples=60)
@given(distributions())
def test_what_every_rank_holds_is_what_torch_leaves_it(
    distribution: tuple[tuple[int, ...], tuple[int, ...], list[Placement]],
) -> None:
    shape, mesh, placements = distribution
    for coordinate in itertools.product(*map(range, mesh)):
        ours = held_by_boxes(shape, cuts_of(mesh, placements, coordinate))
        theirs = held_by_torch(shape, mesh, placements, coordinate)
        assert ours.shape == theirs.shape or (ours.numel() == 0 and theirs.numel() == 0)
        assert torch.equal(ours.reshape(-1), theirs.reshape(-1))


@settings(deadline=None, max_examples=60)
@given(distributions())
def test_shape_and_first_element_are_those_of_torchs_arithmetic(
    distribution: tuple[tuple[int, ...], tuple[int, ...], list[Placement]],
) -> None:
    shape, mesh, placements = distribution
    for coordinate in itertools.product(*map(range, mesh)):
        wanted, offset = _compute_local_shape_and_global_offset(shape, mesh, list(coordinate), placements)
        spans = local_spans(shape, cuts_of(mesh, placements, coordinate))
        assert span_shape(spans) == tuple(wanted)
        if 0 not in wanted:
            assert tuple(each[0][0] for each in spans) == tuple(offset)


@settings(deadline=None, max_examples=60)
@given(distributions())
def test_boxes_are_as_many_as_announced_and_do_not_touch(
    distribution: tuple[tuple[int, ...], tuple[int, ...], list[Placement]],
) -> None:
    shape, mesh, placements = distribution
    for coordinate in itertools.product(*map(range, mesh)):
        spans = local_spans(shape, cuts_of(mesh, placements, coordinate))
        if 0 not in span_shape(spans):
            assert len(placed_boxes(spans)) == box_count(spans)
        for each in spans:
            assert all(a[1] < b[0] for a, b in itertools.pairwise(each))


def fsdp_over_tensor_parallelism(size: int, data: int, tensor: int) -> dict[tuple[int, int], list[int]]:
    """Return the elements that every rank holds where FSDP2 chunks what tensor parallelism has chunked."""
    found = {}
    for j in range(tensor):
        start, stop = part_of(size, tensor, j)
        part = torch.arange(start, stop)
        for i in range(data):
            first, last = part_of(len(part), data, i)
            found[i, j] = part[first:last].tolist()
    return found


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 60), st.integers(2, 5), st.integers(2, 5))
def test_nested_cuts_are_those_of_fsdp_over_tensor_parallelism(size: int, data: int, tensor: int) -> None:
    for (i, j), elements in fsdp_over_tensor_parallelism(size, data, tensor).items():
        cuts = nested([Cut(0, data, i, tensor), Cut(0, tensor, j)])
        assert cuts is not None
        assert held_by_boxes([size], cuts).tolist() == elements


@pytest.mark.parametrize("tensor", [2, 3, 8])
@pytest.mark.parametrize("data", [2, 3, 5])
def test_where_both_readings_differ_the_sizes_of_all_ranks_tell_which_it_is(data: int, tensor: int) -> None:
    """The one that is not it leaves at least one rank with another size."""
    differing = 0
    for size in range(150):
        both: list[list[list[int]]] = [[], []]
        for i, j in itertools.product(range(data), range(tensor)):
            cuts = [Cut(0, data, i, tensor), Cut(0, tensor, j)]
            other = nested(cuts)
            assert other is not None
            for reading, way in zip(both, (cuts, other), strict=True):
                reading.append(held_by_boxes([size], way).tolist())
        if both[0] != both[1]:
            differing += 1
            assert [len(held) for held in both[0]] != [len(held) for held in both[1]]
    assert differing or (data, tensor) in {(2, 2), (2, 3), (2, 4), (2, 6), (2, 8)}


def test_cuts_are_nested_only_where_the_factor_is_what_inner_cuts_make() -> None:
    assert nested([Cut(0, 2, 0), Cut(0, 2, 1)]) is None
    assert nested([Cut(0, 2, 0, 3), Cut(0, 2, 1)]) is None
    assert nested([Cut(0, 2, 0, 2), Cut(1, 2, 1)]) is None
    assert nested([Cut(0, 2, 0, 4), Cut(0, 2, 1), Cut(0, 2, 0)]) == [
        Cut(0, 2, 1),
        Cut(0, 2, 0),
        Cut(0, 2, 0),
    ]
