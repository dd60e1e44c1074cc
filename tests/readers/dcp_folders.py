"""Folders of DCP written by hand, chunk by chunk, and metadata as other versions and writers leave it."""

from __future__ import annotations

import contextlib
import copyreg
import io
import itertools
import pickle
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

Chunk = tuple[tuple[int, ...], tuple[int, ...]]  # offset and size


def save(state: Mapping[str, object], folder: Path, **options: Any) -> Path:
    """Save a state as one process does, by torch's own writer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is one process
        writer = dcp.FileSystemWriter(folder, **options)
        dcp.save(dict(state), storage_writer=writer, no_dist=True)
    return folder


def saved_bytes(value: object) -> bytes:
    """Return what torch.save writes."""
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def whole(tensor: torch.Tensor) -> list[Chunk]:
    return [((0,) * tensor.dim(), tuple(tensor.shape))]


def tiles(tensor: torch.Tensor) -> list[Chunk]:
    """Return a grid of uneven chunks, as parallelism in several dimensions leaves them."""
    edges = [sorted({0, 1, n // 2, n} & set(range(n + 1))) for n in tensor.shape]
    spans = [list(itertools.pairwise(edge)) or [(0, 0)] for edge in edges]
    return [
        (tuple(a for a, _ in spans), tuple(b - a for a, b in spans)) for spans in itertools.product(*spans)
    ]


class HandWriter:
    """Writes blobs to files of several ranks in turn, and metadata that names them.

    Attributes:
        metadata: What `.metadata` will hold; change it before `finish`.
    """

    def __init__(self, folder: Path, ranks: int = 3) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.ranks = folder, ranks
        self.metadata = Metadata({}, {}, {})
        self._turn = 0

    def add(
        self,
        name: str,
        tensor: torch.Tensor,
        chunks: list[Chunk],
        encode: Callable[[object], bytes] = saved_bytes,
        **storage: Any,
    ) -> None:
        """Write a tensor in chunks."""
        described = [ChunkStorageMetadata(torch.Size(o), torch.Size(s)) for o, s in chunks]
        properties = TensorProperties(dtype=tensor.dtype)
        self.metadata.state_dict_metadata[name] = TensorStorageMetadata(properties, tensor.shape, described)
        for offset, size in chunks:
            part = tensor
            for d, (start, length) in enumerate(zip(offset, size, strict=True)):
                part = part.narrow(d, start, length)
            if 0 not in size:
                place = self._put(encode(part.clone()), **storage)
                self.metadata.storage_data[MetadataIndex(name, offset)] = place

    def add_item(self, name: str, value: object) -> None:
        """Write something that is no tensor."""
        self.metadata.state_dict_metadata[name] = BytesStorageMetadata()
        self.metadata.storage_data[MetadataIndex(name)] = self._put(saved_bytes(value))

    def _put(self, blob: bytes, **storage: Any) -> _StorageInfo:
        file = self.folder / f"__{self._turn % self.ranks}_0.distcp"
        self._turn += 1
        with file.open("ab") as stream:
            offset = stream.tell()
            stream.write(blob)
        return _StorageInfo(file.name, offset, len(blob), **storage)

    def finish(self) -> Path:
        """Write `.metadata`; return the folder."""
        (self.folder / ".metadata").write_bytes(pickle.dumps(self.metadata, protocol=4))
        return self.folder


def read_metadata(folder: Path) -> Metadata:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    assert isinstance(metadata, Metadata)
    return metadata


def write_metadata(folder: Path, metadata: object) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(metadata, protocol=4))


def pickled_as(value: object, paths: Mapping[type, str], without: frozenset[str] = frozenset()) -> bytes:
    """Return a pickle in which classes have other full names, and objects lack some fields."""
    with _stand_ins(paths) as classes:
        stream = io.BytesIO()
        _Renaming(stream, classes, without).dump(value)
        return stream.getvalue()


class _Renaming(pickle.Pickler):
    def __init__(self, stream: io.BytesIO, classes: Mapping[type, type], without: frozenset[str]) -> None:
        super().__init__(stream, protocol=4)
        self._classes, self._without = classes, without

    def reducer_override(self, obj: Any) -> Any:
        made = self._classes.get(type(obj))
        if made is None:
            return NotImplemented
        state = obj.__getstate__()
        if isinstance(state, dict):
            state = {key: value for key, value in state.items() if key not in self._without}
        return copyreg.__newobj__, (made,), state  # type: ignore[attr-defined]


@contextlib.contextmanager
def _stand_ins(paths: Mapping[type, str]) -> Iterator[dict[type, type]]:
    """Put modules with classes of certain names where pickle looks for them."""
    before: dict[str, types.ModuleType | None] = {}
    made: dict[type, type] = {}
    for real, path in paths.items():
        module, _, name = path.rpartition(".")
        if module not in before:
            before[module] = sys.modules.get(module)
            sys.modules[module] = types.ModuleType(module)
        made[real] = type(name, (), {"__module__": module})
        setattr(sys.modules[module], name, made[real])
    try:
        yield made
    finally:
        for module, real_module in before.items():
            if real_module is None:
                del sys.modules[module]
            else:
                sys.modules[module] = real_module


def class_paths(package: str, properties: str | None = None) -> dict[type, str]:
    """Return the full names of all classes as some version of torch has them."""
    metadata = f"{package}.metadata"
    return {
        Metadata: f"{metadata}.Metadata",
        MetadataIndex: f"{metadata}.MetadataIndex",
        TensorStorageMetadata: f"{metadata}.TensorStorageMetadata",
        ChunkStorageMetadata: f"{metadata}.ChunkStorageMetadata",
        BytesStorageMetadata: f"{metadata}.BytesStorageMetadata",
        _StorageInfo: f"{package}.filesystem._StorageInfo",
        TensorProperties: properties or f"{metadata}.TensorProperties",
    }
