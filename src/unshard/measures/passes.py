"""One pass over the bytes of tensors, and of others beside them, that tells what `Measurement` holds.

A tensor is cut into jobs of a fixed number of bytes, and a job into blocks. What a block gives depends on
nothing but its numbers, and blocks and jobs are put together in their order, so any number of workers gives
the same numbers. A complex number counts as two.

Accuracy: all that is counted, the minimum and the maximum are exact, but for integers beyond 2**53. Mean,
deviation and norm have a relative error near 1e-13 (the mean in units of the mean magnitude), and do not
suffer where the mean is large: numbers of at most 16 bits are counted one by one, and wider ones are summed
in float64, as distances to the mean of each block. The sums of a `Delta` are as good, but where both sides
have numbers of at most 16 bits: those are summed in float32, in rows of 1024 and then in float64, with a
relative error near 1e-6, and `largest` is rounded to float32. Sums too large for a float64 stay at the
largest one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from unshard.engines.workers import Job, run_jobs
from unshard.measures.buffers import Buffers
from unshard.measures.measurement import Measurement
from unshard.measures.tensor_pass import TensorPass
from unshard.progress import Progress
from unshard.tensors import Tensor


def measure(
    tensors: Mapping[str, Tensor],
    *,
    against: Mapping[str, Tensor] | None = None,
    workers: int,
    progress: Progress,
) -> dict[str, Measurement]:
    """Return the numbers of every tensor, and how far it is from the one of its name in `against`.

    Args:
        tensors: What to measure. One that is cast is measured before its cast, and `Delta.survived` tells
            what is left of the difference after it.
        against: What to hold them against. One of another shape is left out.
        workers: Threads.
        progress: Told the bytes of both sides.

    Memory:
        6 MiB for every worker, and 0.5 MiB with less than 1 KiB for every 8 MiB of each tensor that is being
        read. Bytes that several tensors share, or that are the same on both sides, are read once.

    Raises:
        DamagedFileError: A file is shorter than it says, or changes while it is read.
    """
    beside = against or {}
    passes: dict[object, TensorPass] = {}
    names: dict[str, TensorPass] = {}
    for name, tensor in tensors.items():
        other = beside.get(name)
        alike = other is not None and other.shape == tensor.shape
        each = TensorPass(tensor, other if alike else None)
        names[name] = passes.setdefault(each.identity(), each)
    progress.start("Measuring", sum(each.nbytes for each in passes.values()))
    run_jobs(_jobs(list(passes.values())), Buffers, workers=workers, progress=progress)
    for file in {place.file for each in passes.values() for side in each.sides for place in side.places}:
        file.require_unchanged()
    return {name: each.measurement() for name, each in names.items()}


def _jobs(passes: Sequence[TensorPass]) -> Iterator[Job[Buffers]]:
    """Yield the jobs, in the order on disk."""
    for each in sorted(passes, key=TensorPass.place):
        yield from each.jobs()
