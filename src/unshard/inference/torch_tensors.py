"""From a described tensor to one of torch, without a second copy of the model.

Where the bytes on disk already are the tensor (one run of a file, aligned to the size of a number),
the tensor *is* the file: all tensors of a file share one private mapping of it, and writing to one
never reaches the disk. Everything else (a cast, pieces, an odd offset, the other byte order) is read
into fresh memory, at the moment the model takes it and not before.

Memory:
    Mapped tensors: nothing but the kernel's cache of the file, which it drops and reads again as it
    likes. Others: their own bytes, and about 1 MiB per thread that reads them.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from types import EllipsisType

import torch

from unshard.dtypes import DType
from unshard.storage.files import InputFile
from unshard.tensors import Run, Tensor, element_count


@dataclass(frozen=True, slots=True)
class UnreadTensor:
    """A tensor that is read when it is indexed with `...`, as transformers does with every weight.

    Attributes:
        source: What will be read.
    """

    source: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Number format."""
        return torch_dtype(self.source.dtype)

    def __getitem__(self, index: EllipsisType) -> torch.Tensor:
        """Return the whole tensor in memory of its own.

        Raises:
            DamagedFileError: A file is shorter than it should be, or has changed.
        """
        return read_tensor(self.source)


def torch_dtype(dtype: DType) -> torch.dtype:
    """Return the same number format as torch knows it."""
    found: torch.dtype = getattr(torch, dtype.name)
    return found


def torch_tensors(tensors: Mapping[str, Tensor]) -> dict[str, torch.Tensor | UnreadTensor]:
    """Return every tensor by its name: those that lie ready on disk mapped, the others unread.

    A mapped file that shrinks ends the process, and one that is overwritten changes the model.

    Raises:
        DamagedFileError: A file has changed since it was described.
        InputError: A file cannot be opened.
    """
    mappings: dict[InputFile, mmap.mmap | None] = {}
    result: dict[str, torch.Tensor | UnreadTensor] = {}
    for name, tensor in tensors.items():
        run = _run_in_place(tensor)
        mapping = None if run is None else _mapping(run.file, mappings)
        if run is None or mapping is None:
            result[name] = UnreadTensor(tensor)
        else:
            flat = torch.frombuffer(
                mapping, dtype=torch_dtype(tensor.dtype), count=element_count(tensor), offset=run.offset
            )
            result[name] = flat.reshape(tensor.shape)
    return result


def read_tensor(tensor: Tensor) -> torch.Tensor:
    """Return a tensor in fresh memory, cast where it is a cast.

    Raises:
        DamagedFileError: A file is shorter than it should be, or has changed.
    """
    fresh = torch.empty(tensor.shape, dtype=torch_dtype(tensor.dtype))
    if count := element_count(tensor):
        tensor.read(0, count, fresh.reshape(-1).view(torch.uint8).numpy().data)
    return fresh


def _run_in_place(tensor: Tensor) -> Run | None:
    """Return the one run that is the whole tensor and can be used where it lies, or None."""
    count = element_count(tensor)
    runs = tensor.runs(0, count) if count else None
    if runs is None or len(runs) != 1:
        return None
    run = runs[0]
    # A run that ends beyond its file is left to `read`, which says what is wrong.
    fits = run.offset % tensor.dtype.itemsize == 0 and run.offset + run.length <= run.file.size
    return run if fits else None


def _mapping(file: InputFile, mappings: dict[InputFile, mmap.mmap | None]) -> mmap.mmap | None:
    """Return the private mapping of a file, or None where the system does not give one."""
    if file not in mappings:
        file.require_unchanged()
        try:
            mappings[file] = mmap.mmap(file.open().number, file.size, access=mmap.ACCESS_COPY)
        except OSError:  # file systems without mappings, or a kernel that will not promise so much memory
            mappings[file] = None
    return mappings[file]
