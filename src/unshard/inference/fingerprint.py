"""How a causal language model behaves on a few sequences of tokens, in numbers that can be compared later.

Memory:
    Beside what the model itself needs for one sequence: float32 logits of 64 positions.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from unshard.errors import InferenceError
from unshard.inference.fingerprint_sequences import GREEDY_TOKENS, FingerprintSequence
from unshard.record.description import Fingerprint, SequencePrint

Forward = Callable[[torch.Tensor], torch.Tensor]

_TOP = 8
_BLOCK_TOKENS = 64
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul")
_COARSENESS = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Machinery:
    """What a model runs with.

    Attributes:
        weights: The dtype of most of its weights.
        attention: Its implementation of attention, or None where it has no choice.
        device: What it runs on.
        layers: How many layers it has, or None where that is not known.
    """

    weights: str
    attention: str | None
    device: str
    layers: int | None


def fingerprint_model(
    forward: Forward,
    sequences: Sequence[FingerprintSequence],
    machinery: Machinery,
    *,
    greedy_tokens: int = GREEDY_TOKENS,
) -> Fingerprint:
    """Return how a model behaves on sequences.

    Args:
        forward: From tokens of shape (1, tokens) to logits of shape (1, tokens, vocabulary). Where it is
            collective, every rank calls this with the same sequences; it is called equally often on all.
        sequences: At least one.
        machinery: What the model runs with.
        greedy_tokens: How long greedy continuations are, where a sequence has one.

    Raises:
        InferenceError: What the model gives are no logits.
    """
    computed, prints, vocabulary = machinery.weights, list[SequencePrint](), 0
    for sequence in sequences:
        with products_seen() as seen:
            found, vocabulary = print_sequence(forward, sequence, greedy_tokens=greedy_tokens)
        computed = coarsest(*seen, default=computed)
        prints.append(found)
    return fingerprint_of(
        prints, machinery, computed=computed, vocabulary=vocabulary, greedy_tokens=greedy_tokens
    )


def fingerprint_of(
    prints: Sequence[SequencePrint],
    machinery: Machinery,
    *,
    computed: str,
    vocabulary: int,
    greedy_tokens: int = GREEDY_TOKENS,
) -> Fingerprint:
    """Return what was made of sequences as one fingerprint."""
    return Fingerprint(
        weights=machinery.weights,
        computed=computed,
        attention=machinery.attention,
        device=machinery.device,
        vocabulary=vocabulary,
        layers=machinery.layers,
        greedy_tokens=greedy_tokens,
        sequences=tuple(prints),
    )


def print_sequence(
    forward: Forward,
    sequence: FingerprintSequence,
    *,
    vocabulary: int | None = None,
    top_ids: Sequence[int] | None = None,
    greedy_tokens: int = GREEDY_TOKENS,
) -> tuple[SequencePrint, int]:
    """Return what a model makes of one sequence, and how many logits it gives for a position.

    Args:
        forward: As in `fingerprint_model`.
        sequence: The sequence.
        vocabulary: How many of the logits count; None for all.
        top_ids: The tokens whose logits are taken at the last position; None for the likeliest.
        greedy_tokens: How long a continuation is taken, where the sequence has one.

    Raises:
        InferenceError: What the model gives are no logits.
    """
    tokens = torch.tensor([sequence.tokens])
    with torch.no_grad():
        logits = forward(tokens)
        _require_logits(logits, len(sequence.tokens))
        width = int(logits.shape[-1])
        print_ = _printed(logits, sequence, min(vocabulary or width, width), top_ids)
        del logits
        if sequence.is_continued and greedy_tokens:
            ids = [print_.argmax[-1], *_continued(forward, tokens, print_.argmax[-1], greedy_tokens - 1)]
            digest = hashlib.sha256(struct.pack(f"<{len(ids)}q", *ids)).hexdigest()
            print_ = replace(print_, greedy_sha256=digest)
    return print_, width


def _require_logits(logits: object, positions: int) -> None:
    is_fit = isinstance(logits, torch.Tensor) and logits.dim() == 3 and logits.is_floating_point()
    if not is_fit or tuple(logits.shape[:2]) != (1, positions) or logits.shape[2] < 2:  # type: ignore[attr-defined]
        saw = (
            f"a tensor of shape {list(logits.shape)}"
            if isinstance(logits, torch.Tensor)
            else type(logits).__name__
        )
        raise InferenceError(
            "the model", "gives no logits for tokens", saw=saw, expected=f"shape [1, {positions}, vocabulary]"
        )


def _printed(
    logits: torch.Tensor, sequence: FingerprintSequence, vocabulary: int, top_ids: Sequence[int] | None
) -> SequencePrint:
    losses, argmax, gaps = list[float](), list[int](), list[float]()
    last = None
    for start, block in _blocks(logits, vocabulary):
        targets = torch.tensor(sequence.tokens[start + 1 : start + 1 + len(block)], device=block.device)
        known = targets < vocabulary
        picked = block[: len(targets)].gather(1, targets.where(known, 0)[:, None])[:, 0]
        losses += (block[: len(targets)].logsumexp(1) - picked).where(known, torch.nan).tolist()
        best = block.topk(2, dim=1)
        argmax += best.indices[:, 0].tolist()
        gaps += (best.values[:, 0] - best.values[:, 1]).tolist()
        last = block[-1]
    assert last is not None
    ids = last.topk(min(_TOP, vocabulary)).indices.tolist() if top_ids is None else list(top_ids)
    return SequencePrint(
        name=sequence.name,
        text=sequence.text,
        tokens=sequence.tokens,
        losses=tuple(map(_short, losses)),
        argmax=tuple(argmax),
        gaps=tuple(map(_short, gaps)),
        top_ids=tuple(ids),
        top_logits=tuple(_short(float(last[i])) if i < len(last) else float("nan") for i in ids),
        greedy_sha256=None,
    )


def _blocks(logits: torch.Tensor, vocabulary: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the first position and the float32 logits of every 64 positions.

    Logits that lie on several devices, as under tensor parallelism, are put together block by block.
    """
    for start in range(0, logits.shape[1], _BLOCK_TOKENS):
        block: Any = logits[0, start : start + _BLOCK_TOKENS]
        block = block.full_tensor() if hasattr(block, "full_tensor") else block
        yield start, block[:, :vocabulary].float()


