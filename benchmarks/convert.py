"""What a conversion costs, beside `cp` of the same file and beside what people use today.

    python benchmarks/convert.py [--work DIR] [--rounds 5] [--peer-rounds 3] [--json]

Every way is a whole process. In every round each way runs once, on an input that is in the page
cache, after its last output was removed and the disk has come to rest. Like is compared with like:
what waits for the disk with `cp` and `fsync`, what does not with `cp`.

Bars: without verification <= 1.5 x cp; fp32 -> bf16 <= 1 x cp of the source; verification adds <= 1 x
cp; >= 15 x faster than `from_config + load_state_dict + save_pretrained`, >= 4 x than
`torch.load(mmap=True) + save_file`. Digests are reported as a cost of their own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from inputs import DEFAULT_WORK, tinyllama, tinyllama_base
from measuring import UNSHARD, Bar, Run, interleave, remove, report, run, table, wall, warm

LOAD_STATE_DICT = """
import sys, torch
from transformers import AutoConfig, AutoModelForCausalLM
checkpoint, base, out = sys.argv[1:]
config = AutoConfig.from_pretrained(base)
model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
model.load_state_dict(torch.load(checkpoint, weights_only=True))
model.save_pretrained(out)
"""

SAVE_FILE = """
import os, sys, torch
from safetensors.torch import save_file
checkpoint, _, out = sys.argv[1:]
os.mkdir(out)
state = torch.load(checkpoint, weights_only=True, mmap=True)
save_file(state, out + "/model.safetensors", metadata={"format": "pt"})
"""

CP, CP_SYNC = "cp", "cp + fsync"
CP_32, CP_32_SYNC = "cp of fp32", "cp of fp32 + fsync"
BARE, BARE_SYNC = "bf16, no verification", "bf16, no verification, durable"
VERIFIED, HASHED = "bf16, verified", "bf16, verified, digests"
TORCH = "bf16 to .pt, no verification"
CAST, CAST_SYNC = "fp32 -> bf16, no verification", "fp32 -> bf16, no verification, durable"
CAST_VERIFIED = "fp32 -> bf16, verified"
TRANSFORMERS, MAPPED = "load_state_dict + save_pretrained", "torch.load(mmap) + save_file"

BESIDE = {
    **dict.fromkeys((BARE, VERIFIED, HASHED, TORCH, TRANSFORMERS, MAPPED), CP),
    **dict.fromkeys((CAST, CAST_VERIFIED), CP_32),
    BARE_SYNC: CP_SYNC,
    CAST_SYNC: CP_32_SYNC,
}


def ways(work: Path) -> tuple[dict[str, Callable[[], Run]], dict[str, Callable[[], Run]]]:
    """Return our ways and `cp`'s, and those of the peers."""
    half, full = tinyllama(work, "bfloat16"), tinyllama(work, "float32")
    base, out = tinyllama_base(work), work / "out"

    def after_rest(source: Path, command: Sequence[str | Path], *, sync: Path | None = None) -> Run:
        for leftover in (out, work / "out.pt", work / "unshard.manifest.json"):
            remove(leftover)
        warm([source])
        return run(command, sync=sync)

    def copy(source: Path, *, durable: bool) -> Callable[[], Run]:
        return lambda: after_rest(source, ["cp", source, out], sync=out if durable else None)

    def convert(source: Path, *options: str) -> Callable[[], Run]:
        command: list[str | Path] = [*UNSHARD, "convert", source, out, "--base", base, "--quiet", *options]
        return lambda: after_rest(source, command)

    def script(text: str) -> Callable[[], Run]:
        return lambda: after_rest(half, [sys.executable, "-c", text, half, base, out])

    bare = ("--no-verify", "--no-digest")
    ours = {
        CP: copy(half, durable=False),
        BARE: convert(half, *bare, "--no-fsync"),
        VERIFIED: convert(half, "--no-digest", "--no-fsync"),
        HASHED: convert(half, "--no-fsync"),
        TORCH: convert(half, *bare, "--no-fsync", "--to", "pt"),
        CP_SYNC: copy(half, durable=True),
        BARE_SYNC: convert(half, *bare),
        CP_32: copy(full, durable=False),
        CAST: convert(full, *bare, "--no-fsync"),
        CAST_VERIFIED: convert(full, "--no-digest", "--no-fsync"),
        CP_32_SYNC: copy(full, durable=True),
        CAST_SYNC: convert(full, *bare),
    }
    return ours, {MAPPED: script(SAVE_FILE), TRANSFORMERS: script(LOAD_STATE_DICT)}


def bars(runs: Mapping[str, Sequence[Run]]) -> list[Bar]:
    """Return what is promised, as ratios of medians of this run."""

    def ratio(way: str, other: str) -> float:
        return wall(runs[way]) / wall(runs[other])

    def added(way: str, before: str, copy: str) -> float:
        return (wall(runs[way]) - wall(runs[before])) / wall(runs[copy])

    found = [
        Bar(f"{BARE} / {CP}", ratio(BARE, CP), 1.5, "x"),
        Bar(f"{BARE_SYNC} / {CP_SYNC}", ratio(BARE_SYNC, CP_SYNC), 1.5, "x"),
        Bar(f"{CAST} / {CP_32}", ratio(CAST, CP_32), 1.0, "x"),
        Bar(f"{CAST_SYNC} / {CP_32_SYNC}", ratio(CAST_SYNC, CP_32_SYNC), 1.0, "x"),
        Bar(f"verification adds, bf16 / {CP}", added(VERIFIED, BARE, CP), 1.0, "x"),
        Bar(f"verification adds, fp32 -> bf16 / {CP_32}", added(CAST_VERIFIED, CAST, CP_32), 1.0, "x"),
    ]
    if MAPPED in runs:
        found.append(Bar(f"{BARE} / {MAPPED}", ratio(BARE, MAPPED), 1 / 4, "x"))
        found.append(Bar(f"{BARE} / {TRANSFORMERS}", ratio(BARE, TRANSFORMERS), 1 / 15, "x"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="where inputs and outputs lie")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-rounds", type=int, default=3, help="0 leaves the peers out")
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args()
    ours, peers = ways(options.work)
    both = min(options.rounds, options.peer_rounds)
    runs = interleave({**ours, **peers}, rounds=both) if both else {name: [] for name in ours}
    for name, taken in interleave(ours, rounds=options.rounds - both).items():
        runs[name] += taken
    remove(options.work / "out")
    text = table(runs, BESIDE)
    digests = (wall(runs[HASHED]) - wall(runs[VERIFIED])) / wall(runs[CP])
    report(f"{text}\n\ndigests add {digests:.2f} x {CP}", bars(runs), as_json=options.as_json)


if __name__ == "__main__":
    main()
