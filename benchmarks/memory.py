"""How much memory tensor data takes, held by the kernel: a child that needs more than its limit dies.

    python benchmarks/memory.py [--work DIR] [--json]

Every child imports the program, plans the conversion (metadata grows with the number of tensors and
is not what is measured), limits its private memory to what it holds then plus some MiB, and converts
with verification and digests. The smallest limit under which it succeeds is found by halving.

Bar: 64 MiB, whatever the size of the model or of its largest tensor.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from inputs import DEFAULT_WORK, one_tensor, tinyllama, tinyllama_base
from measuring import Bar, remove, report

CHILD = """
import resource, sys
from pathlib import Path
import ml_dtypes, numpy
from unshard.conversion import Settings, carry_out
from unshard.preparation import plan_conversion
from unshard.progress import Silence

checkpoint, base, out, to, dtype, mebibytes = sys.argv[1:]
numpy.ones(9, "f4").astype(ml_dtypes.bfloat16)
ready = plan_conversion(checkpoint, out, base=base or None, to=to, dtype=dtype)
with open("/proc/self/status") as lines:
    held = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:"))
resource.setrlimit(resource.RLIMIT_DATA, (held + (int(mebibytes) << 20),) * 2)
settings = Settings(
    overwrite=False, verify=True, digests=True, prove=False, durable=False, compare_replicas=False, workers=2
)
carry_out(ready, settings, progress=Silence())
"""

LIMIT_MIB = 64


def fails(arguments: tuple[str | Path, ...], out: Path, mebibytes: int) -> str:
    """Return what a child says that cannot convert with that much memory beyond what it held."""
    remove(out)
    words = [str(word) for word in (*arguments[:2], out, *arguments[2:], mebibytes)]
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *words],
        # The kernel counts the stacks and the buffers of every BLAS thread.
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    return child.stderr if child.returncode else ""


def smallest(arguments: tuple[str | Path, ...], out: Path) -> int:
    """Return the least power of two, in MiB, that is enough.

    Raises:
        RuntimeError: 1 GiB is not, so memory is not what is missing.
    """
    mebibytes = LIMIT_MIB
    while said := fails(arguments, out, mebibytes):
        mebibytes *= 2
        if mebibytes > 1024:
            raise RuntimeError(said[-2000:])
    while mebibytes > 1 and not fails(arguments, out, mebibytes // 2):
        mebibytes //= 2
    remove(out)
    return mebibytes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="where inputs and outputs lie")
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args()
    work, out = options.work, options.work / "out"
    base, half, full = tinyllama_base(work), tinyllama(work, "bfloat16"), tinyllama(work, "float32")
    cases: dict[str, tuple[str | Path, ...]] = {
        "1.1B bf16, 2.2 GB": (half, base, "safetensors", "base"),
        "1.1B bf16 to .pt": (half, base, "pt", "base"),
        "1.1B fp32 -> bf16, 4.4 GB": (full, base, "safetensors", "base"),
        "one fp32 tensor of 3 GB -> bf16": (one_tensor(work), "", "safetensors", "bfloat16"),
    }
    bars = [Bar(name, smallest(arguments, out), LIMIT_MIB, "MiB") for name, arguments in cases.items()]
    lines = ["| conversion | enough MiB |", "|---|---|"]
    lines += [f"| {bar.title} | {bar.value:g} |" for bar in bars]
    report("\n".join(lines), bars, as_json=options.as_json)


if __name__ == "__main__":
    main()
