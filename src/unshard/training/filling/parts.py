"""Tensors read from files straight into the memory in which a rank holds its parts of them.

Nothing is read but the elements of the part, nothing is materialised whole: where the memory is the
host's and of the same dtype, files are read into it; else blocks pass through a buffer.

Memory:
    One block of 4 MiB, what a tensor itself needs to be read (1 MiB per cast), and the pieces' geometry.
"""

from __future__ import annotations

import torch

from unshard.inference.torch_tensors import torch_dtype
from unshard.storage.files import InputFile
from unshard.tensors import Box, CastTensor, DescribedTensor, Tensor
from unshard.tensors.boxes import row_ranges, split_range
from unshard.tensors.views import narrow
from unshard.training.live.local_parts import LocalPart

_BLOCK_BYTES = 4 << 20


class Filler:
    """Fills parts, one after the other, through one buffer."""

    def __init__(self) -> None:
        self._block: memoryview | None = None
        self._files: set[InputFile] = set()

    def fill(self, part: LocalPart, tensor: Tensor) -> int:
        """Read what `part` is of `tensor` into its memory; return the bytes that it takes there.

        The tensor has the dtype of the memory already.

        Raises:
            DamagedFileError: A file is shorter than it should be, or has changed.
        """
        memory = part.elements.detach()
        assert memory.dtype == torch_dtype(tensor.dtype)
        count, size = part.box.volume, tensor.dtype.itemsize
        if not count:
            return 0
        source = narrowed(tensor, part.box)
        self._files.update(place.file for place in source.places)
        in_place = memory.device.type == "cpu" and memory.is_contiguous()
        whole = _bytes_of(memory) if in_place else self._buffer()
        for start, stop in row_ranges(part.box.shape, 0, count, _BLOCK_BYTES // size):
            if in_place:
                source.read(start, stop, whole[start * size : stop * size])
            else:
                source.read(start, stop, whole[: (stop - start) * size])
                _scatter(whole[: (stop - start) * size], memory, start, stop)
        return count * size

    def require_unchanged(self) -> None:
        """Raise unless every file that was read is still the one that was described.

        Raises:
            DamagedFileError: One has changed since.
        """
        for file in self._files:
            file.require_unchanged()

    def _buffer(self) -> memoryview:
        if self._block is None:
            self._block = memoryview(bytearray(_BLOCK_BYTES))
        return self._block


def narrowed(tensor: Tensor, box: Box) -> Tensor:
    """Return the part of a tensor that lies in `box`; of a cast, the cast of the part."""
    if isinstance(tensor, CastTensor):
        return CastTensor(narrowed(tensor.source, box), tensor.dtype, tensor.tally)
    assert isinstance(tensor, DescribedTensor)
    return tensor if box == Box.whole(tensor.shape) else narrow(tensor, box)


def _bytes_of(memory: torch.Tensor) -> memoryview:
    """Return the bytes of contiguous memory of the host."""
    flat = memory.as_strided((memory.numel(),), (1,))  # dimensions of one element may have any stride
    view: memoryview = flat.view(torch.uint8).numpy().data
    return view


def _scatter(block: memoryview, memory: torch.Tensor, start: int, stop: int) -> None:
    """Copy elements `start` to `stop` of `memory`, in row-major order, from a block that holds just these."""
    values = torch.frombuffer(block, dtype=memory.dtype)
    done = 0
    for box in split_range(memory.shape, start, stop):
        target = memory[tuple(map(slice, box.start, box.stop))]
        target.copy_(values[done : done + box.volume].view(box.shape))
        done += box.volume
