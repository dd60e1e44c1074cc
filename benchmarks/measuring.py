"""How the benchmarks measure: whole processes, in interleaved rounds, the page cache warm."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

UNSHARD = (sys.executable, "-m", "unshard")

# An installed package is compiled once, and not whenever it runs.
_ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


@dataclass(frozen=True, slots=True)
class Run:
    """What one process took; the memory is that of the largest process, if it started others."""

    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Bar:
    """A promise about a ratio of medians, or about the median of one way in seconds."""

    title: str
    value: float
    limit: float
    unit: str

    @property
    def holds(self) -> bool:
        """Whether the promise is kept."""
        return self.value <= self.limit

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "FAILS"
        return f"{self.title}: {self.value:.2f} {self.unit}, bar {self.limit:g} {self.unit}: {verdict}"


def run(
    command: Sequence[str | Path],
    *,
    sync: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Run:
    """Return what a command took, and then waiting until the disk has the file `sync`.

    Raises:
        RuntimeError: The command failed; what it said is in the message.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**_ENVIRONMENT, **(environment or {})},
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if sync is not None:
        _wait_for_disk(sync)
    wall = time.perf_counter() - began
    if process.returncode:
        raise RuntimeError(f"{command} failed: {said.decode()[-2000:]}")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10)


def _wait_for_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def warm(paths: Iterable[Path]) -> None:
    """Read files once, so that the page cache holds them."""
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(16 << 20):
                pass


def remove(path: Path) -> None:
    """Remove an output of an earlier round, and let the disk come to rest."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    os.sync()
    time.sleep(0.5)


def interleave(ways: Mapping[str, Callable[[], Run]], *, rounds: int) -> dict[str, list[Run]]:
    """Return the runs of every way, one of each in every round, telling on stderr how far it is."""
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    for number in range(1, rounds + 1):
        for name, way in ways.items():
            runs[name].append(way())
            print(f"round {number}/{rounds}: {name}: {runs[name][-1].wall_seconds:.2f} s", file=sys.stderr)
    return runs


def wall(runs: Sequence[Run]) -> float:
    """Return the median of the times on the clock."""
    return statistics.median(run.wall_seconds for run in runs)


def cpu(runs: Sequence[Run]) -> float:
    """Return the median of the processor times."""
    return statistics.median(run.cpu_seconds for run in runs)


def table(runs: Mapping[str, Sequence[Run]], beside: Mapping[str, str]) -> str:
    """Return medians as a table; `beside` names the way whose medians a way is divided by."""
    lines = ["| way | wall s (min-max) | x | CPU s | x |", "|---|---|---|---|---|"]
    for name, taken in runs.items():
        times = [run.wall_seconds for run in taken]
        ratios = ["", ""]
        if name in beside:
            other = runs[beside[name]]
            ratios = [f"{wall(taken) / wall(other):.2f}", f"{cpu(taken) / cpu(other):.2f}"]
        spread = f"{wall(taken):.2f} ({min(times):.2f}-{max(times):.2f})"
        lines.append(f"| {name} | {spread} | {ratios[0]} | {cpu(taken):.2f} | {ratios[1]} |")
    return "\n".join(lines)


def machine() -> str:
    """Return what the numbers were measured on, and when."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(": ")[2] if names else model
    load = f"load {os.getloadavg()[0]:.1f}"
    python = f"Python {platform.python_version()}"
    system = f"{os.cpu_count()} x {model}, {platform.system()} {platform.release()}"
    return f"{datetime.now(UTC):%Y-%m-%d}, {system}, {python}, {load}"


def report(text: str, bars: Sequence[Bar], *, as_json: bool) -> None:
    """Print the results and whether the bars hold."""
    if as_json:
        plain = [{"title": b.title, "value": b.value, "limit": b.limit, "holds": b.holds} for b in bars]
        print(json.dumps({"machine": machine(), "bars": plain}, indent=2))
    else:
        print(f"{machine()}\n\n{text}\n")
        print("\n".join(map(str, bars)))
