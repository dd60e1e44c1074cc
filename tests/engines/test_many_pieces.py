"""Conversions of tensors in many pieces, in many files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raw_tensors import EVERY_DTYPE, awkward_tensors, random_tensor, raw, store_in_pieces, written
from unshard.dtypes import BFLOAT16
from unshard.engines.local import run_plan
from unshard.plan import OutputFile, Plan
from unshard.progress import Silence
from unshard.tensors import CastTensor, Tensor
from unshard.writers.safetensors_folder import plan_safetensors
from unshard.writers.torch_file import plan_torch_file

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")

PARTS = [(5,), (1, 3), (3, 2), (2, 1, 2)]


def run(files: tuple[OutputFile, ...], target: Path, *, workers: int) -> None:
    target.mkdir()
    plan = Plan(target, files, (), (), (), 32 << 20)
    run_plan(plan, target, workers=workers, durable=False, progress=Silence())


def large_tensors() -> dict[str, torch.Tensor]:
    """Return tensors that take several blocks, jobs and buffers of the engine."""
    shapes = {"wide": (3, 1_700_000), "tall": (700_001, 3), "square": (1501, 2003), "deep": (4, 700, 900)}
    return {name: random_tensor(shape, "float32", seed=i) for i, (name, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize("workers", [1, 3])
def test_large_tensors_of_many_ranks_become_one_file(
    tmp_path: Path, parts: tuple[int, ...], workers: int
) -> None:
    truth = large_tensors()
    tensors: dict[str, Tensor] = dict(store_in_pieces(tmp_path / "ranks", truth, parts))
    files = plan_safetensors(tensors, max_file_bytes=20_000_000)[0]
    run(files, tmp_path / "out", workers=workers)
    found = written(tmp_path / "out", files)
    assert {name: found[name].numpy().tobytes() for name in found} == {n: raw(t) for n, t in truth.items()}


@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_awkward_tensors_of_every_dtype_become_a_torch_file(tmp_path: Path, parts: tuple[int, ...]) -> None:
    truth = {name: tensor for name, tensor in awkward_tensors(EVERY_DTYPE).items() if "complex32" not in name}
    tensors: dict[str, Tensor] = dict(store_in_pieces(tmp_path / "ranks", truth, parts))
    run((plan_torch_file(tensors, name="a.pt"),), tmp_path / "out", workers=2)
    found = torch.load(tmp_path / "out" / "a.pt", weights_only=True)
    assert {name: raw(tensor) for name, tensor in found.items()} == {n: raw(t) for n, t in truth.items()}


@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_pieces_are_cast_as_the_whole_is(tmp_path: Path, parts: tuple[int, ...]) -> None:
    truth = {"a": torch.randn(1201, 900), "b": torch.randn(7, 300, 400)}
    stored = store_in_pieces(tmp_path / "ranks", truth, parts)
    files = plan_safetensors({n: CastTensor(t, BFLOAT16) for n, t in stored.items()}, max_file_bytes=1 << 30)[
        0
    ]
    run(files, tmp_path / "out", workers=2)
    found = written(tmp_path / "out", files)
    for name, tensor in truth.items():
        assert found[name].numpy().tobytes() == raw(tensor.bfloat16())
