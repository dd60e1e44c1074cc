"""Every checkpoint that the tests have real trainers leave, as data: importing this imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from trainers.run import Run
from trainers.sharded_runs import SHARDED_RUNS
from trainers.state_dict_runs import STATE_DICT_RUNS

RUNS = (*STATE_DICT_RUNS, *SHARDED_RUNS)


@dataclass(frozen=True, slots=True)
class TrainedCheckpoint:
    """A checkpoint that a real trainer left, and the truth about it.

    Attributes:
        run: The training run it comes from.
        folder: The run's folder.
        path: What a person would give to a command.
        truths: The model's unsharded state dict before it was wrapped, by epoch, as safetensors files.
        base: The model folder training started from: the same architecture with other weights.
    """

    run: Run
    folder: Path
    path: Path
    truths: tuple[Path, ...]
    base: Path | None

    @property
    def truth(self) -> Path:
        """The truth about the newest checkpoint."""
        return self.truths[-1]

    @property
    def published(self) -> Path:
        """The same weights as transformers publishes them: experts one by one, a tied pair once."""
        return self.truth.with_suffix(".published.safetensors")


def base_folder(folder: Path, run: Run) -> Path:
    """Return where the base of a run's model lies below the session's folder."""
    kind = f"tied-{run.model}" if run.tied else run.model
    return folder / "bases" / kind


def locate(folder: Path, run: Run) -> TrainedCheckpoint:
    """Return the checkpoint that a run leaves below the session's folder."""
    return TrainedCheckpoint(
        run,
        folder / run.name,
        folder / run.name / run.path,
        tuple(truth_file(folder / run.name, epoch) for epoch in range(run.epochs)),
        base_folder(folder, run) if run.based else None,
    )


def truth_file(folder: Path, epoch: int) -> Path:
    """Return where the truth about an epoch lies: outside everything a command would be given."""
    return folder.parent / "truths" / f"{folder.name}-{epoch}.safetensors"


def quiet_environment() -> None:
    """Keep two ranks from fighting over two cores, and every library from looking for a network."""
    os.environ.update(
        OMP_NUM_THREADS="1",
        HF_HUB_OFFLINE="1",
        TRANSFORMERS_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
    )
