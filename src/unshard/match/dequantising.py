"""Quantised weights as plain tensors that are computed when they are read: one function for every format.

Of tensors that are metadata (the state of bitsandbytes, a shape) the few bytes are read at once.

Source:
    bitsandbytes/functional.py (`dequantize_4bit`, `QuantState.from_dict`) and _ops.py
    (`int8_vectorwise_dequant`); transformers/integrations/finegrained_fp8.py (`Fp8Dequantize`) and mxfp4.py
    (`convert_moe_packed_tensors`); compressed_tensors/quantization/lifecycle/forward.py (`dequantize`);
    torchao/quantization/quant_primitives.py (`dequantize_affine`); AutoGPTQ, qlinear_cuda_old.py; AutoAWQ,
    utils/packing_utils.py.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from unshard.dtypes import DTYPES, FLOAT32, DType
from unshard.match.quantised_groups import Group, Tensors
from unshard.recipes.quantised import (
    AWQ_SHIFTS,
    BNB4,
    BNB8,
    E2M1,
    FP4,
    FP8,
    GPTQ,
    MXFP4,
    NF4,
    PACKED,
    TORCHAO,
)
from unshard.tensors import DescribedTensor, element_count
from unshard.tensors.computed import computed_tensor
from unshard.tensors.dequantising import DequantisedSource, Grid
from unshard.tensors.unpacking import unpacked
from unshard.tensors.views import permute, reshape

Settings = Mapping[str, object]

_MOST_STATE_BYTES = 4096
_NIBBLES_LOW_FIRST, _NIBBLES_HIGH_FIRST = (0, 4), (4, 0)
_INT8_FACTOR = 7.874015718698502e-3  # 1 / 127, as bitsandbytes writes it
_USUAL_BLOCK = (128, 128)  # of DeepSeek-V3, and of transformers where nothing is said
_MX_BLOCK = 32
# Layers that hold their matrix the other way round. Source: transformers, pytorch_utils.py (`Conv1D`);
# integrations/bitsandbytes.py (the matrix is transposed before it is quantised).
_CONV1D = re.compile(r"\.(c_attn|c_proj|c_fc|q_attn)\.weight$")


class NotDequantisedError(ValueError):
    """A quantised weight lies in a way that is not known; the message says what."""


def dequantise(group: Group, tensors: Tensors, settings: Settings) -> DescribedTensor:
    """Return the weight that a group of tensors is.

    Args:
        group: A whole one.
        tensors: The tensors of the checkpoint.
        settings: The `quantization_config` that belongs to it; empty where there is none.

    Raises:
        NotDequantisedError: It lies in a way that is not known.
    """
    form = _FORMS.get(group.kind)
    if form is None:
        raise NotDequantisedError(f"{group.kind} is not dequantised")
    if group.kind in (BNB4, BNB8) and _CONV1D.search(group.weight):
        raise NotDequantisedError("transformers turns matrices of GPT-2's kind round, then quantises them")
    assert group.values is not None
    parts = {role: tensors[name] for role, name in group.parts.items()}
    try:
        return form(tensors[group.values], parts, settings)
    except ValueError as error:
        raise NotDequantisedError(str(error)) from error


Parts = Mapping[str, DescribedTensor]


@dataclass(frozen=True, slots=True)
class State4Bit:
    """What bitsandbytes says of one 4-bit weight.

    Attributes:
        code: What its numbers stand for.
        block: How many have one scale.
        dtype: What it was before, and is again.
        shape: Its shape.
        nested_block: How many scales have one scale of their own.
        nested_offset: What is added to the scales then.
    """

    code: tuple[float, ...]
    block: int
    dtype: DType
    shape: tuple[int, ...]
    nested_block: int
    nested_offset: float


def read_state(tensor: DescribedTensor) -> State4Bit:
    """Return the state that a small tensor of bytes holds as JSON.

    Raises:
        ValueError: It is none.
    """
    if tensor.dtype.itemsize != 1 or tensor.nbytes > _MOST_STATE_BYTES:
        raise ValueError(f"its quant_state is {tensor.nbytes:,} bytes of {tensor.dtype}, not JSON")
    try:
        said = json.loads(tensor.numpy().tobytes())
        shape = tuple(said["shape"])
        dtype = DTYPES[said["dtype"]]
        state = State4Bit(
            {"nf4": NF4, "fp4": FP4}[said["quant_type"]],
            said["blocksize"],
            dtype,
            shape,
            said.get("nested_blocksize", 1),
            float(said.get("nested_offset", 0.0)),
        )
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
        raise ValueError(f"its quant_state cannot be read: {type(error).__name__} {error}") from error
    counts = (*shape, state.block, state.nested_block)
    if not shape or dtype.kind != "float" or not all(type(n) is int and n > 0 for n in counts):
        raise ValueError(f"its quant_state means nothing: shape {list(shape)}, block {state.block}, {dtype}")
    return state


def _four_bit(values: DescribedTensor, parts: Parts, settings: Settings) -> DescribedTensor:
    state = read_state(parts["quant_state"])
    count = math.prod(state.shape)
    numbers = unpacked(values, (1, count), word_bytes=1, shifts=_NIBBLES_HIGH_FIRST, bits=4)
    absmax = _absmax(parts, state, -(-count // state.block))
    grid = Grid(absmax, (1, state.block), (1, 1))
    source = DequantisedSource(numbers, 1, count, grid, state.dtype, state.code)
    return computed_tensor(source, state.shape, state.dtype)


def _absmax(parts: Parts, state: State4Bit, blocks: int) -> DescribedTensor:
    """Return the scales of 4-bit blocks, which may be quantised themselves."""
    absmax = _as_row(parts["absmax"], blocks, "absmax")
    if absmax.dtype.kind == "float":
        return absmax
    table = parts["nested_quant_map"]
    if element_count(table) != 256 or table.dtype.kind != "float" or absmax.dtype.name != "uint8":
        raise ValueError(
            f"its nested_quant_map has {element_count(table):,} numbers of {table.dtype}, not 256"
        )
    nested = _as_row(parts["nested_absmax"], -(-blocks // state.nested_block), "nested_absmax")
    grid = Grid(nested, (1, state.nested_block), (1, 1))
    source = DequantisedSource(absmax, 1, blocks, grid, code=table, offset=state.nested_offset)
    return computed_tensor(source, (1, blocks), FLOAT32)


def _as_row(tensor: DescribedTensor, count: int, what: str) -> DescribedTensor:
    if element_count(tensor) != count:
        raise ValueError(f"its {what} has {element_count(tensor):,} numbers, and {count:,} are needed")
    return reshape(tensor, (1, count))


def _eight_bit(values: DescribedTensor, parts: Parts, settings: Settings) -> DescribedTensor:
    _require(values, "int8", 2)
    form = parts.get("weight_format")
    if form is not None and (element_count(form) != 1 or form.numpy().reshape(-1)[0] != 0):
        raise ValueError("its weight_format is one of a GPU, not rows")
    rows, width = values.shape
    scales = reshape(_as_row(parts["SCB"], rows, "SCB"), (rows, 1))
    source = DequantisedSource(
        values, rows, width, Grid(scales, (1, width), (rows, rows)), factor=_INT8_FACTOR
    )
    return computed_tensor(source, values.shape, FLOAT32)


def _scaled(values: DescribedTensor, parts: Parts, settings: Settings) -> DescribedTensor:
    """Return numbers of 8 bits, or pairs of E2M1, times the scales of blocks, rows, or everything."""
    scale = parts["scale_inv"] if "scale_inv" in parts else parts["scale"]
    code = None
    if "scale_2" in parts or (values.dtype.name == "int8" and "scale_inv" in parts):
        shape = (*values.shape[:-1], 2 * values.shape[-1])
        values, code = unpacked(values, shape, word_bytes=1, shifts=_NIBBLES_LOW_FIRST, bits=4), E2M1
    elif values.dtype.itemsize != 1 or values.dtype.name == "uint8":
        raise ValueError(f"its numbers are {values.dtype}, of which nothing tells what they stand for")
    if "global_scale" in parts:
        raise ValueError("it has a global scale, as NVFP4 of compressed-tensors")
    if "scale_2" in parts:
        scale = _twice_scaled(scale, parts["scale_2"])
    grid = _grid(values.shape, scale, parts.get("zero_point"), settings)
    groups = parts.get("g_idx")
    if groups is not None:
        grid = _grouped(grid, groups, values.shape[-1])
    width = values.shape[-1]
    source = DequantisedSource(values, math.prod(values.shape[:-1]), width, grid, code=code)
    return computed_tensor(source, values.shape, FLOAT32)


def _twice_scaled(scale: DescribedTensor, second: DescribedTensor) -> DescribedTensor:
    """Return scales that have a scale for all of them: NVFP4."""
    if element_count(second) != 1 or len(scale.shape) != 2:
        raise ValueError(f"its second scale is {list(second.shape)}, not one number")
    rows, width = scale.shape
    grid = Grid(reshape(second, (1, 1)), (rows, width), (rows, 1))
    return computed_tensor(DequantisedSource(scale, rows, width, grid), scale.shape, FLOAT32)


def _grid(
    shape: Sequence[int], scale: DescribedTensor, zeros: DescribedTensor | None, settings: Settings
) -> Grid:
    """Return the grid that scales are over tensors of a shape.

    Raises:
        ValueError: They do not fit it.
    """
    if len(shape) < 2:
        raise ValueError(f"it is {list(shape)}, no matrix")
    *leading, rows, width = shape
    many = math.prod(leading)
    if element_count(scale) == 1:
        parts, block = (1, 1), (many * rows, width)
        grid_shape, matrix = (1, 1), (many * rows, 1)
    else:
        if len(shape) == 2 and scale.shape in ((rows,), (rows, 1)):
            parts = (rows, 1)
        elif len(scale.shape) == len(shape) and list(scale.shape[:-2]) == leading:
            parts = cast("tuple[int, int]", scale.shape[-2:])
        else:
            raise ValueError(f"its scales are {list(scale.shape)}, and it is {list(shape)}")
        block = _block(rows, width, parts, settings)
        grid_shape, matrix = (many * parts[0], parts[1]), (rows, parts[0])
    if zeros is not None and element_count(zeros) != element_count(scale):
        raise ValueError(f"its zero points are {list(zeros.shape)}, and its scales {list(scale.shape)}")
    return Grid(
        reshape(scale, grid_shape), block, matrix, None if zeros is None else reshape(zeros, grid_shape)
    )


def _block(rows: int, width: int, parts: tuple[int, int], settings: Settings) -> tuple[int, int]:
    """Return how large the blocks are of which a matrix has so many: said, usual, or all of one size.

    Raises:
        ValueError: None of these.
    """
    said = settings.get("weight_block_size")
    known = [_USUAL_BLOCK]
    if isinstance(said, list) and len(said) == 2 and all(type(n) is int and n > 0 for n in said):
        known = [(said[0], said[1])]
    for block in known:
        if (-(-rows // block[0]), -(-width // block[1])) == parts:
            return block
    if 0 in parts or rows % parts[0] or width % parts[1]:
        raise ValueError(f"its scales are {list(parts)}, which is no grid over {rows} x {width}")
    return rows // parts[0], width // parts[1]


def _grouped(grid: Grid, groups: DescribedTensor, width: int) -> Grid:
    """Return a grid whose columns are told one by one."""
    if groups.shape != (width,) or groups.dtype.kind != "int":
        raise ValueError(f"its g_idx is {list(groups.shape)} {groups.dtype}, and it has {width} columns")
    return Grid(grid.scales, grid.block, grid.matrix, grid.zeros, groups)


def _packed(values: DescribedTensor, parts: Parts, settings: Settings) -> DescribedTensor:
    """Return signed numbers that lie packed, and shifted to be positive, in words of 32 bits."""
    if "shape" not in parts:
        return _scaled(values, parts, settings)
    if "global_scale" in parts:
        raise ValueError("it has a global scale, as NVFP4 of compressed-tensors")
    _require(values, "int32", 2)
    told = parts["shape"]
    if element_count(told) != 2 or told.dtype.kind != "int":
        raise ValueError(f"its weight_shape is {list(told.shape)} {told.dtype}")
    rows, width = (int(n) for n in told.numpy().reshape(-1))
    bits = _bits(width, values.shape[1]) if rows == values.shape[0] and width > 0 else None
    if bits is None:
        raise ValueError(f"its weight_shape is {[rows, width]}, and it is packed in {list(values.shape)}")
    numbers = _from_words(values, (rows, width), bits)
    zeros, scale = parts.get("zero_point"), parts["scale"]
    if zeros is not None:
        zeros = _zeros_of_rows(zeros, rows, bits)
    grid = _grid((rows, width), scale, zeros, {})
    if "g_idx" in parts:
        grid = _grouped(grid, parts["g_idx"], width)
    middle = 0 if zeros is not None else 1 << (bits - 1)
    source = DequantisedSource(numbers, rows, width, grid, zero=middle)
    return computed_tensor(source, (rows, width), FLOAT32)


def _bits(width: int, words: int) -> int | None:
    return next((bits for bits in (4, 8, 2) if -(-width * bits // 32) == words), None)


def _zeros_of_rows(zeros: DescribedTensor, rows: int, bits: int) -> DescribedTensor:
    """Return zero points of which those of neighbouring rows lie in one word."""
    _require(zeros, "int32", 2)
    columns = permute(zeros, (1, 0))
    return permute(_from_words(columns, (zeros.shape[1], rows), bits), (1, 0))


def _from_words(words: DescribedTensor, shape: Sequence[int], bits: int) -> DescribedTensor:
    """Return numbers that lie in words of 32 bits, the first at the bottom."""
    return unpacked(words, shape, word_bytes=4, shifts=tuple(range(0, 32, bits)), bits=bits)


def _gptq_or_awq(values: DescribedTensor, parts: Parts, settings: Settings) -> DescribedTensor:
    _require(values, "int32", 2)
    scales, zeros = parts["scales"], parts["qzeros"]
    if len(scales.shape) != 2 or scales.dtype.kind != "float":
        raise ValueError(f"its scales are {list(scales.shape)} {scales.dtype}")
    _require(zeros, "int32", 2)
    is_awq = values.shape[1] * 8 == scales.shape[1]
    return _awq(values, scales, zeros) if is_awq else _gptq(values, scales, zeros, parts, settings)


def _awq(values: DescribedTensor, scales: DescribedTensor, zeros: DescribedTensor) -> DescribedTensor:
    """Return a weight whose rows are the columns of what AWQ stores."""
    (width, _), (groups, rows) = values.shape, scales.shape
    numbers, below = (
        permute(unpacked(each, (each.shape[0], rows), word_bytes=4, shifts=AWQ_SHIFTS, bits=4), (1, 0))
        for each in (values, zeros)
    )
    grid = _grid((rows, width), permute(scales, (1, 0)), below, {"weight_block_size": [1, width // groups]})
    return computed_tensor(DequantisedSource(numbers, rows, width, grid), (rows, width), FLOAT32)


def _gptq(
    values: DescribedTensor,
    scales: DescribedTensor,
    zeros: DescribedTensor,
    parts: Parts,
    settings: Settings,
) -> DescribedTensor:
    """Return a weight whose rows are the columns of what GPTQ stores."""
    bits, form = settings.get("bits"), settings.get("checkpoint_format", "gptq")
    if bits not in (2, 4, 8) or form not in ("gptq", "gptq_v2"):
        raise ValueError(f"quantization_config says {bits} bits in the format {form!r}")
    assert isinstance(bits, int)
    width, (groups, rows) = values.shape[0] * 32 // bits, scales.shape
    numbers = _from_words(permute(values, (1, 0)), (rows, width), bits)
    below = permute(_from_words(zeros, (groups, rows), bits), (1, 0))
    size = {"weight_block_size": [1, max(1, width // groups)]}
    grid = _grid((rows, width), permute(scales, (1, 0)), below, size)
    if "g_idx" in parts:
        grid = _grouped(grid, parts["g_idx"], width)
    # The first version of the format stores every zero point less one.
    source = DequantisedSource(numbers, rows, width, grid, zero=1 if form == "gptq" else 0)
    return computed_tensor(source, (rows, width), FLOAT32)


def _mxfp4(values: DescribedTensor, parts: Parts, settings: Settings) -> DescribedTensor:
    """Return experts whose rows are the columns of what is stored."""
    scales = parts["scales"]
    if values.dtype.itemsize != 1 or len(values.shape) != 4 or values.shape[3] != _MX_BLOCK // 2:
        raise ValueError(f"its blocks are {list(values.shape)} {values.dtype}")
    if scales.shape != values.shape[:3] or scales.dtype.name != "uint8":
        said = f"{list(scales.shape)} {scales.dtype}"
        raise ValueError(f"its scales are {said}, and its blocks {list(values.shape)}")
    experts, width, groups, half = values.shape
    rows = groups * _MX_BLOCK
    words = permute(reshape(values, (experts, width, groups * half)), (0, 2, 1))
    shape = (experts, rows, width)
    numbers = unpacked(words, shape, word_bytes=1, shifts=_NIBBLES_LOW_FIRST, bits=4, down=True)
    exponents = reshape(permute(scales, (0, 2, 1)), (experts * groups, width))
    grid = Grid(exponents, (_MX_BLOCK, 1), (rows, groups))
    source = DequantisedSource(numbers, experts * rows, width, grid, code=E2M1)
    return computed_tensor(source, shape, FLOAT32)


def _torchao(values: DescribedTensor, parts: Parts, settings: Settings) -> DescribedTensor:
    """Return a weight of one number to an element: Float8Tensor, Int8Tensor, IntxUnpackedToInt8Tensor."""
    if parts.keys() - {"scale", "zero_point"}:
        raise ValueError(f"it has parts that are not known: {', '.join(sorted(parts))}")
    return _scaled(values, parts, {})


def _require(tensor: DescribedTensor, dtype: str, dimensions: int) -> None:
    if tensor.dtype.name != dtype or len(tensor.shape) != dimensions:
        raise ValueError(f"it is {list(tensor.shape)} {tensor.dtype}, not {dimensions} dimensions of {dtype}")


_FORMS: dict[str, Callable[[DescribedTensor, Parts, Settings], DescribedTensor]] = {
    BNB4: _four_bit,
    BNB8: _eight_bit,
    FP8: _scaled,
    MXFP4: _mxfp4,
    GPTQ: _gptq_or_awq,
    PACKED: _packed,
    TORCHAO: _torchao,
}
