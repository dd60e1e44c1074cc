"""torch.save's zip format: one pickle, and the bytes of every storage as they are in memory.

    <any name>/data.pkl       the object; its storages are references
    <any name>/data/<key>     one storage, not compressed
    <any name>/byteorder      `little` or `big`; absent before torch 2.1, which means little
    <any name>/version        of the archive; `3`
    <any name>/.format_version, .storage_alignment, .data/serialization_id    newer torch

The order of the members is free, and the archive may be part of a file. Small members may be deflated,
storages may not. Refused by name: TorchScript, torch.package, NumPy's .npz and other archives.

Memory:
    The pickle (at most 64 MiB) and one entry per storage; no storage is read.

Source:
    torch/serialization.py (`_save`); caffe2/serialize/inline_container.cc (`PyTorchStreamWriter`).
"""

from __future__ import annotations

from unshard.errors import DamagedFileError, UnknownLayoutError, UnsafeFileError, UnsupportedLayoutError
from unshard.readers.rendering import cut
from unshard.readers.torch_save.torch_storages import Storage, TorchFile, traces_of
from unshard.readers.torch_save.zip_directory import Archive, Member, describe_archive
from unshard.readers.torch_save.zip_end import HINT_REPACK
from unshard.readers.unpickling import read_pickle
from unshard.storage.files import InputFile

PICKLE_BYTES = 64 << 20
_SMALL_BYTES = 64
_NEWEST_VERSION = 10  # kMaxSupportedFileFormatVersion
# Members that not every version of torch writes.
_TELLING = frozenset((".format_version", ".storage_alignment", "byteorder", ".data/serialization_id"))

_OTHER_ARCHIVES = (
    (lambda name: name.startswith(("code/", "constants.pkl")), "a TorchScript archive (torch.jit.save)"),
    (lambda name: name.startswith(".data/extern_modules"), "a torch.package archive"),
)


def describe_torch_zip(file: InputFile, start: int, stop: int) -> TorchFile:
    """Return what bytes `start` to `stop` of `file` hold, which are an archive of torch.save.

    Raises:
        DamagedFileError: The archive is cut short, or a small member disagrees with its checksum.
        UnsafeFileError: The archive or its pickle contradicts itself, or asks for code to be run.
        UnsupportedLayoutError: It is an archive of another kind.
    """
    archive = describe_archive(file, start, stop)
    members = _below_root(file, archive)
    pickle_bytes = archive.read(members["data.pkl"], at_most=PICKLE_BYTES)
    version = _small(archive, members, "version", "3")
    if not version.isdecimal() or not 1 <= int(version) <= _NEWEST_VERSION:
        raise UnsupportedLayoutError(
            file.path, "is of a version of torch's format that is not known", saw=cut(version), expected="3"
        )
    byte_order = _small(archive, members, "byteorder", "little")
    if byte_order not in ("little", "big"):
        raise UnsafeFileError(
            file.path, "has an unknown byte order", saw=cut(byte_order), expected="little or big"
        )
    pickle = read_pickle(pickle_bytes, f"{file.path}: data.pkl")
    facts = ["torch's zip format"]
    if byte_order == "big":
        facts.append("big-endian")
    return TorchFile(
        file=file,
        value=pickle.value,
        storages=_storages(file, archive, members),
        byte_order="big" if byte_order == "big" else "little",
        classes=pickle.classes,
        facts=tuple(facts),
        traces=traces_of(pickle, _TELLING & members.keys()),
    )


def _below_root(file: InputFile, archive: Archive) -> dict[str, Member]:
    """Return the members by their names below the one folder that torch puts them in."""
    roots = {name.partition("/")[0] for name in archive.members}
    members = {name.partition("/")[2]: member for name, member in archive.members.items()}
    for belongs, what in _OTHER_ARCHIVES:
        if any(map(belongs, members)):
            raise UnsupportedLayoutError(
                file.path, f"is {what}, not a state dict", hint="Save `model.state_dict()` with torch.save."
            )
    if "data.pkl" not in members or len(roots) != 1:
        names = sorted(archive.members)
        if len(roots) == 1 and {"version", ".data/serialization_id"} & members.keys():
            raise DamagedFileError(
                file.path,
                "was never finished: torch.save stopped before it wrote `data.pkl`",
                hint="Take another checkpoint; this one holds no names and no shapes.",
            )
        if any(name.endswith(".npy") for name in names):
            raise UnsupportedLayoutError(file.path, "is an archive of NumPy (.npz), not of torch.save")
        raise UnknownLayoutError(
            file.path,
            "is a zip archive, but not one of torch.save",
            saw=f"{len(names)} members, such as `{cut(names[0])}`" if names else "no members",
            expected="one folder with `data.pkl`",
        )
    return members


def _small(archive: Archive, members: dict[str, Member], name: str, default: str) -> str:
    """Return the text of a small member, or the default where it is absent."""
    if name not in members:
        return default
    return archive.read(members[name], at_most=_SMALL_BYTES).decode("ascii", "replace").strip()


def _storages(file: InputFile, archive: Archive, members: dict[str, Member]) -> dict[str, Storage]:
    """Return every storage by its key."""
    storages = {}
    for name, member in members.items():
        if not name.startswith("data/"):
            continue
        if member.deflated:
            raise UnsupportedLayoutError(
                file.path, f"compresses its tensors, such as `{cut(name)}`", hint=HINT_REPACK
            )
        key = name.removeprefix("data/")
        crc32 = member.crc32 if archive.has_checksums else None
        storages[key] = Storage(key, member.start, member.stop, crc32)
    return storages
