"""Questions that only tensor bytes can answer, asked as data, and the one bounded reader that answers.

Memory:
    Two buffers of 1 MiB, whatever the size of the tensors; a tensor of frequencies is read whole
    (some hundred numbers).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unshard.dtypes import FLOAT32, DType
from unshard.match.frequencies import Rotary, compare_frequencies
from unshard.match.orders import OrderQuestion, best_order
from unshard.recipes.recomputable import Kind
from unshard.tensors import CastTensor, DescribedTensor, Tensor, element_count

if TYPE_CHECKING:
    import numpy as np

_BLOCK_BYTES = 1 << 20
_MOST_FREQUENCIES = 1 << 16


@dataclass(frozen=True, slots=True)
class EqualQuestion:
    """Do two tensors hold the same values, bit for bit?

    Attributes:
        names: Their names in the checkpoint.
        tensors: The tensors.
    """

    names: tuple[str, str]
    tensors: tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class RecomputableQuestion:
    """Does a tensor hold what the model computes itself?

    Attributes:
        names: Its name in the checkpoint.
        tensor: The tensor.
        kind: How the model computes it.
        rotary: For frequencies, the ways the configuration allows.
    """

    names: tuple[str]
    tensor: Tensor
    kind: Kind
    rotary: tuple[Rotary, ...]


Question = EqualQuestion | RecomputableQuestion | OrderQuestion


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer.

    Attributes:
        holds: Yes, no, or None where it cannot be told.
        evidence: What was seen, in words.
    """

    holds: bool | None
    evidence: str


Answers = Mapping[tuple[str, ...], Answer]


def answer_questions(questions: Iterable[Question]) -> Answers:
    """Return the answer to every question, by the names of the tensors it is about.

    Raises:
        DamagedFileError: A file is shorter than it should be, or has changed.
    """
    return {question.names: _answered(question) for question in questions}


def _answered(question: Question) -> Answer:
    match question:
        case EqualQuestion():
            return _are_equal(question)
        case RecomputableQuestion():
            return _is_recomputable(question)
        case OrderQuestion():
            return Answer(*best_order(question))


def _are_equal(question: EqualQuestion) -> Answer:
    """Compare two tensors block by block, up to the first difference."""
    import numpy as np

    first, second = _in_one_dtype(*question.tensors)
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        kinds = " and ".join(f"{tensor.shape} {tensor.dtype}" for tensor in question.tensors)
        return Answer(holds=False, evidence=f"they are {kinds}")
    if _lie_in_one_place(*question.tensors):
        return Answer(holds=True, evidence="one storage")
    done = 0
    for ours, theirs in zip(_blocks(first), _blocks(second), strict=True):
        a, b = np.frombuffer(ours, np.uint8), np.frombuffer(theirs, np.uint8)
        if not np.array_equal(a, b):
            element = (done + int((a != b).argmax())) // first.dtype.itemsize
            evidence = f"they differ from element {element:,} of {element_count(first):,} on"
            return Answer(holds=False, evidence=evidence)
        done += len(ours)
    return Answer(holds=True, evidence=f"{element_count(first):,} elements, bit for bit")


def _lie_in_one_place(first: Tensor, second: Tensor) -> bool:
    """Return whether both are the same bytes of the same file."""
    if isinstance(first, DescribedTensor) and isinstance(second, DescribedTensor):
        return first.pieces == second.pieces
    return False


def _in_one_dtype(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return both tensors in a dtype that holds the values of both exactly, where there is one."""
    if first.dtype == second.dtype or {first.dtype.kind, second.dtype.kind} != {"float"}:
        return first, second
    wide = max((first.dtype, second.dtype, FLOAT32), key=lambda dtype: dtype.itemsize)
    return _widened(first, wide), _widened(second, wide)


def _widened(tensor: Tensor, dtype: DType) -> Tensor:
    return tensor if tensor.dtype == dtype else CastTensor(tensor, dtype)


def _blocks(tensor: Tensor) -> Iterator[memoryview]:
    """Yield the bytes of a tensor in blocks of 1 MiB; every block overwrites the one before it."""
    count, size = element_count(tensor), tensor.dtype.itemsize
    block = _BLOCK_BYTES // size
    buffer = memoryview(bytearray(min(count, block) * size))
    for start in range(0, count, block):
        stop = min(count, start + block)
        part = buffer[: (stop - start) * size]
        tensor.read(start, stop, part)
        yield part


def _is_recomputable(question: RecomputableQuestion) -> Answer:
    """Compare a tensor with what the model computes."""
    import numpy as np

    tensor, dtype = question.tensor, question.tensor.dtype
    if question.kind == "table" or dtype.kind == "complex":
        return Answer(holds=None, evidence="sines and cosines are not compared")
    if question.kind == "frequencies":
        return _frequencies_answer(question)
    done = 0
    for block in _blocks(tensor):
        values = np.frombuffer(block, dtype.numpy)
        wrong = np.flatnonzero(~_as_computed(values, done, question))
        if wrong.size:
            at = int(wrong[0])
            return Answer(holds=False, evidence=f"element {done + at:,} is {values[at]}")
        done += values.size
    return Answer(holds=True, evidence=_EVIDENCE[question.kind])


def _frequencies_answer(question: RecomputableQuestion) -> Answer:
    import numpy as np

    tensor = question.tensor
    count = element_count(tensor)
    if tensor.dtype.kind != "float" or count > _MOST_FREQUENCIES:
        return Answer(holds=False, evidence=f"{count:,} elements of {tensor.dtype}")
    raw = bytearray(count * tensor.dtype.itemsize)
    tensor.read(0, count, memoryview(raw))
    comparison = compare_frequencies(
        np.frombuffer(raw, tensor.dtype.numpy).astype(np.float64), question.rotary
    )
    return Answer(holds=comparison.fits, evidence=comparison.evidence)


_EVIDENCE: dict[Kind, str] = {
    "causal mask": "ones on and below the diagonal",
    "positions": "0, 1, 2, ...",
    "zeros": "nothing but zeros",
    "constant": "one large negative number",
}


def _as_computed(values: np.ndarray, done: int, question: RecomputableQuestion) -> np.ndarray:
    """Return where values, the first of which is the `done`-th element, are what the model computes."""
    import numpy as np

    width = question.tensor.shape[-1] if question.tensor.shape else 1
    index = np.arange(done, done + values.size)
    row, column = index // width, index % width
    match question.kind:
        case "causal mask":
            return np.asarray(values == (column <= row))
        case "positions":
            return np.asarray(values == column)
        case "constant":
            return np.asarray(values.astype(np.float64) <= -1e3)
    return np.asarray(values == 0)
