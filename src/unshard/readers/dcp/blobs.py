"""What lies where the metadata says that a chunk lies.

    archive       a file of torch.save of its own, at any offset, that holds one tensor
    stream        the same, compressed (`compressed` unpacks it)
    member        one tensor of a safetensors file that begins there and ends where the file ends

The tensor of an archive may be a view of a larger storage, and strided; it must have the dtype and the
shape of the chunk. Nothing is looked into before its bytes are wanted.

Source:
    torch/distributed/checkpoint/filesystem.py (`_write_item`, `_write_files_from_queue`).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import lru_cache

from unshard.dtypes import DType
from unshard.errors import DamagedFileError, InputError, UnsafeFileError, UnsupportedLayoutError
from unshard.readers.dcp.parts_of_files import RestOfFile
from unshard.readers.rendering import cut
from unshard.readers.torch_save.torch_legacy import LEGACY_MAGIC
from unshard.readers.torch_save.torch_objects import OtherTensor, StoredTensor, describe_tensor, is_tensor
from unshard.readers.torch_save.torch_zip import describe_torch_zip
from unshard.readers.torch_save.zip_end import HINT_COPY
from unshard.readers.unpickling import Record
from unshard.readers.weights.safetensors_file import (
    SafetensorsHeader,
    is_safetensors,
    read_safetensors_header,
)
from unshard.storage.checksums import Checksum
from unshard.storage.files import InputFile
from unshard.tensors import FileSource, Source

_HEAD_BYTES = 32
_HINT_EXCHANGED = (
    "The file may be damaged, exchanged with that of another rank, or of another save: copy all files of the"
    " step again."
)
_MOST_OVERHEAD = 1 << 20  # of an archive, beside its tensor; really a few KiB


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes that the metadata names, and what they must hold.

    Attributes:
        name: The tensor, by the name that people know.
        key: Its whole name.
        file: The file.
        start: First byte.
        stop: After the last byte.
        offset: Where the chunk begins in its tensor.
        shape: Shape of the chunk.
        dtype: Dtype of the tensor.
    """

    name: str
    key: str
    file: InputFile
    start: int
    stop: int
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: DType

    @property
    def origin(self) -> str:
        """Where it is, in words."""
        return f"{self.file.path.name} at bytes {self.start} to {self.stop}"

    @property
    def subject(self) -> str:
        """What messages call it."""
        return f"{self.file.path}: {self.name}, bytes {self.start} to {self.stop}"

    @property
    def count(self) -> int:
        """Elements of the chunk."""
        return math.prod(self.shape)

    @property
    def most_unpacked(self) -> int:
        """The most bytes that it may be when it is not compressed."""
        return self.count * self.dtype.itemsize + _MOST_OVERHEAD

    def at(self, file: InputFile, start: int, stop: int) -> Blob:
        """Return the same chunk elsewhere."""
        return replace(self, file=file, start=start, stop=stop)


@dataclass(frozen=True, slots=True)
class Found:
    """What a blob holds.

    Attributes:
        source: The elements of the chunk.
        checksum: The writer's checksum of the storage they are in, or None where there is none.
    """

    source: Source
    checksum: Checksum | None


def look_into(blob: Blob) -> Found:
    """Return where the elements of a chunk are.

    Raises:
        DamagedFileError: There is nothing, or another tensor than the metadata names.
        UnsafeFileError: What is there contradicts itself, or asks for code to be run.
        UnsupportedLayoutError: It is of another kind.
    """
    try:
        head = blob.file.read(blob.start, min(blob.start + _HEAD_BYTES, blob.file.size))
        if head.startswith(b"PK"):
            return _archived(blob)
        if is_safetensors(head):
            return _member(blob)
    except InputError as error:
        error.subject = blob.subject
        if not isinstance(error, UnsupportedLayoutError):
            error.hint = _HINT_EXCHANGED
        raise
    raise _explained(blob, head)


def _archived(blob: Blob) -> Found:
    """Return the one tensor of an archive."""
    saved = describe_torch_zip(blob.file, blob.start, blob.stop)
    if not is_tensor(saved.value):
        saw = cut(repr(saved.value))
        raise DamagedFileError(blob.subject, "holds no tensor where the metadata names one", saw=saw)
    assert isinstance(saved.value, Record)
    stored = describe_tensor(saved.value, saved, blob.name)
    if isinstance(stored, OtherTensor):
        raise UnsupportedLayoutError(blob.subject, f"holds a tensor that is not read: {stored.kind}")
    _require_the_chunk(blob, stored.tensor.shape, stored.tensor.dtype)
    return Found(stored.tensor.pieces[0].source, _checksum(blob, stored))


def _member(blob: Blob) -> Found:
    """Return the tensor of a safetensors file that has the name and the place of a chunk."""
    header = _header_at(blob.file, blob.start)
    dtype, shape, start, _ = header.tensors.get(blob.key, (None, (), 0, 0))
    if dtype is None:
        problem = "is not in the safetensors file where the metadata says it is"
        raise DamagedFileError(
            blob.subject, problem, saw=f"{len(header.tensors)} other tensors", hint=HINT_COPY
        )
    _require_the_chunk(blob, shape, dtype)
    try:
        offset = json.loads(header.metadata["DCP_SHARDING_INFO"])[blob.key]["saved_offsets"]
    except (ValueError, LookupError, TypeError, RecursionError):
        offset = list(blob.offset)  # nothing says otherwise
    if offset != list(blob.offset):
        problem = "is another part of its tensor than the metadata says"
        raise DamagedFileError(blob.subject, problem, saw=cut(str(offset)), expected=list(blob.offset))
    return Found(FileSource.contiguous(blob.file, blob.start + start, shape, dtype), None)


@lru_cache(maxsize=16)  # one header serves all tensors of its file
def _header_at(file: InputFile, start: int) -> SafetensorsHeader:
    return read_safetensors_header(RestOfFile.after(file, start))


def _require_the_chunk(blob: Blob, shape: tuple[int, ...], dtype: DType) -> None:
    """Raise unless a tensor is the chunk that the metadata describes."""
    if (shape, dtype) != (blob.shape, blob.dtype):
        raise DamagedFileError(
            blob.subject,
            "holds another tensor than the metadata says",
            saw=f"{dtype} {list(shape)}",
            expected=f"{blob.dtype} {list(blob.shape)}",
            hint="The file is of another save. Copy the folder again, all of its files from one save.",
        )


def _checksum(blob: Blob, stored: StoredTensor) -> Checksum | None:
    storage = stored.storage
    if storage.crc32 is None or storage.start == storage.stop:
        return None
    return Checksum(blob.file, storage.start, storage.stop, storage.crc32, blob.name)


def _explained(blob: Blob, head: bytes) -> InputError:
    """Return the error that says what lies where an archive should."""
    if not head.strip(b"\0"):
        problem = "holds zeros: its bytes were reserved, and not written"
        return DamagedFileError(blob.subject, problem, hint=HINT_COPY)
    if LEGACY_MAGIC[2:] in head:
        problem = "is in torch's format before version 1.6, which DCP never wrote"
        return UnsupportedLayoutError(blob.subject, problem)
    return UnsafeFileError(
        blob.subject,
        "holds no archive of torch.save",
        saw=f"bytes that begin with {head[:8]!r}",
        hint="The file is of another save; or of ByteCheckpoint, which writes raw bytes and is not read.",
    )
