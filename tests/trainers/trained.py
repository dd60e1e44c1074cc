"""Checkpoints that are trained when a test first asks for one of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from trainers.catalogue import RUNS, TrainedCheckpoint, locate
from trainers.ranks import run_ranks
from trainers.run import Run

# The slowest trainer takes six seconds on an idle machine, once torch is loaded.
_TRAINING_SECONDS = 400.0


class TrainedCheckpoints(Mapping[str, TrainedCheckpoint]):
    """Every run of the catalogue by its name.

    Asking for a run trains all runs of the same trainer on as many ranks: starting processes and
    importing what they need costs more than the runs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runs = {run.name: run for run in RUNS}
        self._trained: set[tuple[str, int]] = set()

    def __getitem__(self, name: str) -> TrainedCheckpoint:
        run = self._runs[name]
        if _group(run) not in self._trained:
            self._train(_group(run))
        return locate(self._folder, run)

    def __iter__(self) -> Iterator[str]:
        return iter(self._runs)

    def __len__(self) -> int:
        return len(self._runs)

    def _train(self, group: tuple[str, int]) -> None:
        from trainers.session import leave_checkpoints

        runs = [run for run in RUNS if _group(run) == group]
        run_ranks(group[1], leave_checkpoints, self._folder, runs, timeout_seconds=_TRAINING_SECONDS)
        self._trained.add(group)


def _group(run: Run) -> tuple[str, int]:
    return run.trainer.partition(".")[0], run.world_size
