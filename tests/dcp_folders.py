"""Folders of DCP written by hand, chunk by chunk, and metadata as other versions and writers leave it."""

from __future__ import annotations

import io
import itertools
import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
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
        chunks: Sequence[Chunk],
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


def pickled_as(metadata: Metadata, paths: Mapping[type, str], without: frozenset[str] = frozenset()) -> bytes:
    """Return a pickle in which classes have other full names, and the metadata lack some fields."""
    for field in without:
        metadata.__dict__.pop(field, None)
    data = pickle.dumps(metadata, protocol=3)  # which has names as lines of text
    for real, path in paths.items():
        module, _, name = path.rpartition(".")
        before = f"c{real.__module__}\n{real.__qualname__}\n".encode()
        data = data.replace(before, f"c{module}\n{name}\n".encode())
    return data


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
