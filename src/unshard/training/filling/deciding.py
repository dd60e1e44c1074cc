"""What a model in training gets from a checkpoint: decided by all ranks alike, before anything is changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from unshard.base import Base
from unshard.checkpoint import Checkpoint
from unshard.errors import InputError
from unshard.match import Answer, Answers, Question, answer_questions
from unshard.readers import Places, as_paths, open_checkpoint
from unshard.record.description import RECORD_NAME, Record
from unshard.record.reading import read_record
from unshard.training.filling.adapted import lead_to_any
from unshard.training.filling.leading import Led
from unshard.training.filling.module_as_base import base_of_live
from unshard.training.live.local_tensors import LocalModel
from unshard.training.optimizer_state import SavedState, describe_optimizer
from unshard.training.ranks.protocol import Ranks

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for; `load_full` says what each means."""

    path: Places
    base: str | Path | None
    step: int | None
    select: str | None
    lora_alpha: float | None
    model_config: object
    strict: bool
    with_optimizer: bool


@dataclass(frozen=True, slots=True)
class Decided:
    """What will be loaded; nothing was yet.

    Attributes:
        checkpoint: What lies on disk.
        own: The model in training, as a base.
        led: The tensors that it gets.
        optimizer: The state that its optimizer gets, or None.
        record: The record beside the checkpoint, or None.
    """

    checkpoint: Checkpoint
    own: Base
    led: Led
    optimizer: SavedState | None
    record: Record | None


def decide(local: LocalModel, request: Request, ranks: Ranks) -> Decided:
    """Return what will be loaded; every rank calls it, and `load_full` says what can go wrong."""

    def look() -> tuple[Checkpoint, Base, SavedState | None, Record | None]:
        checkpoint = open_checkpoint(as_paths(request.path), step=request.step, select=request.select)
        own = base_of_live(local, model_config=request.model_config, reference=request.base)
        saved = describe_optimizer(checkpoint.path) if request.with_optimizer else None
        folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
        return checkpoint, own, saved, read_record(folder / RECORD_NAME)

    checkpoint, own, saved, record = here(ranks, "reading the checkpoint", look)
    _require_one(ranks, checkpoint, own)
    return Decided(checkpoint, own, _lead(checkpoint, own, request, ranks), saved, record)


def _lead(checkpoint: Checkpoint, own: Base, request: Request, ranks: Ranks) -> Led:
    """Return the tensors that the model gets; what tensor bytes decide is read by rank 0 alone."""
    phase, known = "matching the checkpoint to the model", dict[tuple[str, ...], Answer]()

    def asked(questions: tuple[Question, ...]) -> Answers:
        known.update(answers := answer_questions(questions))
        return answers

    def told(questions: tuple[Question, ...]) -> Answers:
        return {question.names: answers[question.names] for question in questions}

    def led(answering: Callable[[tuple[Question, ...]], Answers]) -> Led:
        strict, alpha = request.strict, request.lora_alpha
        return lead_to_any(checkpoint, own, answering, strict=strict, lora_alpha=alpha)

    first = here(ranks, phase, lambda: led(asked) if ranks.rank == 0 else None)
    answers = ranks.broadcast(phase, known)
    return here(ranks, phase, lambda: first or led(told))


def here(ranks: Ranks, phase: str, work: Callable[[], T]) -> T:
    """Return what `work` returns on this rank; where it raises on any rank, raise the same error on all."""
    results: list[T] = []
    ranks.together(phase, lambda: results.append(work()))
    return results[0]


def _require_one(ranks: Ranks, checkpoint: Checkpoint, own: Base) -> None:
    """Raise unless all ranks see the same checkpoint and hold the same model.

    Raises:
        InputError: They do not.
    """
    assert own.expected is not None
    found = {name: (tensor.shape, tensor.dtype.name) for name, tensor in checkpoint.tensors.items()}
    needed = {name: (tensor.shape, str(tensor.dtype)) for name, tensor in own.expected.items()}
    digest = hashlib.sha256(repr((found, needed, dict(own.ties))).encode()).hexdigest()[:8]
    said = ranks.gather("comparing what ranks see", (checkpoint.path.name, digest))
    unlike = next((rank for rank, each in enumerate(said) if each != said[0]), None)
    if unlike is not None:
        seen = (f"`{name}` (digest {digest}) on rank {rank}" for rank, (name, digest) in enumerate(said))
        first, other = (each for rank, each in enumerate(seen) if rank in (0, unlike))
        raise InputError(
            checkpoint.path,
            "is another checkpoint on another rank, or the ranks hold different models",
            saw=f"{first}, {other}",
            expected="one checkpoint, and one model, on all ranks",
            hint="Nodes with disks of their own may hold other steps, and a newer one may just be written: "
            "name the step with step=, and give every rank the same files.",
        )
