"""Small parts of large tensors, for questions that a few thousand numbers answer.

Memory:
    A few thousand numbers at a time, whatever the size of the tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unshard.tensors.boxes import Box, box_ranges
from unshard.tensors.described import Tensor, element_count

if TYPE_CHECKING:
    import numpy as np


def read_numbers(tensor: Tensor, start: int, stop: int) -> np.ndarray:
    """Return elements `start` to `stop` of a floating tensor, in row-major order, as float64.

    Raises:
        DamagedFileError: A file is shorter than it should be, or has changed.
    """
    import numpy as np

    raw = memoryview(bytearray((stop - start) * tensor.dtype.itemsize))
    tensor.read(start, stop, raw)
    return np.frombuffer(raw, tensor.dtype.numpy).astype(np.float64)


def read_sample(tensor: Tensor, runs: int, length: int) -> np.ndarray:
    """Return evenly spaced runs of elements, or all of a tensor that is no larger.

    Two tensors of one shape are sampled at the same places.
    """
    import numpy as np

    return np.concatenate([read_numbers(tensor, *one) for one in _spaced(tensor, runs, length)])


def read_sample_bytes(tensor: Tensor, runs: int, length: int) -> bytes:
    """Return the bytes of evenly spaced runs of elements, or of all of a tensor that is no larger."""
    parts = []
    for start, stop in _spaced(tensor, runs, length):
        parts.append(bytearray((stop - start) * tensor.dtype.itemsize))
        tensor.read(start, stop, memoryview(parts[-1]))
    return b"".join(parts)


def _spaced(tensor: Tensor, runs: int, length: int) -> list[tuple[int, int]]:
    """Return (start, stop) of evenly spaced runs of elements, or of all of a tensor that is no larger."""
    count = element_count(tensor)
    if count <= runs * length:
        return [(0, count)]
    starts = ((count - length) * each // (runs - 1) for each in range(runs))
    return [(start, start + length) for start in starts]


def read_box(tensor: Tensor, box: Box) -> np.ndarray:
    """Return part of a tensor, in its shape, as float64."""
    import numpy as np

    parts = [read_numbers(tensor, start, stop) for start, stop in box_ranges(tensor.shape, box)]
    return np.concatenate(parts).reshape(box.shape)


def cosine_of(a: np.ndarray, b: np.ndarray) -> float:
    """Return the cosine of the angle between two vectors; 0.0 where one is zero or not finite."""
    import numpy as np

    with np.errstate(all="ignore"):
        value = float(a.ravel() @ b.ravel() / (np.linalg.norm(a) * np.linalg.norm(b)))
    return value if abs(value) <= 1.01 else 0.0  # comparisons with NaN are false
