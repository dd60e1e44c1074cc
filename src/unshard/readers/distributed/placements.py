"""Which part of a tensor one place of a mesh holds: arithmetic on placements, sizes and coordinates.

    Shard(d)              the mesh dimension cuts dimension d of the tensor
    _StridedShard(d, f)   it cuts each of the f parts that a later mesh dimension will make of it, so that
                          what a rank holds is f stretches (FSDP over tensor parallelism)
    Replicate()           all along the mesh dimension hold the same

A cut into n parts is that of `torch.chunk`: all are ceil(size / n) long, but for the last that has any
elements, and those after it have none. Mesh dimensions cut one after the other, from left to right unless
the file says otherwise.

FSDP2 over tensor parallelism does not cut so: it takes what tensor parallelism has left, and cuts that,
which `_StridedShard` describes exactly only where all parts are equally long. Where they are not, tensors
that torch itself has distributed and those of FSDP2 have the same placements and other parts; the
parts' sizes, on all ranks together, tell which of both they are.

Source:
    torch/distributed/tensor/placement_types.py (`Shard.local_shard_size_and_offset`,
    `_StridedShard._split_tensor`), _utils.py (`_compute_local_shape_and_global_offset`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from unshard.tensors import Box

Span = tuple[int, int]
_MOST_BOXES = 1 << 16


@dataclass(frozen=True, slots=True)
class Cut:
    """What one mesh dimension does to one dimension of a tensor.

    Attributes:
        dimension: Which dimension of the tensor.
        parts: Into how many parts.
        index: Which of them is meant.
        factor: How many parts a later mesh dimension makes of it; 1 for a plain `Shard`.
    """

    dimension: int
    parts: int
    index: int
    factor: int = 1


@dataclass(frozen=True, slots=True)
class PlacedBox:
    """A box of the whole tensor, and where in the local tensor its elements are."""

    whole: Box
    local: Box


@dataclass(frozen=True, slots=True)
class Way:
    """What a rank holds, if placements are read in one way.

    Attributes:
        shape: The shape of its local tensor.
        boxes: The boxes that it holds: one, unless a dimension is held in several stretches.
    """

    shape: tuple[int, ...]
    boxes: tuple[PlacedBox, ...]


def find_ways(shape: Sequence[int], cuts: Sequence[Cut]) -> tuple[Way, ...]:
    """Return what a rank holds: in one way, or in two that differ, of which FSDP2's is the second.

    Nothing is returned where it would be more boxes than anybody makes.
    """
    spans = [local_spans(shape, cuts)]
    if (others := nested(cuts)) is not None and (second := local_spans(shape, others)) != spans[0]:
        spans.append(second)
    if any(box_count(each) > _MOST_BOXES for each in spans):
        return ()
    return tuple(Way(span_shape(each), tuple(placed_boxes(each))) for each in spans)


def local_spans(shape: Sequence[int], cuts: Sequence[Cut]) -> list[list[Span]]:
    """Return, for every dimension, the stretches of it that are held, in the order in which they are."""
    spans: list[list[Span]] = [[(0, size)] for size in shape]
    for cut in cuts:
        spans[cut.dimension] = _cut(spans[cut.dimension], cut)
    return spans


def nested(cuts: Sequence[Cut]) -> list[Cut] | None:
    """Return the cuts as FSDP2 makes them over tensor parallelism, or None where that is no other way."""
    strided = [number for number, cut in enumerate(cuts) if cut.factor > 1]
    if len(strided) != 1:
        return None
    outer = cuts[strided[0]]
    inner = [cut for cut in cuts[strided[0] + 1 :] if cut.dimension == outer.dimension]
    if math.prod(cut.parts for cut in inner) != outer.factor:
        return None
    rest = [cut for cut in cuts if cut is not outer]
    return [*rest, Cut(outer.dimension, outer.parts, outer.index)]


def span_shape(spans: Sequence[Sequence[Span]]) -> tuple[int, ...]:
    """Return the shape of what is held."""
    return tuple(sum(stop - start for start, stop in each) for each in spans)


def placed_boxes(spans: Sequence[Sequence[Span]]) -> list[PlacedBox]:
    """Return the boxes that are held: one, unless a dimension is held in several stretches."""
    if 0 in span_shape(spans):
        return []
    boxes = []
    for combination in itertools.product(*(_with_local(each) for each in spans)):
        whole = Box(tuple(s for (s, _), _ in combination), tuple(e for (_, e), _ in combination))
        local = Box(tuple(s for _, (s, _) in combination), tuple(e for _, (_, e) in combination))
        boxes.append(PlacedBox(whole, local))
    return boxes


def box_count(spans: Sequence[Sequence[Span]]) -> int:
    """Return how many boxes `placed_boxes` returns, without making them."""
    return math.prod(len(each) for each in spans)


def _with_local(spans: Sequence[Span]) -> list[tuple[Span, Span]]:
    """Return every stretch of the whole with the stretch of the local tensor that it is."""
    ends = list(itertools.accumulate((stop - start for start, stop in spans), initial=0))
    return list(zip(spans, itertools.pairwise(ends), strict=True))


def _cut(spans: list[Span], cut: Cut) -> list[Span]:
    """Return the part of what is held that a cut leaves."""
    size = sum(stop - start for start, stop in spans)
    wanted: list[Span] = []
    for start, stop in _parts(size, cut.factor):
        first, last = part_of(stop - start, cut.parts, cut.index)
        wanted.append((start + first, start + last))
    return _selected(spans, wanted)


def part_of(size: int, parts: int, index: int) -> Span:
    """Return where part `index` of `parts` begins and ends, as `torch.chunk` cuts."""
    length = -(-size // parts)
    return min(size, length * index), min(size, length * (index + 1))


def _parts(size: int, parts: int) -> list[Span]:
    """Return the parts that have elements."""
    if parts == 1 or size == 0:
        return [(0, size)]
    length = -(-size // parts)
    return [(start, min(size, start + length)) for start in range(0, size, length)]


def _selected(spans: Sequence[Span], wanted: Sequence[Span]) -> list[Span]:
    """Return what lies at the positions `wanted`, both in order, of stretches that follow one another.

    Takes as many steps as there are of both; stretches that touch become one.
    """
    found: list[Span] = []
    at, begin = 0, 0  # the stretch looked at, and the position of its first element
    for start, stop in wanted:
        while start < stop:
            low, high = spans[at]
            if start >= begin + high - low:
                at, begin = at + 1, begin + high - low
                continue
            end = min(stop, begin + high - low)
            piece = (low + start - begin, low + end - begin)
            if found and found[-1][1] == piece[0]:
                piece = (found.pop()[0], piece[1])
            found.append(piece)
            start = end
    return found
