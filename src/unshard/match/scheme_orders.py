"""What a tensor would be if its rows lay otherwise than its scheme and the head counts tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from unshard.base.head_counts import HeadCounts
from unshard.match.restored import Arranged
from unshard.match.scheme_steps import MisfitError, Walked, walk
from unshard.recipes.schemes.rows import Heads, Rotary, Step
from unshard.tensors import DescribedTensor

Columns = Sequence[list[DescribedTensor]]

_SMALLEST_HEAD, _LARGEST_HEAD = 4, 1024


def arranged_columns(
    sources: Columns, steps: Sequence[Step], heads: HeadCounts, walked: Walked
) -> Iterator[tuple[int, Heads, Arranged]]:
    """Yield the tensors of a row that are reordered: which one, whose heads, and what it could be else."""
    for step in steps:
        for column, kind in enumerate(step.heads if isinstance(step, Rotary) else ()):
            made = walked.columns[column]
            if kind is not None and len(made) == 1 and len(made[0].shape) == 2:
                others = {
                    words: tensors[column] for words, tensors in _otherwise(sources, steps, heads, walked)
                }
                yield column, kind, Arranged(made[0], others)


def _otherwise(
    sources: Columns, steps: Sequence[Step], heads: HeadCounts, walked: Walked
) -> Iterator[tuple[str, list[DescribedTensor]]]:
    """Yield the tensors of a row in every other order that their shapes allow, and what order it is."""
    kept = [step for step in steps if not isinstance(step, Rotary)]
    yield "with rows left as they are", [column[0] for column in walk(sources, kept, heads).columns]
    own = max(walked.sizes)
    for size in range(_SMALLEST_HEAD, min(heads.keys * own, _LARGEST_HEAD) + 1, 2):
        if size == own or heads.keys * own % size:
            continue
        other = HeadCounts(heads.queries * own // size, heads.keys * own // size, None, heads.experts, "")
        try:
            columns = walk(sources, steps, other).columns
        except MisfitError:
            continue
        yield f"with {other.queries} heads, {other.keys} of keys", [column[0] for column in columns]
