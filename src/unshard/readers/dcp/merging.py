"""Tables of several files made one: each rank of a save without collectives writes metadata of its own.

    __<rank>.metadata       what this rank saved, and nothing of the others

Nothing says how many ranks there were; that a tensor is whole, its chunks must say. Replicated tensors are
saved by every rank.

Source:
    torch/distributed/checkpoint/filesystem.py (`finish`, `use_collectives=False`).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from unshard.readers.dcp.tables import NOWHERE, PLACE_FIELDS, ItemRow, Keys, MetadataError, Tables, TensorRow
from unshard.readers.rendering import cut

if TYPE_CHECKING:
    import numpy as np


def merge_tables(parts: Sequence[Tables]) -> Tables:
    """Return the tables of all ranks as one.

    Raises:
        MetadataError: Ranks disagree on the shape or the dtype of a tensor.
    """
    files: dict[str, int] = {}
    transforms: dict[tuple[str, ...], int] = {(): 0}
    tensors: dict[str, TensorRow] = {}
    rows: dict[str, list[np.ndarray]] = {}
    items: dict[str, ItemRow] = {}
    paths: dict[str, Keys] = {}
    for part in parts:
        file_numbers = [files.setdefault(name, len(files)) for name in part.files]
        transform_numbers = [transforms.setdefault(names, len(transforms)) for names in part.transforms]
        for tensor in part.tensors:
            known = tensors.setdefault(tensor.name, tensor)
            if (known.shape, known.dtype) != (tensor.shape, tensor.dtype):
                problem = f"belongs to another save: ranks disagree on `{cut(tensor.name)}`"
                saw = f"{tensor.dtype} {list(tensor.shape)} and {known.dtype} {list(known.shape)}"
                raise MetadataError("unsafe", problem, saw)
            rows.setdefault(tensor.name, []).append(
                _renumbered(part.rows(tensor), file_numbers, transform_numbers)
            )
        for item in part.items:
            if item.file != NOWHERE:
                numbers = file_numbers[item.file], transform_numbers[item.transforms]
                items.setdefault(item.name, replace(item, file=numbers[0], transforms=numbers[1]))
        paths |= part.paths
    joined, merged = _joined(tensors, rows)
    return replace(
        parts[0],
        tensors=merged,
        items=list(items.values()),
        files=list(files),
        transforms=list(transforms),
        paths=paths,
        facts={**parts[0].facts, "ranks": str(len(parts))},
        numbers=joined,
    )


def _renumbered(rows: np.ndarray, files: Sequence[int], transforms: Sequence[int]) -> np.ndarray:
    """Return rows with the numbers that files and transforms have in the whole."""
    import numpy as np

    rows = rows.copy()
    placed = rows[:, -PLACE_FIELDS] != NOWHERE
    rows[placed, -4] = np.array(files, np.int64)[rows[placed, -4]]
    rows[placed, -1] = np.array(transforms, np.int64)[rows[placed, -1]]
    return rows


def _joined(
    tensors: dict[str, TensorRow], rows: dict[str, list[np.ndarray]]
) -> tuple[array[int], list[TensorRow]]:
    """Return the rows of all ranks, tensor by tensor, and the tensors that say where theirs begin."""
    numbers, merged = array("q"), []
    for name, tensor in tensors.items():
        count = sum(map(len, rows[name]))
        merged.append(replace(tensor, chunks=count, first=len(numbers)))
        for part in rows[name]:
            numbers.frombytes(part.tobytes())
    return numbers, merged
