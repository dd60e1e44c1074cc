"""Memory for tensor data is bounded by the kernel, not by a number we print.

Every child imports what it needs, describes its tensors, and may then hold 64 MiB more: for writing
and for proving what was written, whatever the number of tensors and the size of the largest.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from limits import MIB, run_limited

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits private memory")

ALLOWED = 64 * MIB

CONVERT = """
import hashlib, zlib
import ml_dtypes, numpy
from pathlib import Path
from unshard.storage.checksums import Checksum
from unshard.dtypes import BFLOAT16, FLOAT32
from unshard.engines.local import run_plan
from unshard.plan import Plan
from unshard.progress import Silence
from unshard.storage.files import InputFile
from unshard.storage.folders import new_folder
from unshard.tensors import Box, CastTensor, DescribedTensor, FileSource, Piece, byte_count, whole_tensor
from unshard.proof.bytes import verify_bytes
from unshard.writers.safetensors_folder import plan_safetensors
from unshard.writers.torch_file import plan_torch_file

path, out, count, kind, extra = Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:6]
source, count = InputFile.describe(path), int(count)
rows, length = source.size // count // 4096, source.size // count // 4096 * 4096
tensors = {f"{i}": whole_tensor(FileSource.contiguous(source, i * length, (rows, 1024), FLOAT32))
           for i in range(count)}
checksums = [Checksum(source, i * length, (i + 1) * length, int(sys.argv[6]), f"{i}") for i in range(count)]
if kind in ("rows", "columns"):  # one tensor in as many pieces
    sources = [tensor.pieces[0].source for tensor in tensors.values()]
    boxes = [((i * rows, 0), ((i + 1) * rows, 1024)) if kind == "rows" else
             ((0, i * 1024), (rows, (i + 1) * 1024)) for i in range(count)]
    pieces = tuple(Piece(Box(*box), source) for box, source in zip(boxes, sources))
    tensors = {"0": DescribedTensor(boxes[-1][1], FLOAT32, pieces)}
if kind == "cast":
    tensors = {name: CastTensor(tensor, BFLOAT16) for name, tensor in tensors.items()}
files = (plan_torch_file(tensors, name="a.pt"),) if kind == "pt" else plan_safetensors(
    tensors, max_file_bytes=1 << 40)[0]
plan = Plan(out, files, (), (), (), 32 << 20)
numpy.ones(9, "f4").astype(ml_dtypes.bfloat16)
limit(int(extra))
with new_folder(out, overwrite=False, durable=False) as folder:
    run_plan(plan, folder, workers=2, durable=False, progress=Silence())
    file = InputFile.describe(folder / files[0].name)
    actual = {p.name: whole_tensor(FileSource.contiguous(file, p.start, p.tensor.shape, p.tensor.dtype))
              for p in files[0].placements}
    proof = verify_bytes(tensors, actual, checksums=checksums, workers=2, digests=True, progress=Silence())
assert not proof.differences
assert proof.checked_bytes == source.size
assert len(proof.digests) == len(tensors)
print(len(checksums))
"""


def crc32_of_zeros(length: int) -> int:
    import zlib

    block, crc32 = bytes(MIB), 0
    for start in range(0, length, MIB):
        crc32 = zlib.crc32(block[: min(MIB, length - start)], crc32)
    return crc32


@pytest.mark.parametrize(
    ("size", "count", "kind"),
    [
        (256 * MIB, 4096, "copy"),
        (1024 * MIB, 1, "cast"),
        (512 * MIB, 1, "copy"),
        (512 * MIB, 1, "pt"),
        (512 * MIB, 8, "columns"),
        (256 * MIB, 8192, "rows"),
    ],
    ids=[
        "many tensors",
        "one large cast",
        "one large copy",
        "one large tensor to pt",
        "one large tensor in columns",
        "one tensor in thousands of chunks",
    ],
)
def test_writing_and_proving_stay_within_their_memory(
    tmp_path: Path, size: int, count: int, kind: str
) -> None:
    if shutil.disk_usage(tmp_path).free < 2 * size:
        pytest.skip("there is not enough space on the disk")
    with (tmp_path / "raw").open("wb") as file:
        file.truncate(size)  # a hole, which takes no space
    crc32 = crc32_of_zeros(size // count)
    done = run_limited(CONVERT, tmp_path / "raw", tmp_path / "out", count, kind, ALLOWED, crc32)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == f"{count}\n"
    shutil.rmtree(tmp_path / "out")


def test_the_limit_is_one_that_a_copy_in_memory_breaks(tmp_path: Path) -> None:
    done = run_limited(f"limit({ALLOWED})\nkept = bytearray({ALLOWED} + (1 << 20))")
    assert "MemoryError" in done.stderr
