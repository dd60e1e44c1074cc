"""Whether parts that several ranks hold are the same, as far as checksums and their first bytes tell."""

from __future__ import annotations

from unshard.readers.torch_save.torch_objects import StoredTensor
from unshard.tensors import FileSource, element_count

_SAMPLE_BYTES = 64 << 10


def have_equal_checksums(one: StoredTensor, other: StoredTensor) -> bool | None:
    """Return whether two tensors of one shape and dtype hold the same bytes; None where that is not known.

    Writers leave a checksum of every storage, so that those of equal views are compared without reading.
    """
    mine, theirs = _checked(one), _checked(other)
    if mine is None or theirs is None:
        return None
    if mine == theirs:
        return True
    comparable = _fills_storage(one) and _fills_storage(other) and mine[1:] == theirs[1:]
    return False if comparable else None


def begin_equally(one: StoredTensor, other: StoredTensor) -> bool:
    """Return whether the first 64 KiB of two tensors of one shape and dtype are the same."""
    return _first_bytes(one) == _first_bytes(other)


def _checked(stored: StoredTensor) -> tuple[int, int, int, tuple[int, ...], str] | None:
    """Return the checksum of a storage, its length and how the tensor views it, or None without checksum."""
    storage, source = stored.storage, stored.tensor.pieces[0].source
    if storage.crc32 is None or not isinstance(source, FileSource):
        return None
    length = storage.stop - storage.start
    return storage.crc32, length, source.offset - storage.start, source.strides, source.byte_order


def _fills_storage(stored: StoredTensor) -> bool:
    return stored.tensor.nbytes == stored.storage.stop - stored.storage.start


def _first_bytes(stored: StoredTensor) -> bytes:
    itemsize = stored.tensor.dtype.itemsize
    count = min(element_count(stored.tensor), _SAMPLE_BYTES // itemsize)
    buffer = bytearray(count * itemsize)
    stored.tensor.read(0, count, memoryview(buffer))
    return bytes(buffer)
