"""What lies where the metadata says that a chunk lies: a file of torch.save of its own.

    blob        a whole archive of torch.save that holds one tensor, at any offset of its file

Its tensor may be a view of a larger storage, and strided; it must have the dtype and the shape of the
chunk. The archive is looked into when its bytes are wanted, and not before.

Source:
    torch/distributed/checkpoint/filesystem.py (`_write_item`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from unshard.dtypes import DType
from unshard.errors import DamagedFileError, InputError, UnsafeFileError, UnsupportedLayoutError
from unshard.readers.rendering import cut
from unshard.readers.torch_save.torch_legacy import LEGACY_MAGIC
from unshard.readers.torch_save.torch_objects import OtherTensor, StoredTensor, describe_tensor, is_tensor
from unshard.readers.torch_save.torch_zip import describe_torch_zip
from unshard.readers.torch_save.zip_end import HINT_COPY
from unshard.readers.unpickling import Record
from unshard.storage.checksums import Checksum
from unshard.storage.files import InputFile
from unshard.tensors import Source

_HEAD_BYTES = 32


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes that the metadata names, and what they must hold.

    Attributes:
        name: The tensor.
        file: The file.
        start: First byte.
        stop: After the last byte.
        shape: Shape of the chunk.
        dtype: Dtype of the tensor.
    """

    name: str
    file: InputFile
    start: int
    stop: int
    shape: tuple[int, ...]
    dtype: DType

    @property
    def origin(self) -> str:
        """Where it is, in words."""
        return f"{self.file.path.name} at bytes {self.start} to {self.stop}"


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
        DamagedFileError: There is no archive, or another tensor than the metadata names.
        UnsafeFileError: The archive contradicts itself, or asks for code to be run.
        UnsupportedLayoutError: The blob is of another kind.
    """
    try:
        head = blob.file.read(blob.start, min(blob.start + _HEAD_BYTES, blob.stop))
        if not head.startswith(b"PK"):
            raise _explained(blob, head)
        saved = describe_torch_zip(blob.file, blob.start, blob.stop)
    except InputError as error:
        error.subject = f"{blob.file.path}: {blob.name}, bytes {blob.start} to {blob.stop}"
        raise
    subject = f"{blob.file.path}: {blob.name}"
    if not is_tensor(saved.value):
        raise DamagedFileError(
            subject, "holds no tensor where the metadata names one", saw=cut(repr(saved.value))
        )
    assert isinstance(saved.value, Record)
    stored = describe_tensor(saved.value, saved, blob.name)
    if isinstance(stored, OtherTensor):
        raise UnsupportedLayoutError(subject, f"holds a tensor that is not read: {stored.kind}")
    _require_the_chunk(blob, stored, subject)
    return Found(stored.tensor.pieces[0].source, _checksum(blob, stored))


def _require_the_chunk(blob: Blob, stored: StoredTensor, subject: str) -> None:
    """Raise unless a tensor is the chunk that the metadata describes."""
    tensor = stored.tensor
    if (tensor.shape, tensor.dtype) != (blob.shape, blob.dtype):
        raise DamagedFileError(
            subject,
            "holds another tensor than the metadata says",
            saw=f"{tensor.dtype} {tensor.shape} at byte {blob.start}",
            expected=f"{blob.dtype} {blob.shape}",
            hint="The file is of another save. Copy the folder again, all of its files at one time.",
        )


def _checksum(blob: Blob, stored: StoredTensor) -> Checksum | None:
    storage = stored.storage
    if storage.crc32 is None or storage.start == storage.stop:
        return None
    return Checksum(blob.file, storage.start, storage.stop, storage.crc32, blob.name)


def _explained(blob: Blob, head: bytes) -> InputError:
    """Return the error that says what lies where an archive should."""
    if not head.strip(b"\0"):
        return DamagedFileError(blob.origin, "are zeros: they were reserved, not written", hint=HINT_COPY)
    if LEGACY_MAGIC[2:] in head:
        return UnsupportedLayoutError(
            blob.origin, "are in torch's format before version 1.6, which DCP never wrote", hint=HINT_COPY
        )
    return UnsafeFileError(
        blob.origin,
        "hold no archive of torch.save",
        saw=f"bytes that begin with {head[:8]!r}",
        hint="ByteCheckpoint writes such files, and they are not read; or the file is of another save.",
    )


Looker = Callable[[Blob], Found]
