"""Tensors as bytes in one file, described as a reader would describe them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from unshard.dtypes import DTYPES, DType
from unshard.plan import OutputFile
from unshard.storage.files import InputFile
from unshard.tensors import Box, DescribedTensor, FileSource, Piece, byte_count, whole_tensor

EVERY_DTYPE = sorted({dtype.name for dtype in DTYPES.values()})


def raw(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a tensor's elements in row-major order."""
    flat = tensor.detach().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def random_tensor(shape: tuple[int, ...], dtype: str, *, seed: int) -> torch.Tensor:
    """Return a tensor of random bits that are a value in every dtype, bool included."""
    count = torch.Size(shape).numel()
    generator = torch.Generator().manual_seed(seed)
    size = DTYPES[dtype].itemsize
    bits = torch.randint(0, 2, (max(count, 1) * size,), dtype=torch.uint8, generator=generator)
    return bits.view(getattr(torch, dtype))[:count].reshape(shape).clone()


def awkward_tensors(dtypes: list[str]) -> dict[str, torch.Tensor]:
    """Return tensors of every dtype in shapes that break careless code, and odd names."""
    shapes = [(3, 5), (), (0, 4), (7,), (2, 1, 3, 2), (70_001,)]
    return {
        f'{dtype} é"\\/.{number}': random_tensor(shape, dtype, seed=number)
        for dtype in dtypes
        for number, shape in enumerate(shapes)
    }


def store(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, DescribedTensor]:
    """Write the tensors one after another, a little apart, and return their descriptions."""
    places: dict[str, tuple[int, tuple[int, ...], DType]] = {}
    with path.open("wb") as file:
        for name, tensor in tensors.items():
            file.write(b"\xa5" * 13)
            places[name] = (
                file.tell(),
                tuple(tensor.shape),
                DTYPES[str(tensor.dtype).removeprefix("torch.")],
            )
            file.write(raw(tensor))
    source = InputFile.describe(path)
    return {
        name: whole_tensor(FileSource.contiguous(source, offset, shape, dtype))
        for name, (offset, shape, dtype) in places.items()
    }


def store_in_pieces(
    folder: Path, tensors: Mapping[str, torch.Tensor], parts: Sequence[int]
) -> dict[str, DescribedTensor]:
    """Write the cells of a grid to a file each, as ranks do, and return the tensors of all cells.

    Args:
        folder: Where the files go.
        tensors: By name.
        parts: Into how many parts each dimension is cut, as evenly as `torch.chunk` does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cells = list(itertools.product(*map(range, parts)))
    pieces: dict[str, list[Piece]] = {name: [] for name in tensors}
    for number, cell in enumerate(cells):
        boxes = {name: _cell(tuple(tensor.shape), parts, cell) for name, tensor in tensors.items()}
        cut = {
            name: tensors[name][tuple(map(slice, box.start, box.stop))].contiguous()
            for name, box in boxes.items()
            if box is not None
        }
        for name, stored in store(folder / f"{number}.bin", cut).items():
            box = boxes[name]
            assert box is not None
            pieces[name].append(Piece(box, stored.pieces[0].source))
    return {
        name: DescribedTensor(
            tuple(tensor.shape), DTYPES[str(tensor.dtype).removeprefix("torch.")], tuple(pieces[name])
        )
        for name, tensor in tensors.items()
    }


def _cell(shape: tuple[int, ...], parts: Sequence[int], cell: tuple[int, ...]) -> Box | None:
    """Return the box of a cell, empty where a dimension is too short; None where another rank holds it."""
    start, stop = list(shape), list(shape)
    for d, size in enumerate(shape):
        count, index = (parts[d], cell[d]) if d < len(parts) else (1, 0)
        step = -(-size // count)
        start[d], stop[d] = min(size, index * step), min(size, (index + 1) * step)
    spare = cell[len(shape) :]  # what has fewer dimensions than the grid is not held again
    return None if any(spare) else Box(tuple(start), tuple(stop))


def written(folder: Path, files: tuple[OutputFile, ...]) -> dict[str, DescribedTensor]:
    """Return what lies where a plan says that tensors lie."""
    found = {}
    for planned in files:
        file = InputFile.describe(folder / planned.name)
        for placement in planned.placements:
            shape, dtype = placement.tensor.shape, placement.tensor.dtype
            source = FileSource.contiguous(file, placement.start, shape, dtype)
            assert placement.stop - placement.start == byte_count(placement.tensor)
            found[placement.name] = whole_tensor(source)
    return found
