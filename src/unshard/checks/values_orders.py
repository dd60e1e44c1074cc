"""Whether a tensor is the base's with its elements in another order: transposed, rotary rows, parts.

Rows and parts are sampled at the same places under every hypothesis, and compared by their cosine. A
hypothesis holds where it explains what the order on disk does not.

Memory:
    A few thousand numbers at a time; a vector is read whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from unshard.base.configuration import Config, lookup_int
from unshard.tensors import Box, Tensor
from unshard.tensors.sampling import cosine_of, read_box, read_numbers

if TYPE_CHECKING:
    import numpy as np

Shape = tuple[int, ...]

# Samples of n numbers that have nothing in common have a cosine of about 1 / sqrt(n). Here n is at least
# 128, so that one half is more than five times what chance gives; a fine-tuned tensor has 0.9 and more.
ALIKE = 0.5
_ROWS, _COLUMNS = 8, 64
_PARTS = (2, 3, 4, 6, 8, 12, 16)
_MOST_EXPERTS = 1024
_CORNER = 24
_FEWEST_IN_PART = 16
_LONGEST_RUN = 512
_LEAST_SAMPLE = 128


def order_of(ours: Tensor, base: Tensor, config: Config | None) -> tuple[str, str] | None:
    """Return the code of the finding, and the order of the elements in words, or None where none fits.

    Raises:
        DamagedFileError: A file is shorter than it should be, or has changed.
    """
    if len(ours.shape) == 2 and _is_transposed(ours, base):
        return "U819", "is the base's transposed"
    fits = [
        (_rows_fit(ours, base, order), words, heads)
        for words, heads, order in _row_orders(ours.shape, config)
    ]
    best = max(fits, default=(0.0, "", 0))  # orders for few heads and for many have rows in common
    if best[0]:
        return ("U818" if best[2] > 1 else "U820"), best[1]
    for dimension in range(min(2, len(ours.shape))):
        parts = _parts_order(ours, base, dimension)
        if parts is not None:
            return ("U817" if len(ours.shape) == 3 and dimension == 0 else "U820"), parts
    return None


def _is_transposed(ours: Tensor, base: Tensor) -> bool:
    """Return whether a corner of a square matrix is that of the base, mirrored."""
    rows, columns = ours.shape
    if rows != columns or rows < _FEWEST_IN_PART:
        return False
    half = min(_CORNER, rows // 2)
    corner, mirrored = Box((0, half), (half, 2 * half)), Box((half, 0), (2 * half, half))
    a = read_box(ours, corner)
    return cosine_of(a, read_box(base, mirrored).T) > ALIKE > cosine_of(a, read_box(base, corner))


def _row_orders(shape: Shape, config: Config | None) -> Iterator[tuple[str, int, np.ndarray]]:
    """Yield orders of rows: in words, of how many heads they speak, and which row of the base is where.

    Source:
        transformers convert_llama_weights_to_hf.py: `permute` takes pairs (0, 1), (2, 3), ... of the rows
        of a head, as Meta's rotary embedding turns them, apart into two halves.
    """
    import numpy as np

    rows = np.arange(shape[0])
    counts = [] if config is None else [lookup_int(config, f"num_{kind}_heads") for kind in _HEADS]
    for heads in dict.fromkeys([each for each in counts if each and each > 0] + [1]):
        if shape[0] % (2 * heads) or shape[0] < 4 * heads:
            continue
        pairs = rows.reshape(heads, 2, -1).transpose(0, 2, 1).reshape(-1)
        halves = rows.reshape(heads, -1, 2).transpose(0, 2, 1).reshape(-1)
        if heads == 1:
            yield "has rows of the base's two halves by turns", heads, pairs
            yield "has every other row of the base first", heads, halves
        else:
            yield f"has the rows of {heads} heads as Meta's format has them, not permuted", heads, pairs
            yield f"has the rows of {heads} heads permuted once more than the base's", heads, halves
    yield from _latent_orders(shape, config)


def _latent_orders(shape: Shape, config: Config | None) -> Iterator[tuple[str, int, np.ndarray]]:
    """Yield orders in which only the rows that turn are permuted: the last ones of every head.

    Source:
        transformers models/deepseek_v3/modeling_deepseek_v3.py: heads of q_proj and q_b_proj are
        (qk_nope_head_dim, qk_rope_head_dim), rows of kv_a_proj_with_mqa (kv_lora_rank, qk_rope_head_dim).
    """
    import numpy as np

    keys = ("qk_rope_head_dim", "qk_nope_head_dim", "kv_lora_rank")
    turning, *fixed = (0 if config is None else lookup_int(config, key) or 0 for key in keys)
    if turning < 2 or turning % 2:
        return
    for still in fixed:
        if still <= 0 or shape[0] % (still + turning):
            continue
        heads = np.arange(shape[0]).reshape(-1, still + turning)
        for words, split in (("not permuted", (2, -1)), ("permuted once more than the base's", (-1, 2))):
            moved = heads[:, still:].reshape(len(heads), *split).swapaxes(1, 2).reshape(len(heads), -1)
            order = np.concatenate([heads[:, :still], moved], axis=1).reshape(-1)
            yield f"has the last {turning} rows of every {still + turning} {words}", 2, order


_HEADS = ("attention", "key_value")


def _rows_fit(ours: Tensor, base: Tensor, order: np.ndarray) -> float:
    """Return how well sampled rows are the base's in this order; 0.0 unless much better than in theirs."""
    import numpy as np

    moved = np.flatnonzero(order != np.arange(len(order)))
    if len(ours.shape) == 1:
        a, b = read_box(ours, Box.whole(ours.shape)), read_box(base, Box.whole(base.shape))
        far, near = float(np.linalg.norm(a - b)), float(np.linalg.norm(a - b[order]))
        return 1.0 - near / far if len(a) >= _FEWEST_IN_PART and 4 * near < far else 0.0
    if not len(moved):
        return 0.0
    rows = moved[np.linspace(0, len(moved) - 1, min(_ROWS, len(moved))).astype(int)]
    a = np.stack([_row(ours, row) for row in rows])
    straight = cosine_of(a, np.stack([_row(base, row) for row in rows]))
    crossed = cosine_of(a, np.stack([_row(base, order[row]) for row in rows]))
    return crossed if a.size >= _LEAST_SAMPLE and crossed > max(ALIKE, straight + ALIKE / 2) else 0.0


