"""Proof by the record: whether tensors are, bit for bit, what the ranks of the training held.

A record has digests of boxes, taken by the ranks over what each of them owned, in the dtype of training and
in those the model is served in. Here the same boxes are read from the files of a model, whoever wrote them.

Memory:
    1 MiB for every worker.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from unshard.checks.words import named
from unshard.engines.workers import Job, run_jobs
from unshard.findings import Finding, finding
from unshard.progress import Progress
from unshard.proof.levels import Level, verdict_of
from unshard.record.comparing import repeats_another
from unshard.record.description import BoxDigest, Record
from unshard.tensors import Box, DescribedTensor, byte_count, described_box, element_count
from unshard.tensors.views import narrow

_BLOCK_BYTES = 1 << 20
_REMEDY = (
    "Convert the checkpoint again, or fetch the folder again. If the record is that of another training or "
    "step, remove it."
)


@dataclass(slots=True)
class _Compared:
    """A tensor whose boxes are compared with the digests of its dtype."""

    name: str
    tensor: DescribedTensor
    boxes: Sequence[BoxDigest]
    wrong: list[Box] = field(default_factory=list)


def verify_record(
    record: Record, tensors: Mapping[str, DescribedTensor], *, workers: int, progress: Progress
) -> Level:
    """Return what comparing the tensors of a model with the digests of its record shows.

    Args:
        record: What training told.
        tensors: The tensors of the model, as they lie on disk.
        workers: Threads.
        progress: Told the bytes that are read.

    Raises:
        DamagedFileError: A file is shorter than it says, or changes while it is read.
    """
    findings = list(_check_presence(record, tensors))
    compared, silent = list[_Compared](), list[str]()
    for name, tensor in tensors.items():
        told = record.tensors.get(name) or record.tensors.get(record.model.ties.get(name, name))
        boxes = () if told is None else told.digests.get(tensor.dtype.name, ())
        if told is None or (element_count(tensor) and not boxes):
            silent.append(name)
        elif told.shape == tensor.shape:
            compared.append(_Compared(name, tensor, boxes))
    progress.start("Comparing with training", sum(byte_count(each.tensor) for each in compared))
    run_jobs(_jobs(compared), lambda: bytearray(_BLOCK_BYTES), workers=workers, progress=progress)
    for file in {place.file for each in compared for place in each.tensor.places}:
        file.require_unchanged()
    findings += [_differs(each) for each in compared if each.wrong]
    findings += _told_of_silence(record, tensors, silent)
    equal, verdict = [each for each in compared if not each.wrong], verdict_of(findings)
    if not compared and verdict == "sound":
        reason = "the record has no digests of these tensors in their dtypes"
        return Level("record", "not checked", (reason,), tuple(findings))
    return Level("record", verdict, (_evidence(equal, len(tensors)),), tuple(findings))


def _evidence(equal: Sequence[_Compared], total: int) -> str:
    dtypes = Counter(each.tensor.dtype.name for each in equal)
    boxes = sum(len(each.boxes) for each in equal)
    inside = f" ({boxes:,} boxes, {', '.join(name for name, _ in dtypes.most_common())})" if equal else ""
    return f"{len(equal):,} of {total:,} tensors are exactly what training held{inside}"


def _check_presence(record: Record, tensors: Mapping[str, DescribedTensor]) -> Iterator[Finding]:
    """Yield tensors of training that are not there, or of another shape."""
    missing = [
        name for name in record.tensors if name not in tensors and not repeats_another(name, record, tensors)
    ]
    if missing:
        yield finding(
            "U721",
            subject=named(missing),
            saw=f"{len(missing):,} of {len(record.tensors):,} tensors of training missing",
            expected="every one of them",
            remedy=_REMEDY,
        )
    for name, tensor in tensors.items():
        told = record.tensors.get(name)
        if told is not None and told.shape != tensor.shape:
            yield finding(
                "U721",
                subject=name,
                saw=f"shape {list(tensor.shape)}",
                expected=f"shape {list(told.shape)}, as training held it",
                remedy=_REMEDY,
            )


def _told_of_silence(
    record: Record, tensors: Mapping[str, DescribedTensor], silent: Sequence[str]
) -> Iterator[Finding]:
    """Yield that tensors have no digest in the dtype that they have."""
    if not silent:
        return
    dtypes = sorted({tensors[name].dtype.name for name in silent})
    known = sorted({dtype for name in silent if (t := record.tensors.get(name)) for dtype in t.digests})
    yield finding(
        "U722",
        subject=named(silent),
        saw=f"no digests of {len(silent):,} tensors in {' and '.join(dtypes)}",
        expected=f"digests in that dtype; there are some in {' and '.join(known)}" if known else None,
        remedy="Record the dtypes that the model is served in: serve_dtypes=(...) where training saves.",
    )


def _differs(each: _Compared) -> Finding:
    more = f" and {len(each.wrong) - 1:,} more of {len(each.boxes):,} boxes" if len(each.wrong) > 1 else ""
    return finding(
        "U721",
        subject=each.name,
        saw=f"other {each.tensor.dtype} bits in {described_box(each.tensor.shape, each.wrong[0])}{more}",
        expected="those that training held",
        remedy=_REMEDY,
    )


def _jobs(compared: Sequence[_Compared]) -> Iterator[Job[bytearray]]:
    """Yield one job for every box, in the order of the tensors."""
    for each in compared:
        for digest in each.boxes:
            yield partial(_compare, each, digest)


def _compare(each: _Compared, digest: BoxDigest, buffer: bytearray) -> Iterator[int]:
    """Read one box and note whether it differs, yielding how many bytes are done."""
    box = Box(digest.start, digest.stop)
    part = narrow(each.tensor, box)
    size = part.dtype.itemsize
    hasher = hashlib.sha256()
    for start in range(0, box.volume, _BLOCK_BYTES // size):
        stop = min(box.volume, start + _BLOCK_BYTES // size)
        block = memoryview(buffer)[: (stop - start) * size]
        part.read(start, stop, block)
        hasher.update(block)
        yield len(block)
    if hasher.hexdigest() != digest.sha256:
        each.wrong.append(box)  # appending is atomic: several workers may have boxes of one tensor
