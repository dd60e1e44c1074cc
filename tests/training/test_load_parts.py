"""Parts of tensors read straight into memory of any strides, block by block."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import unshard
from unshard.dtypes import DTYPES
from unshard.errors import DamagedFileError
from unshard.tensors import Box, CastTensor
from unshard.training.filling import parts
from unshard.training.filling.parts import Filler
from unshard.training.live.local_parts import LocalPart

BOXES = [
    Box((0, 0, 0), (7, 5, 3)),
    Box((2, 0, 0), (5, 5, 3)),
    Box((1, 2, 0), (6, 4, 3)),
    Box((3, 1, 1), (4, 2, 2)),
    Box((4, 4, 3), (4, 4, 3)),
]


@pytest.fixture
def whole(tmp_path: Path) -> torch.Tensor:
    whole = torch.arange(7 * 5 * 3, dtype=torch.float32).view(7, 5, 3) * 1.37 - 40
    save_file({"w": whole, "one": torch.tensor(True)}, tmp_path / "model.safetensors")
    return whole


def part_of(whole: torch.Tensor, box: Box) -> torch.Tensor:
    return whole[tuple(map(slice, box.start, box.stop))]


@pytest.mark.parametrize("block_bytes", [8, 64, 4 << 20])
@pytest.mark.parametrize("box", BOXES)
def test_a_box_is_filled_and_nothing_around_it(
    box: Box, block_bytes: int, whole: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_BLOCK_BYTES", block_bytes)
    tensor = unshard.open(tmp_path / "model.safetensors")["w"]
    around = torch.full((9, 9, 9), -1.0)
    strided = around[: box.shape[2], : box.shape[0], : box.shape[1]].permute(1, 2, 0)
    plain = torch.full(box.shape, -1.0)
    for memory in (plain, strided):
        assert Filler().fill(LocalPart(box, memory), tensor) == 4 * box.volume
        assert torch.equal(memory, part_of(whole, box))
    assert int((around != -1).sum()) == box.volume


@pytest.mark.parametrize("box", BOXES)
def test_a_cast_is_the_one_that_torch_makes(box: Box, whole: torch.Tensor, tmp_path: Path) -> None:
    tensor = CastTensor(unshard.open(tmp_path / "model.safetensors")["w"], DTYPES["bfloat16"])
    memory = torch.zeros(box.shape, dtype=torch.bfloat16)
    assert Filler().fill(LocalPart(box, memory), tensor) == 2 * box.volume
    assert torch.equal(memory, part_of(whole, box).bfloat16())


def test_a_tensor_without_dimensions_is_filled(whole: torch.Tensor, tmp_path: Path) -> None:
    memory = torch.tensor(False)
    assert Filler().fill(LocalPart(Box((), ()), memory), unshard.open(tmp_path)["one"]) == 1
    assert memory.item() is True


def test_memory_that_wants_gradients_is_filled_in_place(whole: torch.Tensor, tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.zeros(7, 5, 3))
    address = parameter.data_ptr()
    Filler().fill(LocalPart(BOXES[0], parameter), unshard.open(tmp_path)["w"])
    assert torch.equal(parameter.detach(), whole)
    assert parameter.data_ptr() == address


def test_a_file_that_changed_meanwhile_is_told(whole: torch.Tensor, tmp_path: Path) -> None:
    filler, file = Filler(), tmp_path / "model.safetensors"
    filler.fill(LocalPart(BOXES[0], torch.zeros(7, 5, 3)), unshard.open(file)["w"])
    filler.require_unchanged()
    with file.open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\0")
    with pytest.raises(DamagedFileError, match="changed while it was being read"):
        filler.require_unchanged()
