"""The questions afterwards: what the base says, and what the result says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from unshard.demo.facts import Fact
from unshard.inference.generating import generate_answer
from unshard.inference.opening import open_model

if TYPE_CHECKING:
    from unshard.inference.loading import LoadedModel

_LONGEST_ANSWER = 40


@dataclass(frozen=True, slots=True)
class Answered:
    """A fact, and what two models said when they were asked for it."""

    fact: Fact
    base: str
    result: str

    @property
    def as_hoped(self) -> bool:
        """Whether the result knows the fact, and the base only what is true."""
        return self.fact.is_in(self.result) and not (self.fact.invented and self.fact.is_in(self.base))


def ask_both(base: Path, model: Path, facts: Sequence[Fact]) -> Iterator[Answered]:
    """Yield what two model folders answer to the question of every fact, as soon as both have.

    Memory:
        Both models.
    """
    with _one_thread():
        loaded = [_load(base), _load(model)]
        for fact in facts:
            yield Answered(fact, *(_answer(each, fact.question) for each in loaded))


def _load(folder: Path) -> LoadedModel:
    return open_model(
        [folder],
        base=None,
        dtype="base",
        device="cpu",
        device_map=None,
        step=None,
        select=None,
        lora_alpha=None,
        accept_inferred_shapes=False,
        download=False,
    )


def _answer(loaded: LoadedModel, question: str) -> str:
    assert loaded.tokenizer is not None
    answer = generate_answer(
        loaded.model,
        loaded.tokenizer,
        question,
        max_new_tokens=_LONGEST_ANSWER,
        temperature=0.0,
        seed=0,
        chat=True,
        on_text=lambda _: None,
    )
    return answer.text.strip()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: matrices this small gain nothing from more, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
