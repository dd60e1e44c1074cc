"""In which order the rows of attention's heads lie: shapes do not tell, and the base's own weights do.

Training leaves a weight near what it was. The rows of a few of its heads are like the base's in one order
alone, and in every other one like nothing.

Memory:
    At most 64 times 64 elements of a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unshard.dtypes import FLOAT32
from unshard.errors import MatchError
from unshard.findings import Finding, finding
from unshard.match.restored import Arranged
from unshard.tensors import CastTensor, Tensor
from unshard.tensors.sampling import cosine_of

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

_MOST = 64
_GOLDEN = 0.6180339887498949  # multiples of it fall on rows of every remainder, whatever the size of a head
# Cosines of unlike rows are near 0: 0.016 is one deviation of 4,096 elements. Rows that two orders have in
# the same places count in both, and are up to half of all in the smallest heads.
_LIKE, _CLEARLY = 0.5, 0.2


@dataclass(frozen=True, slots=True)
class OrderQuestion:
    """Are the rows of a tensor in the order in which the base has them?

    Attributes:
        names: Its name here, and in the base.
        arranged: The tensor, and what it would be in other orders.
        base: The base's own.
    """

    names: tuple[str, str]
    arranged: Arranged
    base: Tensor


def order_questions(
    arranged: Mapping[str, Arranged], names: Mapping[str, str], weights: Mapping[str, Tensor]
) -> Iterator[OrderQuestion]:
    """Yield what to ask of tensors whose rows were reordered, where the base has weights like them.

    Args:
        arranged: The tensors by their names.
        names: Their names in the model.
        weights: The base's own weights.
    """
    for name, each in arranged.items():
        target = names.get(name, name)
        base = weights.get(target)
        if base is not None and base.shape == each.tensor.shape and base.dtype.kind == "float":
            yield OrderQuestion((name, target), each, base)


def best_order(question: OrderQuestion) -> tuple[bool | None, str]:
    """Return whether the rows are in the base's order, None where nothing tells; and what was seen."""
    base = _sample(question.base)
    own = cosine_of(_sample(question.arranged.tensor), base)
    others = [(cosine_of(_sample(tensor), base), words) for words, tensor in question.arranged.others.items()]
    best, words = max(others, default=(-1.0, ""))
    seen = f"cosine {own:.2f} to the base's as translated"
    if best > _LIKE and best - own > _CLEARLY:
        return False, f"{seen}, {best:.2f} {words}"
    if own > _LIKE:
        return True, seen
    return None, f"{seen}, at most {max(best, own):.2f} otherwise"


def _sample(tensor: Tensor) -> np.ndarray:
    """Return a few elements of rows that lie all over a matrix, as float32."""
    import numpy as np

    plain = tensor if tensor.dtype == FLOAT32 else CastTensor(tensor, FLOAT32)
    rows, columns = plain.shape
    width = min(columns, _MOST)
    picked = range(rows) if rows <= _MOST else [int(i * _GOLDEN % 1 * rows) for i in range(_MOST)]
    found = np.empty((len(picked), width), np.float32)
    for place, row in enumerate(picked):
        plain.read(row * columns, row * columns + width, memoryview(found[place]).cast("B"))
    return found.astype(np.float64)


def check_orders(seen: Mapping[str, tuple[bool | None, str]], path: Path) -> list[Finding]:
    """Return what could not be proven of the order of rows.

    Args:
        seen: What was seen of tensors, by their names.
        path: The checkpoint.

    Raises:
        MatchError: They are in another order; all of them are named.
    """
    wrong = {name: words for name, (holds, words) in seen.items() if holds is False}
    if wrong:
        listed = "; ".join(f"`{name}`: {words}" for name, words in sorted(wrong.items()))
        error = MatchError(
            path,
            "has rows of attention in another order than its names and the head counts of config.json tell: "
            + listed,
            hint="Name the base whose head counts training used with --base; where the rows are in Hugging "
            "Face's order already, give the tensors Hugging Face's names, too.",
        )
        error.code = "U211"
        raise error
    unproven = {name: words for name, (holds, words) in seen.items() if holds is None}
    remedy = "Nothing, if it was trained from scratch; else ask it something: unshard run OUT --prompt TEXT"
    return [
        finding("U212", subject=name, saw=words, remedy=remedy) for name, words in sorted(unproven.items())
    ]
