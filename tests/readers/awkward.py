"""State dicts that hold everything that is easily read wrong, and how to compare what was read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch

from unshard.tensors import DescribedTensor

Value = tuple[tuple[int, ...], str, bytes]

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_SMALL_FLOATS = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


def plain_tensors() -> OrderedDict[str, torch.Tensor]:
    """Return contiguous tensors of every dtype and of shapes that are easily got wrong."""
    generator = torch.Generator().manual_seed(7)
    state = OrderedDict(
        (f"dtype.{dtype}".removesuffix("torch.").replace("torch.", ""), _random(dtype, generator))
        for dtype in (*_FLOATS, *_SMALL_FLOATS, *_INTEGERS, *_UNSIGNED)
    )
    state["bool"] = torch.tensor([[True, False, True]])
    state["complex"] = torch.randn(2, 3, dtype=torch.complex64, generator=generator)
    state["number"] = torch.tensor(3.25)
    state["step"] = torch.tensor(12345678901)
    state["empty"] = torch.empty(0)
    state["no rows"] = torch.empty(0, 4, dtype=torch.bfloat16)
    state["nan.payload"] = torch.tensor([0x7FC00001, 0x7F800001, -1], dtype=torch.int32).view(torch.float32)
    return state


def awkward_tensors() -> OrderedDict[str, torch.Tensor]:
    """Return the plain tensors, and views of storages that other tensors use too."""
    state = plain_tensors()
    storage = torch.arange(600, dtype=torch.float32)
    state["view.offset"] = storage[100:130].view(5, 6)
    state["view.larger_storage"] = storage[:7]
    state["view.transposed"] = storage[:60].view(6, 10).t()
    state["view.stepped"] = storage[3:400:7]
    state["view.permuted"] = storage[:120].view(4, 5, 6).permute(2, 0, 1)
    state["view.column"] = storage[:64].view(8, 8)[:, 3:4]
    state["expanded"] = torch.tensor([1.5, 2.5]).expand(3, 2)
    state["tied.embedding"] = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    state["tied.head"] = state["tied.embedding"]
    state["parameter"] = torch.nn.Parameter(torch.ones(3))
    state["parameter.frozen"] = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    state["parameter.with_state"] = torch.nn.Parameter(torch.ones(2))
    state["parameter.with_state"].tag = "x"
    state["buffer"] = torch.nn.Buffer(torch.ones(4))
    state["with_attributes"] = torch.ones(2)
    state["with_attributes"]._has_been_cloned = True
    state["complex128"] = torch.randn(3, dtype=torch.complex128)
    return state


def _random(dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    size = torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(0, 256, (3, 5, size), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(3, 5)


def true_value(tensor: torch.Tensor) -> Value:
    """Return shape, dtype and bytes of a tensor in memory."""
    flat = tensor.detach().contiguous().reshape(-1)
    raw = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), raw


def read_value(tensor: DescribedTensor) -> Value:
    """Return shape, dtype and bytes of a described tensor."""
    buffer = bytearray(tensor.nbytes)
    tensor.read(0, tensor.nbytes // tensor.dtype.itemsize, memoryview(buffer))
    return tensor.shape, tensor.dtype.name, bytes(buffer)


def true_values(tensors: Mapping[str, torch.Tensor]) -> dict[str, Value]:
    return {name: true_value(tensor) for name, tensor in tensors.items()}


def read_values(tensors: Mapping[str, DescribedTensor]) -> dict[str, Value]:
    return {name: read_value(tensor) for name, tensor in tensors.items()}
