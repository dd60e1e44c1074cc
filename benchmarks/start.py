"""How long the commands take that read no tensor: what a person waits for before anything happens.

    python benchmarks/start.py [--work DIR] [--rounds 11] [--json]

Bars: `--help` < 0.2 s; `inspect` of a 1.1B checkpoint < 0.5 s; of a 405B checkpoint < 1 s; of the same in
DCP over 8 ranks < 1 s, over 1,024 ranks (1.16 million chunks) < 30 s and < 3 GB.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from inputs import DEFAULT_WORK, llama_405b, tinyllama
from measuring import UNSHARD, Bar, interleave, report, run, table, wall
from sharded_inputs import dcp_405b

HELP, SMALL, LARGE = "unshard --help", "inspect 1.1B (2.2 GB)", "inspect 405B (812 GB, a hole)"
DCP_8, DCP_1024 = "inspect 405B, DCP of 8 ranks", "inspect 405B, DCP of 1,024 ranks"
BARE = "python -c pass"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="where inputs are kept")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args()
    small, large = tinyllama(options.work, "bfloat16"), llama_405b(options.work)
    few, many = dcp_405b(options.work, 8), dcp_405b(options.work, 1024)
    runs = interleave(
        {
            BARE: lambda: run([sys.executable, "-c", "pass"]),
            HELP: lambda: run([*UNSHARD, "--help"]),
            SMALL: lambda: run([*UNSHARD, "inspect", small]),
            LARGE: lambda: run([*UNSHARD, "inspect", large]),
            DCP_8: lambda: run([*UNSHARD, "inspect", few]),
        },
        rounds=options.rounds,
    )
    runs |= interleave({DCP_1024: lambda: run([*UNSHARD, "inspect", many])}, rounds=3)
    limits = {HELP: 0.2, SMALL: 0.5, LARGE: 1.0, DCP_8: 1.0, DCP_1024: 30.0}
    bars = [Bar(name, wall(runs[name]), limit, "s") for name, limit in limits.items()]
    peak = max(taken.peak_bytes for taken in runs[DCP_1024])
    bars.append(Bar(f"{DCP_1024}, memory", peak / 1e9, 3.0, "GB"))
    report(table(runs, dict.fromkeys(limits, BARE)), bars, as_json=options.as_json)


if __name__ == "__main__":
    main()
