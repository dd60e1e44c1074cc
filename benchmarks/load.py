"""Time from a training checkpoint to a model in eval mode, beside what transformers needs for a folder.

    python benchmarks/load.py [--folder DIR] [--rounds 5] [--dtype bfloat16]

The model has TinyLlama-1.1B's shapes and random weights. Every measurement is a process of its own,
which imports everything before its clock starts; rounds are interleaved, the page cache is warm.
Ways to load:

    unshard          `unshard.load` from the `.pt`; its forward pass is timed apart
    from_pretrained  transformers, from the folder a conversion would write
    torch.load       `torch.load(mmap=True)`, then `from_pretrained(state_dict=)`

Bars: unshard <= 1.2 x from_pretrained, or at most 0.5 s more; anonymous memory does not grow by a
second copy of the model.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WAYS = ("unshard", "from_pretrained", "torch.load")

CHILD = """
import json, sys, time
from pathlib import Path
import torch, transformers, transformers.models.llama.modeling_llama
from unshard.inference.opening import open_model

way, folder = sys.argv[1], Path(sys.argv[2])

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

def forward(model):
    began = time.perf_counter()
    with torch.inference_mode():
        model(input_ids=torch.tensor([[0, 1]]))
    return time.perf_counter() - began

before, began = anonymous(), time.perf_counter()
if way == "unshard":
    loaded = open_model(
        folder / "checkpoint.pt", base=str(folder / "base"), dtype="base", device="cpu",
        device_map=None, step=None, select=None, download=False,
    )
    model, check = loaded.model, loaded.check_seconds
    load = time.perf_counter() - began - check
else:
    if way == "from_pretrained":
        model = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    else:
        state = torch.load(folder / "checkpoint.pt", mmap=True, weights_only=True)
        config = transformers.AutoConfig.from_pretrained(folder / "base")
        model = transformers.LlamaForCausalLM.from_pretrained(None, config=config, state_dict=state)
    load = time.perf_counter() - began
    check = forward(model)
assert not model.training
print(json.dumps({"load": load, "forward": check, "anonymous": anonymous() - before}))
"""


def make_input(folder: Path, dtype_name: str) -> None:
    """Write the checkpoint, and the base folder with the same weights."""
    import torch
    import transformers
    from safetensors.torch import save_file

    dtype = getattr(torch, dtype_name)
    config = transformers.LlamaConfig(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        tie_word_embeddings=False,
        dtype=dtype_name,
        architectures=["LlamaForCausalLM"],
    )
    with torch.device("meta"):
        empty = transformers.LlamaForCausalLM(config).state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.empty(tensor.shape, dtype=dtype).normal_(0, 0.02, generator=generator)
        for name, tensor in empty.items()
    }
    (folder / "base").mkdir(parents=True)
    torch.save(state, folder / "checkpoint.pt")
    save_file(state, folder / "base" / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder / "base")


def warm(folder: Path) -> None:
    """Read every file once, so that the page cache holds it."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(16 << 20):
                    pass


def measure(way: str, folder: Path) -> dict[str, float]:
    """Return what one process measured."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, way, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def report(results: dict[str, list[dict[str, float]]]) -> None:
    """Print medians, and whether the bar holds."""
    medians = {
        way: {key: statistics.median(round_[key] for round_ in rounds) for key in rounds[0]}
        for way, rounds in results.items()
    }
    print("| way | load s (min-max) | forward pass s | anonymous memory MB |\n|---|---|---|---|")
    for way, median in medians.items():
        times = [round_["load"] for round_ in results[way]]
        spread = f"{median['load']:.2f} ({min(times):.2f}-{max(times):.2f})"
        print(f"| {way} | {spread} | {median['forward']:.2f} | {median['anonymous'] / 1e6:.0f} |")
    ours, theirs = medians["unshard"]["load"], medians["from_pretrained"]["load"]
    holds = ours <= 1.2 * theirs or ours <= theirs + 0.5
    verdict = "holds" if holds else "FAILS"
    print(f"\n{ours / theirs:.2f} x from_pretrained, {ours - theirs:+.2f} s: the bar {verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="keeps the input for the next time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary, "input")
        if not folder.exists():
            make_input(folder, options.dtype)
        results: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(options.rounds):
            warm(folder)
            for way in WAYS:
                results[way].append(measure(way, folder))
        report(results)


if __name__ == "__main__":
    main()
