"""What a sharded checkpoint costs, beside `cp -r` and beside what people use today.

    python benchmarks/sharded.py [--work DIR] [--rounds 5] [--peer-rounds 3] [--verl PYTHON SOURCE] [--json]

Eight ranks' files of TinyLlama-1.1B's shapes in bf16, 2.2 GB: DCP by rows and by columns, safetensors of
torch's HuggingFaceStorageWriter, and verl's files of DTensors. Whole processes, interleaved, inputs in
the page cache, nothing waits for the disk. verl's merger needs an environment of its own: `--verl` names
its interpreter and a copy of its source.

Bars: DCP <= 1.25 x cp -r; columns <= 3 x cp -r; >= 12 x faster than `accelerate merge-weights`, >= 20 x
than `dcp_to_torch` + `save_file`, >= 6 x than `consolidate_safetensors_files`, >= 20 x than verl's merger.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from inputs import DEFAULT_WORK, tinyllama_base
from measuring import UNSHARD, Bar, Run, interleave, remove, report, run, table, wall, warm
from sharded_inputs import sharded

DCP_TO_TORCH = """
import os, sys, torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
checkpoint, out = sys.argv[1:]
os.mkdir(out)
dcp_to_torch_save(checkpoint, out + "/all.pt")
state = torch.load(out + "/all.pt", weights_only=True, mmap=True)["model"]
save_file(state, out + "/model.safetensors", metadata={"format": "pt"})
"""

CONSOLIDATE = """
import json, os, sys
from torch.distributed.checkpoint._consolidate_hf_safetensors import consolidate_safetensors_files
checkpoint, out, header = sys.argv[1:]
os.mkdir(out)
with open(header, "rb") as file:
    names = json.loads(file.read(int.from_bytes(file.read(8), "little")))
names = dict.fromkeys((name for name in names if name != "__metadata__"), 1)
consolidate_safetensors_files(checkpoint, out, names, num_threads=2)
"""

CP, CP_COLUMNS = "cp -r of DCP", "cp -r of columns"
DCP, COLUMNS, HF, VERL = "DCP", "DCP by columns", "HF sharded", "verl's files"
VERIFIED = "DCP, verified"
ACCELERATE, TO_TORCH = "accelerate merge-weights", "dcp_to_torch + save_file"
TORCH_HF, VERL_MERGER = "consolidate_safetensors_files", "verl's merger"

BESIDE = {
    **dict.fromkeys((DCP, VERIFIED, HF, VERL, ACCELERATE, TO_TORCH, TORCH_HF, VERL_MERGER), CP),
    COLUMNS: CP_COLUMNS,
}


def ways(
    work: Path, verl: Sequence[str] | None
) -> tuple[dict[str, Callable[[], Run]], dict[str, Callable[[], Run]]]:
    """Return our ways and `cp`'s, and those of the peers."""
    source, base, out = sharded(work), tinyllama_base(work), work / "out"
    dcp = source / "dcp"
    model = dcp / "pytorch_model_fsdp_0"

    def after_rest(read: Path, command: Sequence[str | Path], environment: Mapping[str, str]) -> Run:
        remove(out)
        warm(path for path in read.rglob("*") if path.is_file())
        return run(command, environment=environment)

    def way(read: Path, *command: str | Path, **environment: str) -> Callable[[], Run]:
        return lambda: after_rest(read, command, environment)

    def convert(read: Path, *options: str) -> Callable[[], Run]:
        quick = ("--no-fsync", "--no-digest", "--quiet")
        return way(read, *UNSHARD, "convert", read, out, "--base", base, *quick, *options)

    python = sys.executable
    ours = {
        CP: way(model, "cp", "-r", model, out),
        DCP: convert(dcp, "--no-verify"),
        VERIFIED: convert(dcp),
        CP_COLUMNS: way(source / "columns", "cp", "-r", source / "columns", out),
        COLUMNS: convert(source / "columns", "--no-verify"),
        HF: convert(source / "hf", "--no-verify"),
        VERL: convert(source / "verl", "--no-verify"),
    }
    merge = (python, "-m", "accelerate.commands.accelerate_cli", "merge-weights", model, out)
    weights = base / "model.safetensors"
    peers = {
        ACCELERATE: way(model, *merge),
        TO_TORCH: way(model, python, "-c", DCP_TO_TORCH, model, out),
        TORCH_HF: way(source / "hf", python, "-c", CONSOLIDATE, source / "hf", out, weights),
    }
    if verl is not None:
        interpreter, module = verl
        actor = source / "verl" / "actor"
        merger = (interpreter, "-m", "verl.model_merger", "merge", "--backend", "fsdp")
        peers[VERL_MERGER] = way(
            actor, *merger, "--local_dir", actor, "--target_dir", out, PYTHONPATH=os.path.abspath(module)
        )
    return ours, peers


def bars(runs: Mapping[str, Sequence[Run]]) -> list[Bar]:
    """Return what is promised, as ratios of medians of this run."""
    promised = [
        (DCP, CP, 1.25),
        (COLUMNS, CP_COLUMNS, 3.0),
        (DCP, ACCELERATE, 1 / 12),
        (DCP, TO_TORCH, 1 / 20),
        (HF, TORCH_HF, 1 / 6),
        (VERL, VERL_MERGER, 1 / 20),
    ]
    return [
        Bar(f"{way} / {other}", wall(runs[way]) / wall(runs[other]), limit, "x")
        for way, other, limit in promised
        if runs.get(other)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="where inputs and outputs lie")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-rounds", type=int, default=3, help="0 leaves the peers out")
    parser.add_argument("--verl", nargs=2, metavar=("PYTHON", "SOURCE"), help="run verl's merger, too")
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args()
    ours, peers = ways(options.work, options.verl)
    both = min(options.rounds, options.peer_rounds)
    runs = interleave({**ours, **peers}, rounds=both) if both else {name: [] for name in ours}
    for name, taken in interleave(ours, rounds=options.rounds - both).items():
        runs[name] += taken
    remove(options.work / "out")
    report(table(runs, BESIDE), bars(runs), as_json=options.as_json)


if __name__ == "__main__":
    main()
