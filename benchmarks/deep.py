"""How long reading every number takes, beside a cold sequential read of the same bytes.

    python benchmarks/deep.py [--work DIR] [--rounds 5] [--json]

Two models of TinyLlama-1.1B's shapes in bfloat16, 2.2 GB each. Before every way the kernel is told to forget
what it holds of their files (`posix_fadvise`), so each reads the disk. Ways:

    read          both files, one after the other, 4 MiB at a time
    read one      the second file alone
    diff          unshard diff A B
    check --deep  unshard check B --deep, without a base
    torch         the same diff with safetensors and torch: share changed, norms, cosine; one tensor at a time

Bars: diff <= 1.5 x read; check --deep <= 1.5 x read one.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from inputs import DEFAULT_WORK, TINYLLAMA, tinyllama
from measuring import UNSHARD, Bar, Run, interleave, report, run, table, wall

READ, READ_ONE, DIFF, DEEP, TORCH = "read", "read one", "diff", "check --deep", "torch"
_READ = """
import sys
buffer = memoryview(bytearray(4 << 20))
for path in sys.argv[1:]:
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
"""
_TORCH = """
import sys, torch
from safetensors import safe_open
old, new = (safe_open(path, "pt") for path in sys.argv[1:])
for name in new.keys():
    a, b = old.get_tensor(name), new.get_tensor(name)
    changed = (a != b).sum().item()
    a, b = a.float(), b.float()
    print(name, changed, a.norm().item(), b.norm().item(), (a - b).norm().item(), (a * b).sum().item())
"""


def make_pair(work: Path) -> tuple[Path, Path]:
    """Return the files of two models that differ a little, made if they are not there."""
    paths = work / "tinyllama-old" / "model.safetensors", work / "tinyllama-new" / "model.safetensors"
    if not paths[1].exists():
        import torch
        from safetensors.torch import save_file

        state = torch.load(tinyllama(work, "bfloat16"), mmap=True, weights_only=True)
        for path, step in zip(paths, (0.0, 1e-3), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            (path.parent / "config.json").write_text(json.dumps(TINYLLAMA.config(), indent=2))
            moved = {
                n: (t + step * torch.randn(t.shape, dtype=t.dtype)).contiguous() for n, t in state.items()
            }
            save_file(moved, path, metadata={"format": "pt"})
    return paths


def forget(paths: tuple[Path, ...]) -> None:
    """Have the kernel forget what it holds of files."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="where inputs are kept")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args()
    old, new = paths = make_pair(options.work)

    def cold(*words: str | Path) -> Callable[[], Run]:
        def way() -> Run:
            forget(paths)
            return run(words)

        return way

    runs = interleave(
        {
            READ: cold(sys.executable, "-c", _READ, old, new),
            READ_ONE: cold(sys.executable, "-c", _READ, new),
            DIFF: cold(*UNSHARD, "diff", old.parent, new.parent),
            DEEP: cold(*UNSHARD, "check", new.parent, "--deep", "--fail-on", "never"),
            TORCH: cold(sys.executable, "-c", _TORCH, old, new),
        },
        rounds=options.rounds,
    )
    times = {way: wall(runs[way]) for way in runs}
    bars = [
        Bar("diff beside a cold read", times[DIFF] / times[READ], 1.5, "x"),
        Bar("check --deep beside a cold read", times[DEEP] / times[READ_ONE], 1.5, "x"),
    ]
    beside = {READ: READ, DIFF: READ, TORCH: READ, READ_ONE: READ_ONE, DEEP: READ_ONE}
    report(table(runs, beside), bars, as_json=options.as_json)


if __name__ == "__main__":
    main()
