"""torch.save's format before torch 1.6, and since then with `_use_new_zipfile_serialization=False`.

    pickle      0x1950A86A20F9469CFC6C
    pickle      1001
    pickle      a dictionary about the machine
    pickle      the object; its storages are references
    pickle      the keys of all storages, in the order in which they follow
    storages    for each: its count of numbers (8 bytes, little-endian), then the numbers

Numbers are little-endian whatever the machine, which is why the dictionary's `little_endian` does not
matter. The format has no checksums. The file is not read but walked: a storage is skipped by its size,
and the last one must end where the file ends.

Memory:
    The pickles (at most 64 MiB); no storage is read.

Source:
    torch/serialization.py (`_legacy_save`); torch/csrc/serialization.cpp (`THPStorage_writeFileRaw`).
"""

from __future__ import annotations

from collections.abc import Iterable

from unshard.errors import DamagedFileError, UnsafeFileError, UnsupportedLayoutError
from unshard.readers.rendering import cut, shown
from unshard.readers.torch_save.torch_storages import (
    Storage,
    TorchFile,
    parse_storage_reference,
    traces_of,
)
from unshard.readers.torch_save.zip_end import HINT_COPY
from unshard.readers.unpickling import Pickle, cut_short, read_pickle_at
from unshard.storage.files import InputFile

LEGACY_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
_MAGIC_NUMBER, _PROTOCOL_VERSION = 0x1950A86A20F9469CFC6C, 1001
_FIRST_READ, _PICKLE_BYTES = 1 << 20, 64 << 20


def describe_torch_legacy(file: InputFile) -> TorchFile:
    """Return what `file` holds, which begins with `LEGACY_MAGIC`.

    Raises:
        DamagedFileError: It is cut short, or goes on after its end.
        UnsafeFileError: A pickle contradicts itself or its storages, or asks for code to be run.
        UnsupportedLayoutError: A storage is of a kind that is not read.
    """
    magic, version, _, saved, keys = _read_pickles(file, 5)
    if magic.value != _MAGIC_NUMBER or version.value != _PROTOCOL_VERSION:
        raise UnsupportedLayoutError(
            file.path,
            "is of a version of torch's legacy format that is not known",
            saw=shown(version.value),
            expected=str(_PROTOCOL_VERSION),
        )
    sizes = _sizes(file, saved.references)
    return TorchFile(
        file=file,
        value=saved.value,
        storages=_walk(file, keys.stop, _ordered_keys(file, keys.value, sizes), sizes),
        byte_order="little",
        classes=saved.classes,
        facts=("torch's legacy format",),
        traces=traces_of(saved),
    )


def _read_pickles(file: InputFile, count: int) -> list[Pickle]:
    """Return the pickles at the beginning of the file, reading no more of it than they need."""
    data = file.read(0, min(_FIRST_READ, file.size))
    pickles: list[Pickle] = []
    while len(pickles) < count:
        pickle = read_pickle_at(data, pickles[-1].stop if pickles else 0, file.path)
        if pickle is not None:
            pickles.append(pickle)
        elif len(data) == file.size:
            raise cut_short(file.path, file.size)
        elif len(data) >= _PICKLE_BYTES:
            saw = f"more than {_PICKLE_BYTES:,} bytes"
            raise UnsafeFileError(file.path, "has pickles that are too large", saw=saw)
        else:
            data = file.read(0, min(8 * len(data), _PICKLE_BYTES, file.size))
    return pickles


def _sizes(file: InputFile, references: Iterable[object]) -> dict[str, tuple[int, int]]:
    """Return the count and the size of the numbers of every storage, as its first reference says."""
    sizes: dict[str, tuple[int, int]] = {}
    for value in references:
        reference = parse_storage_reference(value, file.path)
        if reference is None:
            continue
        if reference.dtype is None:  # its size is unknown, so what follows it cannot be found
            raise UnsupportedLayoutError(file.path, f"holds a {cut(reference.kind)}, which is not read")
        count, size = sizes.setdefault(reference.key, (reference.count, reference.dtype.itemsize))
        if count * size != reference.count * reference.dtype.itemsize:
            raise UnsafeFileError(
                file.path,
                f"describes storage `{cut(reference.key)}` in two ways",
                saw=f"{count} x {size} bytes, and {reference.count} x {reference.dtype}",
            )
    return sizes


def _ordered_keys(file: InputFile, value: object, sizes: dict[str, tuple[int, int]]) -> list[str]:
    """Return the keys in the order of the storages; they must be those that are referred to."""
    keys = [key for key in value if isinstance(key, str)] if isinstance(value, list) else []
    if not isinstance(value, list) or len(keys) != len(value) or len(set(keys)) != len(keys):
        raise UnsafeFileError(file.path, "has no proper list of its storages", saw=shown(value))
    if set(keys) != sizes.keys():
        raise UnsafeFileError(
            file.path,
            "lists other storages than its tensors need",
            saw=f"{len(keys)} listed",
            expected=f"{len(sizes)} needed",
        )
    return keys


def _walk(file: InputFile, at: int, keys: list[str], sizes: dict[str, tuple[int, int]]) -> dict[str, Storage]:
    """Return where every storage is; they follow one another from `at` to the end of the file."""
    storages = {}
    for done, key in enumerate(keys):
        expected, size = sizes[key]
        start, stop = at + 8, at + 8 + expected * size
        if stop > file.size:
            raise DamagedFileError(
                file.path,
                f"is truncated in storage {done + 1} of {len(keys)}",
                saw=f"{file.size:,} bytes",
                expected=f"at least {stop:,}",
                hint=HINT_COPY,
            )
        count = int.from_bytes(file.read(at, start), "little")
        if count != expected:
            raise DamagedFileError(
                file.path,
                f"has a storage `{cut(key)}` of another length than its tensors say",
                saw=f"{count} numbers",
                expected=str(expected),
                hint=HINT_COPY,
            )
        storages[key] = Storage(key, start, stop, None)
        at = stop
    if at != file.size:
        raise DamagedFileError(
            file.path, "goes on after its end", saw=f"{file.size:,} bytes", expected=f"{at:,}", hint=HINT_COPY
        )
    return storages
