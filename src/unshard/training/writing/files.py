"""Output files written by many ranks at once, each its own bytes, in place.

First the bytes that several ranks hold in turns, in rounds: what a rank has of them goes to the one that
writes them. Then every rank writes what it holds alone. Nobody waits for anybody but in the rounds.

Memory:
    What is sent and received in a round, twice: at most 16 MiB; a block of 512 KiB, and one for casts.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unshard.engines.written_file import WrittenFile
from unshard.progress import Progress
from unshard.storage.checksums import crc32_of_parts
from unshard.training.ranks.protocol import Ranks
from unshard.training.writing.assembling import AssembledFile
from unshard.training.writing.ownership import Division, Stretch, divide, rounds_of

# What is read and written at a time: still in a core's cache when it is written.
_BLOCK_BYTES = 512 << 10

# (offset, length, CRC-32) of parts of a tensor, by file and tensor.
Checksums = Mapping[tuple[int, str], Sequence[tuple[int, int, int]]]


@dataclass
class _Writing:
    """The files as one rank writes them."""

    rank: int
    files: Sequence[AssembledFile]
    folder: Path
    subject: Path
    durable: bool
    progress: Progress
    open: dict[int, WrittenFile] = field(default_factory=dict)
    checksums: dict[tuple[int, str], list[tuple[int, int, int]]] = field(default_factory=dict)
    failure: Exception | None = None

    def put(self, number: int, start: int, block: memoryview) -> None:
        """Write bytes of a file; nothing after a failure, which `finish` raises."""
        planned = self.files[number].planned
        if number not in self.open:
            path = self.folder / planned.name
            self.open[number] = WrittenFile.reopened(path, subject=self.subject, durable=self.durable)
        self.open[number].write(start, block)
        if planned.seal is not None:
            for name, first, last in self.files[number].tensors_in(start, start + len(block)):
                self._check(number, name, first, block[first - start : last - start])
        self.open[number].sync_now_and_then(len(block))
        self.progress.advance(len(block))

    def _check(self, number: int, name: str, start: int, block: memoryview) -> None:
        parts = self.checksums.setdefault((number, name), [])
        last = parts[-1] if parts else None
        if last is not None and last[0] + last[1] == start:
            parts[-1] = (last[0], last[1] + len(block), zlib.crc32(block, last[2]))
        else:
            parts.append((start, len(block), zlib.crc32(block)))

    def close(self) -> None:
        """Close all files, after the disk has what this rank wrote if that is to be durable."""
        while self.open:
            self.open.popitem()[1].close()

    def abandon(self) -> None:
        """Close all files as they are."""
        while self.open:
            self.open.popitem()[1].abandon()


def create_files(files: Sequence[AssembledFile], folder: Path, subject: Path) -> None:
    """Create the files in their final sizes; the space for them is taken.

    Raises:
        OutputError: There is not enough of it, or the system refuses for another reason.
    """
    for file in files:
        planned = file.planned
        WrittenFile(folder / planned.name, planned.size, subject=subject, durable=False).close()


def write_files(
    files: Sequence[AssembledFile],
    folder: Path,
    ranks: Ranks,
    *,
    writers: Sequence[int],
    subject: Path,
    durable: bool,
    progress: Progress,
) -> Checksums:
    """Write the tensors and literals of all files, which exist; every rank calls it.

    Args:
        files: The files, the same on every rank.
        folder: Where they are, as this rank sees it; a rank that does not see it writes nothing.
        ranks: All ranks.
        writers: Those that see it.
        subject: What errors call the output.
        durable: Whether to wait until the disk has what was written.
        progress: Told of the bytes that this rank writes.

    Returns:
        The checksums of what all ranks wrote, of files that need them.

    Raises:
        OutputError: A rank could not write; raised on every rank.
    """
    division = divide([file.extents() for file in files], writers)
    work = _Writing(ranks.rank, files, folder, subject, durable, progress)
    mine = sum(s.length for s in (*division.own, *division.shared) if s.writer == ranks.rank)
    progress.start("Writing", mine)
    try:
        for taken in rounds_of(division.shared, lambda s: files[s.file].contributed(s)):
            _write_round(work, ranks, taken)
        found = ranks.together("writing", lambda: _write_own(work, division))
    finally:
        work.abandon()
    checksums: dict[tuple[int, str], list[tuple[int, int, int]]] = {}
    for each in found:
        for key, parts in each.items():
            checksums.setdefault(key, []).extend(parts)
    return checksums


def _write_own(work: _Writing, division: Division) -> Checksums:
    """Write what this rank holds alone, and close the files; raise what failed, now or before.

    Raises:
        OutputError: The disk is full, or the system refuses for another reason.
    """
    if work.failure is not None:
        raise work.failure
    block = memoryview(bytearray(_BLOCK_BYTES))
    for stretch in division.own:
        if stretch.writer == work.rank:
            for start, stop in _blocks(stretch):
                part = block[: stop - start]
                work.files[stretch.file].assemble(work.rank, start, stop, part, {})
                work.put(stretch.file, start, part)
    work.close()
    return work.checksums


def _blocks(stretch: Stretch) -> Iterator[tuple[int, int]]:
    """Cut a stretch where its file is at multiples of a block."""
    start = stretch.start
    while start < stretch.stop:
        stop = min(stretch.stop, (start // _BLOCK_BYTES + 1) * _BLOCK_BYTES)
        yield start, stop
        start = stop


def _write_round(work: _Writing, ranks: Ranks, taken: Sequence[Stretch]) -> None:
    """Exchange what ranks have of some stretches, and write those of this rank."""
    parts = [work.files[stretch.file].contributed(stretch) for stretch in taken]
    outgoing, incoming = dict[int, memoryview](), dict[int, memoryview]()
    for rank in range(ranks.size):
        if rank != ranks.rank:
            pairs = list(zip(taken, parts, strict=True))
            sent = sum(given[ranks.rank] for s, given in pairs if s.writer == rank and ranks.rank in given)
            filled = sum(given[rank] for s, given in pairs if s.writer == ranks.rank and rank in given)
            outgoing |= {rank: memoryview(bytearray(sent))} if sent else {}
            incoming |= {rank: memoryview(bytearray(filled))} if filled else {}
    _fill(work, taken, parts, outgoing)
    ranks.exchange("exchanging bytes", outgoing, incoming)
    outgoing.clear()
    rest = dict(incoming)
    for stretch, given in zip(taken, parts, strict=True):
        if stretch.writer == ranks.rank:
            arrived = {rank: rest[rank][: given[rank]] for rank in given if rank != ranks.rank}
            rest |= {rank: rest[rank][len(data) :] for rank, data in arrived.items()}
            _write_shared(work, stretch, arrived)


def _fill(
    work: _Writing,
    taken: Sequence[Stretch],
    parts: Sequence[Mapping[int, int]],
    outgoing: Mapping[int, memoryview],
) -> None:
    """Fill what is sent to every rank with what this one has of its stretches, one after the other."""
    rest = dict(outgoing)
    for stretch, given in zip(taken, parts, strict=True):
        if stretch.writer != work.rank and work.rank in given:
            length = given[work.rank]
            into, rest[stretch.writer] = rest[stretch.writer][:length], rest[stretch.writer][length:]
            work.files[stretch.file].give(work.rank, stretch.start, stretch.stop, into)


def _write_shared(work: _Writing, stretch: Stretch, arrived: Mapping[int, memoryview]) -> None:
    """Write a stretch; what fails is raised later, for the others go on sending."""
    if work.failure is not None:
        return
    block = memoryview(bytearray(stretch.length))
    try:
        work.files[stretch.file].assemble(work.rank, stretch.start, stretch.stop, block, arrived)
        work.put(stretch.file, stretch.start, block)
    except Exception as error:  # noqa: BLE001 - raised by `_write_own`
        work.failure = error


def seal_files(files: Sequence[AssembledFile], folder: Path, checksums: Checksums, *, subject: Path) -> None:
    """Write what the checksums of tensors complete, where a file needs it; one rank calls it.

    Raises:
        OutputError: The system does not let us.
    """
    for number, file in enumerate(files):
        planned = file.planned
        if planned.seal is None:
            continue
        whole = {p.name: crc32_of_parts(checksums.get((number, p.name), ())) for p in planned.placements}
        written = WrittenFile.reopened(folder / planned.name, subject=subject, durable=False)
        for offset, data in planned.seal(whole):
            written.write(offset, memoryview(data))
        written.close()
