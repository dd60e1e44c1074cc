"""What torch.save wrote, as records: the object, and where the bytes of its storages are.

A storage is a stretch of bytes that tensors are views of. The pickle refers to it by a persistent id:

    ("storage", class, key, location, count)          of the zip format
    ("storage", class, key, location, count, view)    of the legacy format; view is (key, first, count)

The count is in numbers of the class's format, or in bytes where the class is untyped. Where a storage
was saved from (`cuda:3`) does not matter to what it holds.

Source:
    torch/serialization.py (`persistent_id` in `_save` and `_legacy_save`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from unshard.checkpoint import Traces
from unshard.dtypes import BY_STORAGE, DTYPES, DType
from unshard.errors import UnsafeFileError
from unshard.readers.rendering import cut, shown
from unshard.readers.unpickling import Global, Pickle
from unshard.storage.files import InputFile

TOO_MANY = 1 << 62  # no count of anything in a file reaches this
_DEVICE = re.compile(r"[a-z]{1,16}(:\d{1,5})?")


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes `start` to `stop` of a file, which tensors are views of.

    Attributes:
        key: What the pickle calls it.
        start: Its first byte in the file.
        stop: After its last byte.
        crc32: The writer's checksum, or None where there is none.
    """

    key: str
    start: int
    stop: int
    crc32: int | None


@dataclass(frozen=True, slots=True)
class TorchFile:
    """What `torch.save` wrote, read as data.

    Attributes:
        file: The file.
        value: The object that was saved, inert.
        storages: Every storage by its key.
        byte_order: How numbers of more than one byte are stored.
        classes: Full names of all classes and functions the pickle mentions.
        facts: What the container says of itself, in words.
        traces: What it tells of the program that wrote it.
    """

    file: InputFile
    value: object
    storages: Mapping[str, Storage]
    byte_order: Literal["little", "big"]
    classes: tuple[str, ...]
    facts: tuple[str, ...]
    traces: Traces

    @property
    def has_checksums(self) -> bool:
        """Whether every byte of a storage has a checksum."""
        return all(s.crc32 is not None for s in self.storages.values() if s.stop > s.start)


@dataclass(frozen=True, slots=True)
class StorageReference:
    """What a persistent id says of a storage.

    Attributes:
        key: Which storage.
        kind: The name of its class.
        dtype: The number format its class stands for: bytes where the class is untyped, None where
            it is one that is not read.
        count: Numbers of that format in the whole storage.
        view: (first, count) of the part that is meant, or None where it is the whole.
    """

    key: str
    kind: str
    dtype: DType | None
    count: int
    view: tuple[int, int] | None


def parse_storage_reference(value: object, subject: object) -> StorageReference | None:
    """Return what a persistent id says of a storage, or None where it refers to something else.

    Raises:
        UnsafeFileError: It is not what torch writes.
    """
    match value:
        case ("module", *_):
            return None
        case ("storage", Global(path=path), str(key), str() | None, int(count), *view) if len(view) <= 1:
            pass
        case _:
            raise impossible(subject, "has a reference to a storage that torch does not write")
    part: tuple[int, int] | None = None
    match view:
        case [] | [None]:
            pass
        case [(_, int(first), int(length))] if first >= 0 and length >= 0 and first + length <= count:
            part = (first, length)
        case _:
            raise impossible(subject, f"views a part of storage `{cut(key)}` that is not in it")
    if type(count) is not int or not 0 <= count < TOO_MANY:
        raise impossible(subject, f"has a storage `{cut(key)}` of no possible length", saw=shown(count))
    return StorageReference(key, path, _storage_dtype(path), count, part)


def traces_of(pickle: Pickle, parts: Iterable[str] = ()) -> Traces:
    """Return what a file tells of the program that wrote it.

    Args:
        pickle: The object in it.
        parts: What the file has besides the object and its storages.
    """
    tags = (value[3] for value in pickle.references if isinstance(value, tuple) and len(value) > 4)
    devices = frozenset(tag for tag in tags if isinstance(tag, str) and _DEVICE.fullmatch(tag))
    return Traces(frozenset(pickle.classes), devices, frozenset(parts))


def _storage_dtype(path: str) -> DType | None:
    """Return the number format of a storage class, or None where it is not read."""
    package, _, name = path.rpartition(".")
    if package not in ("torch", "torch.cuda", "torch.storage"):
        return None
    if name in ("UntypedStorage", "_UntypedStorage"):
        return DTYPES["uint8"]
    return BY_STORAGE.get(name)


def impossible(
    subject: object, problem: str, *, saw: str | None = None, expected: str | None = None
) -> UnsafeFileError:
    """Return the error for what torch could not have saved."""
    hint = "torch.save does not write such a file. Ask whoever made it for a plain state dict."
    return UnsafeFileError(subject, problem, saw=saw, expected=expected, hint=hint)
