"""Torch files, against `torch.save`, `torch.load` and Python's zip reader."""

from __future__ import annotations

import io
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from raw_tensors import EVERY_DTYPE, awkward_tensors, raw, store
from unshard.dtypes import DTYPES
from unshard.engines.local import run_plan
from unshard.plan import Plan
from unshard.progress import Silence
from unshard.storage.files import InputFile
from unshard.tensors import FileSource, whole_tensor
from unshard.writers.torch_file import plan_torch_file

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


def write(tensors: dict[str, torch.Tensor], folder: Path, *, workers: int = 2) -> Path:
    """Write `tensors` as a plan says, and return the file."""
    planned = plan_torch_file(store(folder / "raw", tensors), name=f"model-{workers}.pt")
    plan = Plan(folder / planned.name, (planned,), (), (), (), 32 << 20)
    run_plan(plan, folder, workers=workers, durable=False, progress=Silence())
    return folder / planned.name


def saved(tensors: dict[str, torch.Tensor]) -> bytes:
    """Return what torch writes."""
    buffer = io.BytesIO()
    torch.save(OrderedDict(tensors), buffer)
    return buffer.getvalue()


# 255, 256, 999, 1000, 1001 and 2001 tensors: where a pickler's numbers get longer, and its batches end.
@pytest.mark.parametrize("count", [0, 1, 2, 255, 256, 999, 1000, 1001, 2001])
def test_the_bytes_are_those_of_torch_but_for_the_id(tmp_path: Path, count: int) -> None:
    awkward = awkward_tensors(EVERY_DTYPE)
    tensors = dict(list(awkward.items())[:count])
    tensors |= {f"more.{i}": torch.full((i % 7,), float(i)) for i in range(count - len(tensors))}
    ours, theirs = write(tensors, tmp_path).read_bytes(), saved(tensors)
    end = zipfile.ZipFile(io.BytesIO(ours)).start_dir
    assert ours[:end] == theirs[:end]
    assert theirs[end:].startswith(b"PK\3\4")
    assert b"archive/.data/serialization_id" in theirs[end:]


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_loads_every_dtype_without_trust(tmp_path: Path, mmap: bool) -> None:
    tensors = awkward_tensors(EVERY_DTYPE)
    loaded = torch.load(write(tensors, tmp_path), weights_only=True, mmap=mmap)
    assert list(loaded) == list(tensors)
    for name, tensor in tensors.items():
        found = loaded[name]
        assert (found.dtype, found.shape, found.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
        assert raw(found) == raw(tensor), name


def test_python_finds_nothing_wrong_with_the_archive(tmp_path: Path) -> None:
    archive = zipfile.ZipFile(write(awkward_tensors(EVERY_DTYPE), tmp_path))
    assert archive.testzip() is None
    assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    assert archive.read("archive/byteorder") == b"little"


def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    tensors = awkward_tensors(EVERY_DTYPE) | {"large": torch.arange(5_000_000)}
    one, four = (write(tensors, tmp_path, workers=n).read_bytes() for n in (1, 4))
    assert one == four
    assert zipfile.ZipFile(io.BytesIO(one)).testzip() is None


def test_names_need_not_be_text_that_utf8_can_hold(tmp_path: Path) -> None:
    tensors = {"a\ud800b": torch.ones(2), "": torch.zeros(2), "\n": torch.zeros(3)}
    loaded = torch.load(write(tensors, tmp_path), weights_only=True)
    assert list(loaded) == list(tensors)


def peek(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def test_archives_beyond_4_gib_are_laid_out_as_torch_does(tmp_path: Path) -> None:
    # torch leaves holes where the data would be, so its file takes no space on the disk.
    sizes = {"a": 12, "large": 5 << 30, "c": 12, "empty": 0, "limit": (1 << 32) - 1, "below": (1 << 32) - 2}
    theirs = tmp_path / "archive.pt"
    with torch.serialization.skip_data():
        torch.save(OrderedDict((k, torch.empty(n, dtype=torch.uint8)) for k, n in sizes.items()), theirs)
    source = InputFile.describe(theirs)
    uint8 = DTYPES["uint8"]
    tensors = {k: whole_tensor(FileSource.contiguous(source, 0, (n,), uint8)) for k, n in sizes.items()}

    planned = plan_torch_file(tensors, name="ours.pt")

    assert planned.seal is not None
    *descriptors, (start, directory) = planned.seal(dict.fromkeys(sizes, 0))
    for offset, known in (*planned.literals, *descriptors):
        assert peek(theirs, offset, len(known)) == known
    entries = directory[: directory.index(b"PK\6\6")]
    assert peek(theirs, zipfile.ZipFile(theirs).start_dir, len(entries)) == entries
    assert start + len(directory) == planned.size
