"""Loading in bounded memory: the kernel refuses what goes beyond."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from limits import MIB, run_limited

_LOADING = """
import torch
from unshard.training.loading import load_full

model = torch.nn.Module()
model.plain = torch.nn.Parameter(torch.ones(4096, 4096))
model.halved = torch.nn.Parameter(torch.ones(4096, 4096, dtype=torch.bfloat16))
model.turned = torch.nn.Parameter(torch.ones(4096, 2048).t())
warm = torch.nn.Linear(2, 2)
load_full(warm, sys.argv[1] + "/warm.safetensors")
limit(int(sys.argv[2]))
loaded = load_full(model, sys.argv[1] + "/model.safetensors")
for parameter, value in ((model.plain, 2), (model.halved, 3), (model.turned, 4)):
    assert (parameter.detach()[::512, ::512] == value).all()
print(loaded.bytes >> 20)
"""


def test_beyond_the_model_itself_loading_takes_less_than_16_mib(tmp_path: Path) -> None:
    tensors = {"plain": torch.full((4096, 4096), 2.0), "halved": torch.full((4096, 4096), 3.0)}
    save_file({**tensors, "turned": torch.full((2048, 4096), 4.0)}, tmp_path / "model.safetensors")
    save_file({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, tmp_path / "warm.safetensors")
    result = run_limited(_LOADING, tmp_path, 16 * MIB)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "128"
