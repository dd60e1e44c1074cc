"""Whether parts that several ranks hold are the same, as far as checksums and a few bytes tell."""

from __future__ import annotations

from unshard.readers.torch_save.torch_objects import StoredTensor
from unshard.tensors import FileSource, element_count

_FEW_BYTES = 64 << 10


def are_equal(one: StoredTensor, other: StoredTensor) -> bool | None:
    """Return whether two tensors of one shape and dtype hold the same bytes; None where that is not known.

    Writers leave a checksum of every storage, so that those of equal views are compared without reading
    them. What has none is read where it is small.
    """
    mine, theirs = _checked(one), _checked(other)
    if mine is not None and theirs is not None:
        if mine == theirs:
            return True
        if _fills_storage(one) and _fills_storage(other) and mine[1:] == theirs[1:]:
            return False
    if one.tensor.nbytes > _FEW_BYTES:
        return None
    return _bytes_of(one) == _bytes_of(other)


def _checked(stored: StoredTensor) -> tuple[int, int, int, tuple[int, ...], str] | None:
    """Return the checksum of a storage, its length and how the tensor views it, or None without checksum."""
    storage, source = stored.storage, stored.tensor.pieces[0].source
    if storage.crc32 is None or not isinstance(source, FileSource):
        return None
    length = storage.stop - storage.start
    return storage.crc32, length, source.offset - storage.start, source.strides, source.byte_order


def _fills_storage(stored: StoredTensor) -> bool:
    return stored.tensor.nbytes == stored.storage.stop - stored.storage.start


def _bytes_of(stored: StoredTensor) -> bytes:
    buffer = bytearray(stored.tensor.nbytes)
    stored.tensor.read(0, element_count(stored.tensor), memoryview(buffer))
    return bytes(buffer)
