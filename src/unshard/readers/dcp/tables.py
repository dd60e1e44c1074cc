"""What `.metadata` says, as tables: names, shapes, and one row of numbers per chunk.

The classes in the pickle are gone here. A checkpoint of a thousand ranks has a million chunks; as rows of
64-bit numbers they take some sixty bytes each, and cross from one process to another as they are.

    row of a chunk      offset and then size along every dimension, file, start, length, transforms

Files and transforms are numbers of entries in the lists of the tables; a file of -1 means that nothing
says where the chunk lies.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import numpy as np

PLACE_FIELDS = 4  # file, start, length, transforms
NOWHERE = -1

Keys = tuple[str | int, ...]


class MetadataError(Exception):
    """What the metadata says cannot be.

    Attributes:
        kind: What is wrong in general: `unsafe`, `damaged` or `unsupported`.
        problem: What is wrong, as a clause.
        saw: What was found.
    """

    def __init__(self, kind: str, problem: str, saw: str | None = None) -> None:
        super().__init__(problem)
        self.kind, self.problem, self.saw = kind, problem, saw


@dataclass(frozen=True, slots=True)
class TensorRow:
    """A tensor of the metadata.

    Attributes:
        name: Its whole name.
        dtype: Its number format as the pickle names it, for example `torch.float32`.
        shape: Its whole shape.
        chunks: How many chunks it has.
        first: Position of the first number of its first chunk.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: int
    first: int

    @property
    def width(self) -> int:
        """Numbers in the row of one chunk."""
        return 2 * len(self.shape) + PLACE_FIELDS


@dataclass(frozen=True, slots=True)
class ItemRow:
    """Something of the metadata that is no tensor: a number, a text, the state of a generator.

    Attributes:
        name: Its whole name.
        file: Which file it lies in, or -1.
        start: Where in the file.
        length: Bytes it takes there.
        transforms: Which transforms it went through.
    """

    name: str
    file: int
    start: int
    length: int
    transforms: int


@dataclass(frozen=True, slots=True)
class Tables:
    """What one `.metadata` says.

    Attributes:
        tensors: Every tensor, in the order of the metadata.
        items: Everything else.
        files: Names of files.
        transforms: Lists of what was done to the bytes of a blob, in the order in which it is undone;
            the first one is empty.
        paths: By whole name, the keys that led to it before the names were joined.
        classes: Full names of all classes and functions in the pickle.
        facts: Plain values that tell the writer: `version`, names of fields.
        numbers: The rows of all chunks.
    """

    tensors: Sequence[TensorRow]
    items: Sequence[ItemRow]
    files: Sequence[str]
    transforms: Sequence[tuple[str, ...]]
    paths: Mapping[str, Keys]
    classes: Sequence[str]
    facts: Mapping[str, str]
    numbers: array[int] | bytes | memoryview = field(repr=False)

    def rows(self, tensor: TensorRow) -> np.ndarray:
        """Return the rows of a tensor's chunks.

        Shapes:
            (chunks, 2 * dimensions + 4), int64.
        """
        import numpy as np

        every = np.frombuffer(self.numbers, dtype=np.int64)
        return every[tensor.first : tensor.first + tensor.chunks * tensor.width].reshape(-1, tensor.width)


def write_tables(tables: Tables, stream: BinaryIO) -> None:
    """Write tables so that `parse_tables` reads them: the length of a JSON header, the header, the rows."""
    header = json.dumps(
        {
            "tensors": [(t.name, t.dtype, t.shape, t.chunks, t.first) for t in tables.tensors],
            "items": [(i.name, i.file, i.start, i.length, i.transforms) for i in tables.items],
            "files": tables.files,
            "transforms": tables.transforms,
            "paths": list(tables.paths.items()),
            "classes": tables.classes,
            "facts": tables.facts,
        }
    ).encode()
    stream.write(len(header).to_bytes(8, "little"))
    stream.write(header)
    stream.write(tables.numbers)


def parse_tables(data: memoryview) -> Tables:
    """Return the tables that `write_tables` wrote."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8 : 8 + length]))
    return Tables(
        tensors=[
            TensorRow(n, d, tuple(shape), count, first) for n, d, shape, count, first in header["tensors"]
        ],
        items=[ItemRow(*fields) for fields in header["items"]],
        files=header["files"],
        transforms=[tuple(names) for names in header["transforms"]],
        paths={name: tuple(path) for name, path in header["paths"]},
        classes=header["classes"],
        facts=header["facts"],
        numbers=data[8 + length :],
    )