def _continued(forward: Forward, tokens: torch.Tensor, first: int, count: int) -> Iterator[int]:
    """Yield the likeliest token after all before it, `count` times."""
    newest = first
    for _ in range(count):
        tokens = torch.cat((tokens, torch.tensor([[newest]])), dim=1)
        last: Any = forward(tokens)[0, -1:]
        last = last.full_tensor() if hasattr(last, "full_tensor") else last
        newest = int(last.float().argmax())
        yield newest


def _short(value: float) -> float:
    """Return a float32 as the shortest decimal number that is still it."""
    return float(f"{value:.9g}")


class products_seen(TorchDispatchMode):  # type: ignore[misc]  # noqa: N801 - torch's has no types; a context
    """Collects the dtypes that matrix products give: what a model computes in, whatever it hands out.

    Autocast and mixed precision compute in fewer bits than weights have, and logits may be cast up again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._dtypes: set[str] = set()

    def __enter__(self) -> set[str]:
        super().__enter__()
        return self._dtypes

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Call an operation, and note what it gives where it is a product."""
        given = func(*args, **(kwargs or {}))
        if isinstance(given, torch.Tensor) and func.overloadpacket.__name__ in _PRODUCTS:
            self._dtypes.add(str(given.dtype).removeprefix("torch."))
        return given


def coarsest(*dtypes: str, default: str) -> str:
    """Return the dtype among several that has the fewest bits after the point, or `default` for none."""
    known = [dtype for dtype in dtypes if dtype in _COARSENESS]
    return max(known, key=_COARSENESS.index) if known else default
