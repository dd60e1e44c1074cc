"""The plan: every file of the result, every byte of it, before the first one is written.

A plan is data: frozen, printable (`--dry-run`), and independent of who carries it out. An output
file is a size, a few literal bytes (headers, paddings) at fixed offsets, and tensors at fixed
offsets. Offsets are known because shapes and dtypes are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from unshard.findings import Finding
from unshard.match.model import Decision
from unshard.tensors import Tensor

# After a file's tensors are written: their CRC-32s by name -> (offset, bytes) still to be written.
Seal = Callable[[Mapping[str, int]], list[tuple[int, bytes]]]


@dataclass(frozen=True, slots=True)
class Placement:
    """A tensor and the place of its bytes in an output file.

    Attributes:
        name: The tensor's name in the output.
        tensor: Where its values come from, a cast included.
        start: Offset of its first byte.
        stop: Offset after its last byte.
    """

    name: str
    tensor: Tensor
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file that holds tensors.

    Attributes:
        name: Its name in the output folder.
        size: Its final size in bytes.
        literals: (offset, bytes) known in advance.
        placements: The tensors, by rising offset.
        seal: For formats whose headers need checksums of the data: called with the CRC-32 of every
            tensor's bytes after they are written. None where none are needed.
    """

    name: str
    size: int
    literals: tuple[tuple[int, bytes], ...]
    placements: tuple[Placement, ...]
    seal: Seal | None = None


@dataclass(frozen=True, slots=True)
class SideFile:
    """A small file beside the tensors: text made here, or a copy of the base's own.

    Attributes:
        name: Its name in the output folder.
        content: Its bytes, or None where it is a copy.
        copy_of: The file it is a copy of, or None where it is made here.
        origin: Where it comes from, in words: "base, 2 keys edited".
    """

    name: str
    content: bytes | None
    copy_of: Path | None
    origin: str

    @property
    def size(self) -> int:
        """Bytes."""
        if self.content is not None:
            return len(self.content)
        assert self.copy_of is not None
        return self.copy_of.stat().st_size


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a conversion will do.

    Attributes:
        target: The output: a folder, or one file.
        files: The files that hold tensors.
        side_files: All others but the manifest.
        decisions: One for every tensor of the checkpoint, in its order.
        findings: What a person should know before it is done.
        budget_bytes: Memory for tensor data that carrying it out may hold.
        scratch_bytes: Room that it needs where temporary files go; 0 unless tensors are compressed.
    """

    target: Path
    files: tuple[OutputFile, ...]
    side_files: tuple[SideFile, ...]
    decisions: tuple[Decision, ...]
    findings: tuple[Finding, ...]
    budget_bytes: int
    scratch_bytes: int = 0

    @property
    def output_bytes(self) -> int:
        """Bytes of the whole output, the manifest aside: the disk space it needs."""
        return sum(f.size for f in self.files) + sum(f.size for f in self.side_files)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of tensor data that will be written."""
        return sum(p.stop - p.start for f in self.files for p in f.placements)
