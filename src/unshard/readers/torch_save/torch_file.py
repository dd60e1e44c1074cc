"""A file of torch.save in whichever format, told by its first bytes; everything else is refused by name."""

from __future__ import annotations

from unshard.errors import DamagedFileError, UnknownLayoutError, UnshardError, UnsupportedLayoutError
from unshard.readers.torch_save.torch_legacy import LEGACY_MAGIC, describe_torch_legacy
from unshard.readers.torch_save.torch_storages import TorchFile
from unshard.readers.torch_save.torch_zip import describe_torch_zip
from unshard.readers.torch_save.zip_end import HINT_COPY
from unshard.storage.files import InputFile

_HEAD_BYTES = 512

# First bytes, what such a file is, what to do.
_OTHERS: tuple[tuple[bytes, str, str | None], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer: the file itself was not fetched", "git lfs pull"),
    (b"\x1f\x8b", "compressed with gzip", "Decompress it first: gunzip FILE"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "Decompress it first: zstd -d FILE"),
    (b"\xfd7zXZ\0", "compressed with xz", "Decompress it first: unxz FILE"),
    (b"BZh", "compressed with bzip2", "Decompress it first: bunzip2 FILE"),
    (b"\x04\x22\x4d\x18", "compressed with lz4", "Decompress it first: lz4 -d FILE"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "Unpack it first: 7z x FILE"),
    (b"GGUF", "a GGUF file of llama.cpp, made for inference already", None),
    (b"\x89HDF", "an HDF5 file (Keras, TensorFlow)", None),
    (b"\x93NUMPY", "a NumPy array", None),
)
_WEB_PAGES = (b"<!doctype html", b"<html", b"<?xml")
_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(6))
_OLDEST_MEMBERS = (b"sys_info", b"pickle", b"storages", b"tensors")


def is_torch_file(head: bytes) -> bool:
    """Return whether torch.save wrote a file that begins with `head`, in a format that is read."""
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06")) or LEGACY_MAGIC[2:] in head[:32]


def describe_torch_file(file: InputFile) -> TorchFile:
    """Return what torch.save wrote into `file`.

    Raises:
        DamagedFileError: It is empty, cut short, or overwritten.
        UnsafeFileError: It contradicts itself, or asks for code to be run.
        UnsupportedLayoutError: It is of a kind that is recognised, and not read.
        UnknownLayoutError: It is of no known kind.
    """
    head = file.read(0, min(_HEAD_BYTES, file.size))
    if not is_torch_file(head):
        raise explain_unreadable(file, head)
    if head.startswith(b"PK"):
        return describe_torch_zip(file, 0, file.size)
    return describe_torch_legacy(file)


def explain_unreadable(file: InputFile, head: bytes) -> UnshardError:
    """Return the error that says what a file is that begins with `head` and cannot be read."""
    if not head:
        return DamagedFileError(
            file.path, "is empty", saw="0 bytes", hint="Its save or its copy did not begin; take another one."
        )
    if not head.strip(b"\0"):
        return DamagedFileError(
            file.path,
            f"begins with zeros: its {file.size:,} bytes were reserved, not written",
            hint=HINT_COPY,
        )
    for magic, what, hint in _OTHERS:
        if head.startswith(magic):
            return UnsupportedLayoutError(file.path, f"is {what}", hint=hint)
    if head[257:262] == b"ustar" or (head[:100].rstrip(b"\0") in _OLDEST_MEMBERS and file.size >= 512):
        return _tar(file, head)
    if head.lstrip().lower().startswith(_WEB_PAGES):
        return DamagedFileError(file.path, "is a web page: what was downloaded is an error, not the file")
    if head.startswith(_PICKLES):
        return UnsupportedLayoutError(
            file.path,
            "is a pickle of Python, not a file of torch.save",
            hint="If it holds tensors, load it where it was made and save them with torch.save.",
        )
    return UnknownLayoutError(
        file.path,
        "is not a checkpoint",
        saw=f"a file that begins with {head[:8]!r}",
        expected="torch.save's zip or legacy format, or safetensors",
    )


def _tar(file: InputFile, head: bytes) -> UnsupportedLayoutError:
    if head[:100].rstrip(b"\0") in _OLDEST_MEMBERS:
        return UnsupportedLayoutError(
            file.path,
            "is in the tar format that torch.save wrote before version 0.1.10",
            hint="Load it with an old torch and save it again: torch.save(torch.load(FILE), NEW)",
        )
    return UnsupportedLayoutError(
        file.path,
        "is a tar archive (NeMo's .nemo files are)",
        hint="Unpack it, and give the folder: tar -xf FILE",
    )
