"""A loaded model held against the fingerprint that training left: its tokens, then its logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from unshard.errors import InferenceError
from unshard.findings import Finding, Severity, finding
from unshard.inference.fingerprint import print_sequence, products_seen
from unshard.inference.fingerprint_sequences import FingerprintSequence, text_ids
from unshard.inference.forward_pass import forward_logits, takes_text
from unshard.inference.reproducing import (
    Reproduction,
    check_reproduction,
    compare_prints,
    is_comparable,
    tolerance_of,
)
from unshard.record.description import Fingerprint, Record, SequencePrint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# On a CPU, reading the weights takes about as long as computing with so many tokens.
_QUICK_TOKENS = 32


@dataclass(frozen=True, slots=True)
class FingerprintCheck:
    """What holding a model against its fingerprint shows.

    Attributes:
        reproduction: How its numbers compare, or None where they cannot be compared.
        findings: What differs, and what could not be compared.
    """

    reproduction: Reproduction | None
    findings: tuple[Finding, ...]

    @property
    def is_sound(self) -> bool:
        """Whether nothing differs beyond rounding."""
        return all(found.severity is not Severity.ERROR for found in self.findings)


def check_fingerprint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    record: Record,
    *,
    quick: bool = False,
) -> FingerprintCheck | None:
    """Return how a model compares with the fingerprint of a record, or None where that has none.

    Args:
        model: In eval mode.
        tokenizer: That of the model's folder; without one, only logits are compared.
        record: The record of the training.
        quick: Whether the first 32 tokens of one sequence are enough.

    Raises:
        InferenceError: The forward pass fails.
    """
    recorded = record.fingerprint
    if recorded is None:
        return None
    name = type(model).__name__
    other_tokens = tuple(_check_tokens(recorded, tokenizer))
    reason = _unlike(model, record, recorded)
    if reason is not None:
        untried = finding("U714", subject=name, saw=reason, remedy=None)
        return FingerprintCheck(None, (*other_tokens, untried))
    sequences = [_again(one, continued=not quick) for one in recorded.sequences]
    found = _measured(model, record, recorded, _one_of(sequences) if quick else sequences)
    return FingerprintCheck(found, (*other_tokens, *check_reproduction(found, name)))


def _again(one: SequencePrint, *, continued: bool) -> FingerprintSequence:
    return FingerprintSequence(one.name, one.text, one.tokens, continued and one.greedy_sha256 is not None)


def _one_of(sequences: Sequence[FingerprintSequence]) -> Sequence[FingerprintSequence]:
    """Return the beginning of the first sequence that was a text, or else of the first one.

    What a causal model makes of a beginning does not depend on what follows.
    """
    one = next((one for one in sequences if one.text is not None), sequences[0])
    return [replace(one, tokens=one.tokens[:_QUICK_TOKENS])]


def _check_tokens(recorded: Fingerprint, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[Finding]:
    """Yield the first text of which the tokenizer makes other tokens than training's did."""
    for one in recorded.sequences if tokenizer is not None else ():
        if one.text is None or tokenizer is None:
            continue
        own = text_ids(tokenizer, one.text)[: len(one.tokens)]
        if own != one.tokens:
            place = next(
                (n for n, (a, b) in enumerate(zip(own, one.tokens, strict=False)) if a != b), len(own)
            )
            saw = f"token {own[place]}" if place < len(own) else "no token"
            yield finding(
                "U712",
                subject=type(tokenizer).__name__,
                saw=f"{saw} at position {place} of `{one.name}`",
                expected=f"token {one.tokens[place]}, as in training",
                remedy="Take the tokenizer that the model was trained with: its folder, or the base's.",
            )
            return


def _unlike(model: PreTrainedModel, record: Record, recorded: Fingerprint) -> str | None:
    """Return why numbers cannot be compared, or None where they can."""
    if not takes_text(model) or model.config.is_encoder_decoder:
        return f"it takes {model.main_input_name}, and a fingerprint is of the next token"
    if not is_comparable(recorded):
        return "the logits of training itself were no numbers"
    trained = record.model.config or {}
    if getattr(model.config, "quantization_config", None) and not trained.get("quantization_config"):
        return "its weights are quantised, and training's were not"
    rows = model.get_input_embeddings().weight.shape[0]
    highest = max(max(one.tokens) for one in recorded.sequences)
    if highest >= rows:
        return f"its embedding has {rows:,} rows, and the fingerprint has token {highest:,}"
    return None


def _measured(
    model: PreTrainedModel, record: Record, recorded: Fingerprint, sequences: Sequence[FingerprintSequence]
) -> Reproduction:
    told = {one.name: one for one in recorded.sequences}
    prints, dtypes, vocabulary = list[SequencePrint](), set[str](), recorded.vocabulary
    for sequence in sequences:
        with products_seen() as seen:
            print_, vocabulary = print_sequence(
                partial(forward_logits, model),
                sequence,
                vocabulary=recorded.vocabulary,
                top_ids=told[sequence.name].top_ids,
                greedy_tokens=recorded.greedy_tokens,
            )
        prints.append(print_)
        dtypes |= seen
    weights = str(model.dtype).removeprefix("torch.")
    tolerance, dtype = tolerance_of(recorded, weights, *dtypes, *_of_tensor_cores(model, record))
    return compare_prints(
        recorded,
        prints,
        vocabulary=vocabulary,
        tolerance=tolerance,
        dtype=dtype,
        experts=_has_experts(model),
    )


def _has_experts(model: PreTrainedModel) -> bool:
    """Return whether a model routes tokens to experts, by what configurations call their number."""
    config = model.config.get_text_config()
    return any(
        getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")
    )


def _of_tensor_cores(model: PreTrainedModel, record: Record) -> tuple[str, ...]:
    """Return TF32 where either side rounds what it multiplies to it."""
    there = (
        record.environment.accelerator == "cuda" and record.environment.settings.get("allow_tf32") == "True"
    )
    here = model.device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32
    return ("tf32",) if there or here else ()


def require_reproduced(check: FingerprintCheck, subject: object) -> None:
    """Raise where a model is not what training left.

    Raises:
        InferenceError: It has other tokens or other logits.
    """
    wrong = [found for found in check.findings if found.severity is Severity.ERROR]
    if wrong:
        raise InferenceError(
            subject,
            "does not behave as training recorded",
            saw="; ".join(f"{found.code} {found.title}: {found.saw}" for found in wrong),
            expected="; ".join(str(found.expected) for found in wrong),
            hint=f"{wrong[0].remedy} To run it all the same: --no-fingerprint.",
        )
