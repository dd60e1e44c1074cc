"""Carry out a plan on this machine.

Files are written one after another, and each in the order in which its bytes lie in the source, so
that a disk is read forward. The kernel copies what it can copy fastest; the rest passes through one
small buffer per worker. The result is the same for any number of workers.
"""

from __future__ import annotations

import threading
import zlib
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from unshard.engines.workers import Job, affordable_workers, run_jobs
from unshard.engines.written_file import WrittenFile
from unshard.plan import OutputFile, Placement, Plan, SideFile
from unshard.progress import Progress
from unshard.storage.checksums import crc32_of_parts
from unshard.storage.files import InputFile
from unshard.tensors import DescribedTensor, Run, element_count
from unshard.tensors.boxes import row_ranges

# What a worker takes at a time: large enough that taking costs nothing, small enough to share.
_PIECE_BYTES = 8 << 20
# What it gathers at a time from pieces that interleave: enough to read a long stretch of each.
_SCRATCH_BYTES = 2 << 20
# What it computes at a time: still in a core's cache when it is written.
_COMPUTED_BYTES = 512 << 10
# Its scratch, and what tensors need for a block: a cast and a strided read 1 MiB each, columns half of that.
_WORKER_BYTES = 5 << 20


def run_plan(plan: Plan, folder: Path, *, workers: int, durable: bool, progress: Progress) -> None:
    """Write every file of `plan` into the empty `folder`.

    Args:
        plan: What to write.
        folder: Where; `plan.target` is only what errors speak of.
        workers: Threads at most; fewer where the plan's budget does not pay for them.
        durable: Whether to wait until the disk has the bytes, which is done while others are written.
        progress: Told the bytes of tensors that are written.

    Memory:
        5 MiB for every worker, within `plan.budget_bytes`.

    Raises:
        DamagedFileError: A source is shorter than it says, or changed while it was read.
        OutputError: A file cannot be written, because the disk is full or for another reason.
        OptionError: The budget does not pay for one worker.
    """
    crew = affordable_workers(workers, budget_bytes=plan.budget_bytes, worker_bytes=_WORKER_BYTES)
    progress.start("Writing", plan.tensor_bytes)
    for side_file in plan.side_files:
        write_side_file(side_file, folder, subject=plan.target)
    begun: list[_FileInProgress] = []
    try:
        jobs = _jobs(plan, folder, begun, durable=durable)
        run_jobs(jobs, _new_scratch, workers=crew, progress=progress)
    finally:
        for file in begun:
            file.written.abandon()
    for source in _sources(plan):
        source.require_unchanged()


def _new_scratch() -> memoryview:
    return memoryview(bytearray(_SCRATCH_BYTES))


def write_side_file(side_file: SideFile, folder: Path, *, subject: Path) -> None:
    """Write a small file, whose bytes are known or those of another file."""
    source = None if side_file.copy_of is None else InputFile.describe(side_file.copy_of)
    content = side_file.content or b""
    size = len(content) if source is None else source.size
    written = WrittenFile(folder / side_file.name, size, subject=subject, durable=False)
    try:
        written.write(0, memoryview(content))
        if source is not None:
            for _ in written.copy(Run(source, 0, source.size), 0, _new_scratch()):
                pass
    finally:
        written.abandon()


class _FileInProgress:
    """An output file, and what is still to be done for it."""

    def __init__(self, planned: OutputFile, written: WrittenFile) -> None:
        self.planned = planned
        self.written = written
        self._lock = threading.Lock()
        self._left = sum(p.stop - p.start for p in planned.placements)
        self._checksums: defaultdict[str, list[tuple[int, int, int]]] = defaultdict(list)

    def begin(self) -> None:
        """Write what is known in advance; that is all where no tensor has an element."""
        for offset, data in self.planned.literals:
            self.written.write(offset, memoryview(data))
        if not self._left:
            self._finish()

    def account(self, name: str, offset: int, length: int, crc32: int | None) -> None:
        """Note that `length` bytes of a tensor are written; the last ones complete the file."""
        with self._lock:
            if crc32 is not None:
                self._checksums[name].append((offset, length, crc32))
            self._left -= length
            complete = not self._left
        if complete:
            self._finish()
        else:
            self.written.sync_now_and_then(length)

    def _finish(self) -> None:
        if self.planned.seal is not None:
            whole = {p.name: crc32_of_parts(self._checksums[p.name]) for p in self.planned.placements}
            for offset, data in self.planned.seal(whole):
                self.written.write(offset, memoryview(data))
        self.written.close()


def _jobs(
    plan: Plan, folder: Path, begun: list[_FileInProgress], *, durable: bool
) -> Iterator[Job[memoryview]]:
    """Yield one job for every piece of every tensor, opening the files as they are reached."""
    for planned in plan.files:
        written = WrittenFile(folder / planned.name, planned.size, subject=plan.target, durable=durable)
        file = _FileInProgress(planned, written)
        begun.append(file)
        file.begin()
        for placement in sorted(planned.placements, key=_reading_order):
            count = element_count(placement.tensor)
            for start, stop in _aligned_ranges(placement, 0, count, _PIECE_BYTES):
                yield partial(_write_piece, file, placement, start, stop)


def _reading_order(placement: Placement) -> tuple[str, int]:
    """Return where a tensor's bytes lie in the source."""
    place = next(placement.tensor.places, None)
    return (str(place.file.path), place.offset) if place else ("", 0)


def _aligned_ranges(
    placement: Placement, start: int, stop: int, step_bytes: int
) -> Iterator[tuple[int, int]]:
    """Cut elements `start` to `stop` where the output file is at multiples of `step_bytes`.

    Whole, aligned blocks are what a page cache and a disk take in the fewest operations.
    """
    size = placement.tensor.dtype.itemsize
    while start < stop:
        room = step_bytes - (placement.start + start * size) % step_bytes
        end = min(stop, start + max(1, room // size))
        yield start, end
        start = end


def _blocks(placement: Placement, start: int, stop: int, scratch_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut elements `start` to `stop` into what is read at a time."""
    tensor = placement.tensor
    if isinstance(tensor, DescribedTensor):
        return row_ranges(tensor.shape, start, stop, scratch_bytes // tensor.dtype.itemsize)
    return _aligned_ranges(placement, start, stop, _COMPUTED_BYTES)


def _write_piece(
    file: _FileInProgress, placement: Placement, start: int, stop: int, scratch: memoryview
) -> Iterator[int]:
    """Write elements `start` to `stop` of a tensor to their place."""
    size = placement.tensor.dtype.itemsize
    begin = offset = placement.start + start * size
    crc32 = 0
    # The kernel copies without telling a checksum, so the bytes of a sealed file must be seen.
    sealed = file.planned.seal is not None
    runs = None if sealed else placement.tensor.runs(start, stop)
    if runs is not None:
        for run in runs:
            yield from file.written.copy(run, offset, scratch)
            offset += run.length
    else:
        for first, last in _blocks(placement, start, stop, len(scratch)):
            block = scratch[: (last - first) * size]
            placement.tensor.read(first, last, block)
            if sealed:
                crc32 = zlib.crc32(block, crc32)
            file.written.write(offset, block)
            offset += len(block)
            yield len(block)
    file.account(placement.name, begin, offset - begin, crc32 if sealed else None)


def _sources(plan: Plan) -> set[InputFile]:
    """Return every file that tensors of the plan are read from."""
    return {
        place.file
        for planned in plan.files
        for placement in planned.placements
        for place in placement.tensor.places
    }