def _row(tensor: Tensor, row: int) -> np.ndarray:
    """Return the first numbers of a row."""
    first = (min(size, _COLUMNS) if at == 0 else 1 for at, size in enumerate(reversed(tensor.shape[1:])))
    stop = (int(row) + 1, *reversed(list(first)))
    return read_box(tensor, Box((int(row), *(0 for _ in tensor.shape[1:])), stop)).reshape(-1)


def _parts_order(ours: Tensor, base: Tensor, dimension: int) -> str | None:
    """Return in which order the parts of a tensor along `dimension` lie, or None where it is the base's."""
    size = ours.shape[dimension]
    is_experts = len(ours.shape) == 3 and dimension == 0
    if is_experts and size > _MOST_EXPERTS:
        return None
    for parts in (size,) if is_experts else _PARTS:
        if size % parts or size // parts < (1 if is_experts else _FEWEST_IN_PART // 4):
            continue
        order = _best_parts(part_samples(ours, dimension, parts), part_samples(base, dimension, parts))
        if order is not None and order != list(range(parts)):
            what = f"{parts} experts" if is_experts else f"{parts} parts along dimension {dimension}"
            return f"has the base's {what} in the order {_told(order)}"
    return None


def _told(order: list[int]) -> str:
    return " ".join(map(str, order[:16])) + (" ..." if order[16:] else "")


def part_samples(tensor: Tensor, dimension: int, parts: int) -> np.ndarray:
    """Return a sample of every part, at the same place in each: few runs, and long ones where parts are."""
    import numpy as np

    inside = math.prod(tensor.shape[dimension + 1 :])
    whole, part = tensor.shape[dimension] * inside, tensor.shape[dimension] // parts * inside
    runs = min(math.prod(tensor.shape[:dimension]), -(-_LEAST_SAMPLE // part))
    length = min(part, _LONGEST_RUN)
    return np.stack(
        [
            np.concatenate(
                [read_numbers(tensor, at, at + length) for at in range(first, runs * whole, whole)]
            )
            for first in range(0, whole, part)
        ]
    )


def _best_parts(ours: np.ndarray, base: np.ndarray) -> list[int] | None:
    """Return which part of the base each part is, or None unless every one is clearly another's own."""
    import numpy as np

    if ours.shape[1] < _LEAST_SAMPLE:
        return None
    lengths = [np.linalg.norm(each, axis=1, keepdims=True) for each in (ours, base)]
    if not all(np.isfinite(each).all() and each.all() for each in lengths):
        return None
    cosines = (ours / lengths[0]) @ (base / lengths[1]).T
    order = [int(each) for each in cosines.argmax(axis=1)]
    is_clear = bool((cosines.max(axis=1) > ALIKE).all())
    return order if is_clear and len(set(order)) == len(order) else None
