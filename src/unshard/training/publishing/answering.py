"""Questions about tensors that lie with several ranks: what they need is passed to rank 0, which answers."""

from __future__ import annotations

from collections.abc import Iterator

from unshard.match import Answer, Answers, Question, answer_questions
from unshard.match.questions import EqualQuestion, RecomputableQuestion
from unshard.tensors import CastTensor, DescribedTensor, Piece, Tensor
from unshard.training.live.source import Holdings, LiveSource
from unshard.training.publishing.adapters import ComputedByRank, share_parts
from unshard.training.ranks.protocol import Ranks


def answer_on_ranks(questions: tuple[Question, ...], holdings: Holdings, ranks: Ranks) -> Answers:
    """Return the answers to questions about live tensors; every rank calls it with the same questions.

    Memory:
        A few MiB; what rank 0 needs of others lies in a temporary file.
    """
    needed = [_passed_to_first(tensor) for question in questions for tensor in _tensors_of(question)]

    def answer() -> dict[tuple[str, ...], Answer]:
        return dict(answer_questions(questions)) if ranks.rank == 0 else {}

    with share_parts(needed, holdings, ranks):
        return ranks.together("comparing tensors", answer)[0]


def _tensors_of(question: Question) -> Iterator[Tensor]:
    """Yield the live tensors that a question is about; none has rows that another scheme has reordered."""
    if isinstance(question, EqualQuestion):
        yield from question.tensors
    elif isinstance(question, RecomputableQuestion):
        yield question.tensor


def _passed_to_first(tensor: Tensor) -> DescribedTensor:
    """Return a tensor as one that rank 0 computes, so that it is given what others hold."""
    described = tensor.source if isinstance(tensor, CastTensor) else tensor
    assert isinstance(described, DescribedTensor)
    pieces = [
        Piece(piece.box, ComputedByRank(0, piece.source, tuple(_live_in(piece.source))))
        for piece in described.pieces
    ]
    return DescribedTensor(described.shape, described.dtype, tuple(pieces))


def _live_in(source: object) -> Iterator[LiveSource]:
    """Yield what live elements a source is made of."""
    while source is not None:
        if isinstance(source, LiveSource):
            yield source
            return
        if isinstance(source, ComputedByRank):
            yield from source.needed
            return
        source = getattr(source, "whole", None)
