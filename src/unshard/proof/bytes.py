"""Proof by bytes: every element is read again from both sides and compared bit for bit.

The source is read through its description, the output through its own headers; what was cast is cast
again. On the way the source is held against the checksums its writer left, and the output's digests
are taken, so every byte of either side is read once; those of pieces that interleave in every row, twice,
because a checksum wants them in their own order. Nothing here knows how the output was written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from unshard.engines.workers import Job, run_jobs
from unshard.errors import DamagedFileError, listed
from unshard.findings import Finding, finding
from unshard.progress import Progress
from unshard.proof.coverage import Coverage
from unshard.proof.passes import Buffers, Difference, Segment, SpanPass, TensorPass, uncast
from unshard.storage.checksums import Checksum
from unshard.tensors import Tensor, byte_count, element_count

# What a worker takes at a time, unless a digest needs the whole tensor in order.
_PIECE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class BytesProof:
    """What was compared, and what came of it.

    Attributes:
        tensors: Tensors compared.
        compared_bytes: Bytes of the output compared.
        checked_bytes: Bytes of the source that agree with the checksums its writer left.
        unchecked_bytes: Bytes of the compared tensors' sources that no checksum covers.
        digests: SHA-256 of every tensor's bytes in the output, by name; empty if not asked for.
        differences: Every tensor that differs.
    """

    tensors: int
    compared_bytes: int
    checked_bytes: int
    unchecked_bytes: int
    digests: Mapping[str, str]
    differences: tuple[Difference, ...]

    @property
    def told(self) -> dict[str, int]:
        """The numbers, for a manifest."""
        return {
            "tensors": self.tensors,
            "compared_bytes": self.compared_bytes,
            "checked_bytes": self.checked_bytes,
            "unchecked_bytes": self.unchecked_bytes,
        }

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The differences, for people."""
        return tuple(
            finding(
                "U703",
                subject=each.name,
                saw=each.saw if each.index is None else f"{each.saw} at {list(each.index)}",
                expected=f"{each.expected}; {each.elements:,} elements differ",
                remedy="Convert again. If that does not help, look for a faulty disk or memory.",
            )
            for each in self.differences
        )


def verify_bytes(
    expected: Mapping[str, Tensor],
    actual: Mapping[str, Tensor],
    *,
    checksums: Sequence[Checksum],
    workers: int,
    digests: bool,
    progress: Progress,
) -> BytesProof:
    """Return what comparing every tensor of `expected` with that of `actual` shows.

    Args:
        expected: What the output should hold, read from the source, casts included.
        actual: What the output holds.
        checksums: What the source is checked with; every one of them is checked once.
        workers: Threads.
        digests: Whether to take the SHA-256 of every tensor of `actual`, compared or not.
        progress: Told the bytes of the output that are compared, and those that are only checked.

    Memory:
        7 MiB for every worker.

    Raises:
        DamagedFileError: The source disagrees with its checksums, all of them named; or a file is
            shorter than it says, or changes while it is read.
    """
    coverage = Coverage(checksums)
    spans = {checksum: SpanPass(checksum) for checksum in checksums}
    unlike = {name: actual.get(name) for name in expected if not _alike(expected[name], actual.get(name))}
    passes = []
    for name, tensor in actual.items():
        wanted = None if name in unlike else expected.get(name)
        if wanted is not None or digests:
            segments = [] if wanted is None else list(_segments(uncast(wanted), coverage, spans))
            passes.append(TensorPass(name, wanted, tensor, segments, hashed=digests))
    left = [(span, *rest) for span in spans.values() for rest in span.unclaimed()]
    progress.start("Verifying", sum(byte_count(p.actual) for p in passes) + sum(b - a for _, a, b in left))
    run_jobs(_jobs(passes, left), Buffers, workers=workers, progress=progress)
    _require_unchanged(passes, checksums)
    _require_sound(spans.values())
    compared = [each for each in passes if each.source is not None]
    return BytesProof(
        tensors=len(compared),
        compared_bytes=sum(byte_count(each.actual) for each in compared),
        checked_bytes=sum(map(_length, spans)),
        unchecked_bytes=sum(byte_count(s) for e in compared if (s := e.source) and not coverage.covers(s)),
        digests={each.name: each.digest for each in passes if each.digest is not None},
        differences=(
            *(_unlike(name, expected[name], found) for name, found in unlike.items()),
            *(difference for each in passes if (difference := each.difference()) is not None),
        ),
    )


def _alike(expected: Tensor, actual: Tensor | None) -> bool:
    return actual is not None and (expected.dtype, expected.shape) == (actual.dtype, actual.shape)


def _unlike(name: str, expected: Tensor, actual: Tensor | None) -> Difference:
    """Return the difference of a tensor whose elements cannot be compared."""
    saw, wanted = (
        "no such tensor" if tensor is None else f"{tensor.dtype} of shape {list(tensor.shape)}"
        for tensor in (actual, expected)
    )
    return Difference(name, saw, wanted, None, element_count(expected))


def _length(checksum: Checksum) -> int:
    return checksum.stop - checksum.start


def _segments(tensor: Tensor, coverage: Coverage, spans: Mapping[Checksum, SpanPass]) -> Iterator[Segment]:
    """Yield what a pass over a tensor sees of the bytes that checksums cover and no other pass sees."""
    for each in coverage.stretches(tensor):
        span = spans[each.checksum]
        if span.claim(each.offset, each.offset + (each.stop - each.start) * tensor.dtype.itemsize):
            yield Segment(each.start, each.stop, each.offset, span)


def _jobs(passes: Sequence[TensorPass], left: Sequence[tuple[SpanPass, int, int]]) -> Iterator[Job[Buffers]]:
    """Yield the jobs: large tensors first where each is one job, else in the order on disk."""
    for each in sorted(passes, key=_order):
        count = element_count(each.actual)
        step = count if each.hashed else _PIECE_BYTES // each.actual.dtype.itemsize
        for start in range(0, max(count, 1), max(step, 1)):
            yield partial(each.read, start, min(count, start + step))
    for span, start, stop in left:
        for begin in range(start, stop, _PIECE_BYTES):
            yield partial(span.read, begin, min(stop, begin + _PIECE_BYTES))


def _order(each: TensorPass) -> tuple[int, str, int]:
    """Return what the jobs are sorted by."""
    place = next(each.actual.places, None)
    size = byte_count(each.actual) if each.hashed else 0
    return (-size, str(place.file.path), place.offset) if place else (-size, "", 0)


def _require_unchanged(passes: Sequence[TensorPass], checksums: Sequence[Checksum]) -> None:
    """Raise if a file of either side is not what it was.

    Raises:
        DamagedFileError: One changed meanwhile.
    """
    sides = (side for each in passes for side in (each.source, each.actual) if side is not None)
    read = {place.file for side in sides for place in side.places} | {c.file for c in checksums}
    for file in read:
        file.require_unchanged()


def _require_sound(spans: Iterable[SpanPass]) -> None:
    """Raise if bytes of the source disagree with their checksums.

    Raises:
        DamagedFileError: With all of them.
    """
    damaged = [span for span in spans if span.crc32() != span.checksum.crc32]
    if not damaged:
        return
    first = damaged[0].checksum
    names = [f"{s.checksum.subject} (bytes {s.checksum.start}..{s.checksum.stop})" for s in damaged]
    raise DamagedFileError(
        first.file.path,
        f"has bytes that disagree with their checksums: {listed(names)}",
        saw=f"CRC-32 {damaged[0].crc32():08x}",
        expected=f"{first.crc32:08x}",
        hint="Copy the file again from where it was trained; this copy is damaged.",
    )
