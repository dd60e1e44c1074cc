"""Loading holds no second copy of the model: measured by the kernel, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from tiny_models import SIZES

MIB = 1 << 20
# Allocator arenas, stacks of transformers' loading threads, activations.
SLACK = 48 * MIB

CHILD = """
import resource, sys
from pathlib import Path
import torch, transformers
from tiny_models import as_matched, describe_folder, side_files_of
from unshard.inference.loading import load_model

def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key + ":"))

def load(folder, dtype):
    matched = as_matched(describe_folder(folder), dtype=dtype)
    files = side_files_of(folder)
    return load_model(matched, files, name="", dtype=dtype or "base", device="cpu", device_map=None)

torch.set_num_threads(1)
small, big = map(Path, sys.argv[1:3])
load(small, "bfloat16")  # imports, thread pools and allocators are not what is measured
before = status("RssAnon")
if sys.argv[3] == "cast":
    resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + int(sys.argv[4]),) * 2)
    model = load(big, "bfloat16").model
else:
    model = load(big, None).model
print(status("RssAnon") - before, sum(p.nbytes for p in model.parameters()), model.dtype)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a small model's folder and that of one of 240 MB, of which the largest tensor is a third."""
    made = []
    for name, vocabulary, hidden in (("small", 64, 16), ("big", 40_000, 512)):
        config = transformers.LlamaConfig(
            **{
                **SIZES,
                "vocab_size": vocabulary,
                "hidden_size": hidden,
                "intermediate_size": hidden * 12,
                "num_attention_heads": 4,
            },
            dtype="float32",
            architectures=["LlamaForCausalLM"],
            tie_word_embeddings=False,
        )
        with torch.device("meta"):
            empty = transformers.LlamaForCausalLM(config).state_dict()
        folder = tmp_path_factory.mktemp(name)
        weights = {key: torch.full(tensor.shape, 0.01) for key, tensor in empty.items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config.to_dict()))
        made.append(folder)
    return made[0], made[1]


def run_child(folders: tuple[Path, Path], how: str, limit: int) -> tuple[int, int, str]:
    """Return the growth of anonymous memory, the bytes of the model and its dtype."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, folders), how, str(limit)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MALLOC_ARENA_MAX": "2"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    growth, size, dtype = done.stdout.split()
    return int(growth), int(size), dtype


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_mapped_tensors_cost_no_memory_of_our_own(folders: tuple[Path, Path]) -> None:
    growth, size, dtype = run_child(folders, "map", 0)
    assert (dtype, size > 200 * MIB) == ("torch.float32", True)
    assert growth < SLACK


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_cast_costs_the_result_and_no_second_copy(folders: tuple[Path, Path]) -> None:
    growth, size, dtype = run_child(folders, "cast", 120_001_536 + SLACK)
    assert (dtype, size) == ("torch.bfloat16", 120_001_536)
    assert size <= growth < size + SLACK
