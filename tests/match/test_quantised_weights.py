"""Quantised weights are the plain ones that their libraries give, or an error names what is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from raw_tensors import store
from specimens import bytes_of
from unshard.base import Base
from unshard.checkpoint import Checkpoint, Layout
from unshard.dtypes import DTYPES
from unshard.errors import MatchError, UnsupportedLayoutError
from unshard.match.dequantising import NotDequantisedError, dequantise
from unshard.match.quantised import undo_quantisation
from unshard.match.quantised_groups import Group
from unshard.match.restored import Choices, Restored
from unshard.recipes.quantised import BNB4, BNB8, E2M1, FP4, NF4
from unshard.tensors import CastTensor, Tensor, element_count

State = dict[str, torch.Tensor]
NAME = "m.up_proj.weight"


def dequantised(
    state: Mapping[str, torch.Tensor], folder: Path, settings: dict[str, object] | None = None
) -> dict[str, Tensor]:
    config = {} if settings is None else {"quantization_config": settings}
    tensors = store(folder / "weights.bin", state)
    checkpoint = Checkpoint(folder, folder, Layout("full-state-dict", "a test's own", None, ()), tensors)
    base = Base(folder, str(folder), "a test's own", b"", config, None, None)
    restored = Restored(tensors, {name: (name,) for name in tensors})
    return dict(undo_quantisation(restored, checkpoint, base, Choices(dtype="float32")).tensors)


def values_of(tensor: Tensor, dtype: torch.dtype) -> torch.Tensor:
    wanted = DTYPES[str(dtype).removeprefix("torch.")]
    cast = tensor if tensor.dtype == wanted else CastTensor(tensor, wanted)
    return torch.frombuffer(bytearray(bytes_of(cast)), dtype=dtype).reshape(tensor.shape)


def same(ours: torch.Tensor, truth: torch.Tensor) -> bool:
    alike: bool = ours.shape == truth.shape and ours.dtype == truth.dtype and torch.equal(ours, truth)
    return alike


def number(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def four_bit(
    shape: tuple[int, int],
    quant_type: str,
    dtype: str,
    *,
    nested: bool,
    storage: torch.dtype,
    block: int = 64,
) -> tuple[State, torch.Tensor]:
    """Return a weight as bitsandbytes saves it, and what `dequantize_4bit` says it is."""
    count = shape[0] * shape[1]
    code = torch.tensor({"nf4": NF4, "fp4": FP4}[quant_type])
    digits = torch.randint(0, 16, (count + count % 2,), generator=number(1))
    packed = (digits[0::2] * 16 + digits[1::2]).to(torch.uint8)
    blocks = -(-count // block)
    said: dict[str, object] = {"quant_type": quant_type, "blocksize": block, "dtype": dtype, "shape": shape}
    state = {f"{NAME}.quant_map": code}
    if nested:
        absmax = torch.randint(0, 256, (blocks,), generator=number(2))
        table, second = torch.rand(256, generator=number(3)) * 2 - 1, torch.rand(-(-blocks // 256))
        scales = table[absmax] * second.repeat_interleave(256)[:blocks] + 2.5
        said |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 2.5}
        state |= {f"{NAME}.nested_absmax": second, f"{NAME}.nested_quant_map": table}
        absmax = absmax.to(torch.uint8)
    else:
        absmax = scales = torch.rand(blocks, generator=number(4))
    text = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
    state |= {
        NAME: packed.view(storage).reshape(-1, 1),
        f"{NAME}.absmax": absmax,
        f"{NAME}.quant_state.bitsandbytes__{quant_type}": text,
    }
    truth = code[digits[:count]] * scales.repeat_interleave(block)[:count]
    return state, truth.to(getattr(torch, dtype)).reshape(shape)


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("shape", "dtype", "storage"),
    [
        ((96, 64), "bfloat16", torch.uint8),
        ((520, 128), "bfloat16", torch.bfloat16),
        ((7, 31), "float16", torch.uint8),
        ((1, 300_000), "float32", torch.float32),
    ],
)
def test_four_bits_of_bitsandbytes_are_its_own_numbers(
    quant_type: str,
    nested: bool,
    shape: tuple[int, int],
    dtype: str,
    storage: torch.dtype,
    tmp_path: Path,
) -> None:
    state, truth = four_bit(shape, quant_type, dtype, nested=nested, storage=storage)
    ours = dequantised(state, tmp_path)
    assert list(ours) == [NAME]
    assert same(values_of(ours[NAME], truth.dtype), truth)


def test_eight_bits_of_bitsandbytes_are_its_own_numbers(tmp_path: Path) -> None:
    values = torch.randint(-127, 128, (33, 57), dtype=torch.int8)
    scales = torch.rand(33)
    state = {
        NAME: values,
        "m.up_proj.SCB": scales,
        "m.up_proj.weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    truth = values * scales.view(-1, 1) * 7.874015718698502e-3
    assert same(values_of(dequantised(state, tmp_path)[NAME], torch.float32), truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "scales", "settings"),
    [
        ((256, 384), (2, 3), None),
        ((96, 64), (3, 2), {"weight_block_size": [32, 32]}),
        ((256, 384), (256, 12), {"weight_block_size": [1, 32]}),
        ((3, 256, 128), (3, 2, 1), None),
    ],
)
def test_float8_is_what_transformers_makes_of_it(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    scales: tuple[int, ...],
    settings: dict[str, object] | None,
    tmp_path: Path,
) -> None:
    name = "m.up_proj" if len(shape) == 3 else NAME
    values, scale = torch.randn(shape).to(torch.float8_e4m3fn), torch.rand(scales)
    truth = Fp8Dequantize(None)._dequantize_one(values, scale, dtype)
    ours = dequantised({name: values, f"{name}_scale_inv": scale}, tmp_path, settings)
    assert same(values_of(ours[name], dtype), truth)


def test_blocks_of_float8_that_do_not_fill_the_matrix_end_with_it(tmp_path: Path) -> None:
    values, scale = torch.randn(192, 300).to(torch.float8_e4m3fn), torch.rand(2, 3)
    each = scale.repeat_interleave(128, 0)[:192].repeat_interleave(128, 1)[:, :300]
    ours = dequantised({NAME: values, f"{NAME}_scale_inv": scale}, tmp_path)
    assert same(values_of(ours[NAME], torch.float32), values.float() * each)


def test_blocks_of_one_expert_end_before_the_next(tmp_path: Path) -> None:
    values, scale = torch.randn(3, 192, 128).to(torch.float8_e4m3fn), torch.rand(3, 2, 1)
    each = scale.repeat_interleave(128, 1)[:, :192]
    ours = dequantised({"m.up_proj": values, "m.up_proj_scale_inv": scale}, tmp_path)
    assert same(values_of(ours["m.up_proj"], torch.float32), values.float() * each)


@pytest.mark.parametrize("shape", [(), (1,), (40,), (40, 1)])
def test_scales_of_a_tensor_and_of_rows_hold_for_all_of_it(shape: tuple[int, ...], tmp_path: Path) -> None:
    values, scale = torch.randn(40, 24).to(torch.float8_e4m3fn), torch.rand(shape)
    state = {NAME: values, f"{NAME}_scale": scale, "m.up_proj.input_scale": torch.ones(())}
    ours = dequantised(state, tmp_path)
    assert list(ours) == [NAME]
    truth = values.float() * scale.reshape(-1, 1)
    assert same(values_of(ours[NAME], torch.float32), truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mxfp4_is_what_transformers_makes_of_it(dtype: torch.dtype, tmp_path: Path) -> None:
    blocks = torch.randint(0, 256, (3, 70, 5, 16), dtype=torch.uint8, generator=number(5))
    scales = torch.randint(100, 140, (3, 70, 5), dtype=torch.uint8, generator=number(6))
    truth = convert_moe_packed_tensors(blocks, scales, dtype=dtype)
    ours = dequantised({"e.gate_up_proj_blocks": blocks, "e.gate_up_proj_scales": scales}, tmp_path)
    assert list(ours) == ["e.gate_up_proj"]
    assert same(values_of(ours["e.gate_up_proj"], dtype), truth)


def words(digits: torch.Tensor, shifts: list[int]) -> torch.Tensor:
    """Return numbers of the last dimension, packed into words of 32 bits."""
    apart = digits.reshape(*digits.shape[:-1], -1, len(shifts)).long() << torch.tensor(shifts)
    return apart.sum(-1).to(torch.int32)


UPWARDS = list(range(0, 32, 4))


@pytest.mark.parametrize(("form", "less"), [("gptq", 1), ("gptq_v2", 0)])
def test_gptq_in_any_order_of_columns_is_its_formula(form: str, less: int, tmp_path: Path) -> None:
    digits = torch.randint(0, 16, (24, 64), generator=number(7))  # rows are outputs
    zeros, scales = torch.randint(1, 16, (4, 24), generator=number(8)), torch.rand(4, 24).half()
    groups = torch.randperm(64, generator=number(9)) // 16
    state = {
        "m.up_proj.qweight": words(digits, UPWARDS).T.contiguous(),
        "m.up_proj.qzeros": words(zeros - less, UPWARDS),
        "m.up_proj.scales": scales,
        "m.up_proj.g_idx": groups.to(torch.int32),
    }
    ours = dequantised(state, tmp_path, {"quant_method": "gptq", "bits": 4, "checkpoint_format": form})
    truth = (digits - zeros[groups].T).half() * scales[groups].T
    assert same(values_of(ours[NAME], torch.float16), truth)


def test_awq_is_its_formula(tmp_path: Path) -> None:
    digits, zeros = torch.randint(0, 16, (64, 24)), torch.randint(0, 16, (2, 24))
    scales = torch.rand(2, 24).half()
    order = [0, 16, 4, 20, 8, 24, 12, 28]
    state = {
        "m.up_proj.qweight": words(digits, order),
        "m.up_proj.qzeros": words(zeros, order),
        "m.up_proj.scales": scales,
    }
    truth = ((digits - zeros.repeat_interleave(32, 0)).half() * scales.repeat_interleave(32, 0)).T
    assert same(values_of(dequantised(state, tmp_path)[NAME], torch.float16), truth)


@pytest.mark.parametrize("symmetric", [True, False])
def test_packed_weights_of_compressed_tensors_are_their_formula(symmetric: bool, tmp_path: Path) -> None:
    digits, zeros = torch.randint(0, 16, (40, 96)), torch.randint(0, 16, (40, 3))
    scales = torch.rand(40, 3).bfloat16()
    state = {
        "m.up_proj.weight_packed": words(digits, UPWARDS),
        "m.up_proj.weight_scale": scales,
        "m.up_proj.weight_shape": torch.tensor([40, 96]),
    }
    if not symmetric:
        state["m.up_proj.weight_zero_point"] = words(zeros.T.contiguous(), UPWARDS).T.contiguous()
    middle = torch.full((40, 96), 8) if symmetric else zeros.repeat_interleave(32, 1)
    truth = (digits - middle).bfloat16() * scales.repeat_interleave(32, 1)
    assert same(values_of(dequantised(state, tmp_path)[NAME], torch.bfloat16), truth)


def test_nvfp4_of_modelopt_is_its_formula(tmp_path: Path) -> None:
    digits = torch.randint(0, 16, (24, 64), generator=number(10))
    scales, second = torch.rand(24, 4).to(torch.float8_e4m3fn), torch.tensor(0.37)
    state = {
        NAME: (digits[:, 0::2] + 16 * digits[:, 1::2]).to(torch.uint8),
        f"{NAME}_scale": scales,
        f"{NAME}_scale_2": second,
        "m.up_proj.input_scale": torch.tensor(0.1),
    }
    truth = torch.tensor(E2M1)[digits] * (scales.float() * second).repeat_interleave(16, 1)
    assert same(values_of(dequantised(state, tmp_path)[NAME], torch.float32), truth)


def test_eight_bits_of_torchao_lose_their_zero_points_first(tmp_path: Path) -> None:
    values = torch.randint(-128, 128, (16, 64), dtype=torch.int8)
    zeros, scales = torch.randint(-8, 8, (16, 2), dtype=torch.int8), torch.rand(16, 2)
    state = {
        "m.up_proj._weight_qdata": values,
        "m.up_proj._weight_scale": scales,
        "m.up_proj._weight_zero_point": zeros,
    }
    truth = (values.int() - zeros.repeat_interleave(32, 1)).float() * scales.repeat_interleave(32, 1)
    assert same(values_of(dequantised(state, tmp_path)[NAME], torch.float32), truth)


def test_any_range_is_that_part_of_the_whole(tmp_path: Path) -> None:
    blocks = torch.randint(0, 256, (2, 600, 20, 16), dtype=torch.uint8, generator=number(5))
    scales = torch.randint(100, 140, (2, 600, 20), dtype=torch.uint8, generator=number(6))
    packed, _ = four_bit((520, 700), "nf4", "bfloat16", nested=True, storage=torch.uint8)
    state = {"e.up_proj_blocks": blocks, "e.up_proj_scales": scales, **packed}
    for tensor in dequantised(state, tmp_path).values():
        whole, size, count = bytes_of(tensor), tensor.dtype.itemsize, element_count(tensor)
        for start, stop in ((1, 2), (599, 601), (12_345, 290_001), (count - 3, count)):
            part = bytearray((stop - start) * size)
            tensor.read(start, stop, memoryview(part))
            assert part == whole[start * size : stop * size]


def without(state: State, *endings: str) -> State:
    return {name: tensor for name, tensor in state.items() if not name.endswith(endings)}


def test_scales_without_their_weight_are_told(tmp_path: Path) -> None:
    state, _ = four_bit((96, 64), "nf4", "bfloat16", nested=False, storage=torch.uint8)
    with pytest.raises(MatchError, match=r"m\.up_proj\.weight is missing"):
        dequantised(without(state, ".weight"), tmp_path)


@pytest.mark.parametrize("part", ["absmax", "nested_absmax", "nested_quant_map"])
def test_a_weight_without_a_part_is_told(part: str, tmp_path: Path) -> None:
    state, _ = four_bit((96, 64), "nf4", "bfloat16", nested=True, storage=torch.uint8)
    with pytest.raises(MatchError, match=f"its {part} is missing"):
        dequantised(without(state, f".{part}"), tmp_path)


def test_a_packed_weight_alone_is_told_with_the_shape_that_it_has(tmp_path: Path) -> None:
    with pytest.raises(MatchError, match="4,096 numbers of 4 bits: 64 x 64"):
        dequantised({NAME: torch.zeros(2048, 1, dtype=torch.uint8)}, tmp_path)


def test_a_scale_beside_a_plain_weight_is_told(tmp_path: Path) -> None:
    with pytest.raises(MatchError, match="nothing tells whether the scale was applied"):
        dequantised({NAME: torch.ones(4, 4), f"{NAME}_scale_inv": torch.ones(1, 1)}, tmp_path)


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        (
            {NAME: torch.zeros(8, 8).to(torch.float8_e4m3fn), f"{NAME}_scale": torch.ones(3, 8)},
            "no grid over 8 x 8",
        ),
        ({"m.W_q": torch.zeros(4, 4, dtype=torch.uint8)}, "HQQ is not dequantised"),
        (
            {NAME: torch.zeros(4, 4, dtype=torch.int8), "m.up_proj.SCB": torch.ones(5)},
            "SCB has 5 numbers, and 4 are needed",
        ),
    ],
)
def test_what_is_not_known_is_refused_by_name(state: State, problem: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedLayoutError, match=problem):
        dequantised(state, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        b"[]",
        b"not json",
        b'{"quant_type":"nf4","blocksize":0,"dtype":"bfloat16","shape":[96,64]}',
        b'{"quant_type":"nf4","blocksize":64,"dtype":"bfloat16","shape":[1000000000,1000000000]}',
        b'{"quant_type":"int3","blocksize":64,"dtype":"bfloat16","shape":[96,64]}',
        b'{"quant_type":"nf4","blocksize":64,"dtype":"int8","shape":[96,64]}',
        b"[" * 4000,
    ],
)
def test_a_state_that_means_nothing_is_refused(text: bytes, tmp_path: Path) -> None:
    state, _ = four_bit((96, 64), "nf4", "bfloat16", nested=False, storage=torch.uint8)
    state[f"{NAME}.quant_state.bitsandbytes__nf4"] = torch.tensor(list(text), dtype=torch.uint8)
    with pytest.raises(UnsupportedLayoutError):
        dequantised(state, tmp_path)


@pytest.mark.parametrize("kind", [BNB4, BNB8])
def test_matrices_that_lie_turned_round_are_not_dequantised(kind: str) -> None:
    group = Group(kind, "transformer.h.0.attn.c_attn.weight", "packed", {})
    with pytest.raises(NotDequantisedError, match="turns matrices of GPT-2's kind round"):
        dequantise(group, {}, {})
