"""Where parameters lie in a flat parameter: one after the other, or each at a multiple of 16 bytes.

With use_orig_params=True FSDP aligns every parameter, by the dtype in which it computes, and pads the
whole to a multiple of the ranks. Without it there is no padding inside, and the length that is saved
counts none at the end.

Source:
    torch/distributed/fsdp/_flat_param.py (`_get_aligned_numel`, `_init_flat_param_and_metadata`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from unshard.readers.flat.vectors import Vector

Shape = tuple[int, ...]

PACKED = (1,)
# Elements of 16 bytes, in dtypes of 8, 4, 2 and 1 bytes.
ALIGNED = (1, 2, 4, 8, 16)


def starts_in(vector: Vector, shapes: Sequence[Shape], alignment: int) -> list[int] | None:
    """Return where parameters of these shapes begin, or None where they do not fill the vector."""
    end, starts = 0, list[int]()
    for shape in shapes:
        end += -end % alignment
        starts.append(end)
        end += math.prod(shape)
    if alignment > 1 and vector.stretches:
        ranks, rest = divmod(vector.count, vector.stretches[0].stop)
        end += -end % ranks if rest == 0 else 0
    return starts if end == vector.count else None


def layout_of(
    vectors: Mapping[str, Vector], members: Mapping[str, Sequence[Shape]], alignments: Sequence[int]
) -> dict[str, list[int]] | None:
    """Return where the parameters of every unit begin, by the one alignment that fits all units.

    None where none fits, or where several do and lead to different places.
    """
    found: list[dict[str, list[int]]] = []
    for alignment in alignments:
        starts = {name: starts_in(vectors[name], shapes, alignment) for name, shapes in members.items()}
        fitting = {name: start for name, start in starts.items() if start is not None}
        if len(fitting) == len(starts) and fitting not in found:
            found.append(fitting)
    return found[0] if len(found) == 1 else None
