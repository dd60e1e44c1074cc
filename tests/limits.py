"""Children whose memory the kernel limits."""

from __future__ import annotations

import os
import subprocess
import sys

MIB = 1 << 20

_LIMITED = """
import resource, sys

def limit(extra_bytes):
    '''Let private memory grow by `extra_bytes` from here on: heap, stacks, anonymous maps.'''
    with open("/proc/self/status") as lines:
        held = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (held + extra_bytes,) * 2)

"""


def run_limited(body: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python code that calls `limit(extra_bytes)` once it holds what is not to be counted."""
    return subprocess.run(
        [sys.executable, "-c", _LIMITED + body, *map(str, arguments)],
        capture_output=True,
        text=True,
        # One BLAS thread: the kernel counts the stacks and buffers of all of them.
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
