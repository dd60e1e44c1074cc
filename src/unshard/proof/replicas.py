"""Whether parts of tensors that the checkpoint holds twice are the same in both places."""

from __future__ import annotations

from unshard.checkpoint import Checkpoint, Replica
from unshard.findings import Finding, finding
from unshard.progress import Progress
from unshard.proof.bytes import verify_bytes
from unshard.proof.levels import Level, verdict_of
from unshard.sizes import format_size
from unshard.tensors import Box, DescribedTensor, Piece, Source


def verify_replicas(checkpoint: Checkpoint, *, workers: int, progress: Progress) -> Level:
    """Return what comparing every replica with the part it repeats shows, bit for bit.

    Memory:
        As `verify_bytes`.

    Raises:
        DamagedFileError: A file is shorter than it says, or changes while it is read.
    """
    kept, other, parts = {}, {}, {}
    for number, replica in enumerate(checkpoint.replicas):
        name = f"{number} {replica.name}"  # a part may lie in three places
        kept[name] = _part(checkpoint, replica, replica.kept)
        other[name] = _part(checkpoint, replica, replica.other)
        parts[name] = replica
    proof = verify_bytes(kept, other, checksums=(), workers=workers, digests=False, progress=progress)
    findings = tuple(
        _differ(parts[each.name], each.saw, each.expected, each.elements) for each in proof.differences
    )
    size = format_size(proof.compared_bytes)
    compared = f"{len(parts):,} parts that lie in several places, {size}, compared bit for bit"
    return Level("replicas", verdict_of(findings), (compared,), findings)


def _part(checkpoint: Checkpoint, replica: Replica, source: Source) -> DescribedTensor:
    shape = replica.box.shape
    return DescribedTensor(shape, checkpoint[replica.name].dtype, (Piece(Box.whole(shape), source),))


def _differ(replica: Replica, saw: str, expected: str, elements: int) -> Finding:
    return finding(
        "U117",
        subject=replica.name,
        saw=f"{saw} in {replica.other.origin}; {elements:,} of {replica.box.volume:,} elements differ",
        expected=f"{expected}, as {replica.kept.origin} has it",
        remedy="One of the files is damaged or of another save. Copy both again.",
    )
