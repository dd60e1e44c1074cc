"""Tensors that a model computes itself: old checkpoints hold them, published files do not.

Each kind says how its values can be checked before it is dropped:

    frequencies   rotary frequencies; they follow from the configuration
    causal mask   ones on and below the diagonal
    positions     0, 1, 2, ...
    zeros         nothing but zeros
    constant      one large negative number
    table         sines and cosines; they follow from the frequencies, and are not checked

Source:
    transformers before 4.32 (persistent `inv_freq`), 4.31 (`attn.bias`, `attn.masked_bias`, `position_ids`);
    Meta's llama (`rope.freqs`), gpt-fast (`freqs_cis`).
"""

from __future__ import annotations

import re
from typing import Literal

Kind = Literal["frequencies", "causal mask", "positions", "zeros", "constant", "table"]

_KINDS: tuple[tuple[re.Pattern[str], Kind], ...] = (
    (re.compile(r"(^|\.)rope\.freqs$|(^|[._])(original_)?inv_freq$"), "frequencies"),
    (re.compile(r"(^|\.)(attn|attention|self_attention)\.masked_bias$"), "constant"),
    (re.compile(r"(^|\.)(attn|attention|crossattention)\.bias$"), "causal mask"),
    (re.compile(r"(^|\.)(embeddings\.)?position_ids$"), "positions"),
    (re.compile(r"(^|\.)embeddings\.token_type_ids$"), "zeros"),
    (re.compile(r"(^|\.)freqs_cis$|(^|\.)rotary_emb\.(cos|sin)_cached$|\.embed_positions$"), "table"),
)


_ENDINGS = (
    "freqs",
    "inv_freq",
    "bias",
    "position_ids",
    "token_type_ids",
    "freqs_cis",
    "cos_cached",
    "sin_cached",
    "embed_positions",
)


def recomputable_kind(name: str, shape: tuple[int, ...] | None) -> Kind | None:
    """Return how the model computes a tensor of this name and shape, or None where it does not.

    A shape that is not known is taken to be the right one.
    """
    if not name.endswith(_ENDINGS):  # most names end here
        return None
    kind = next((kind for pattern, kind in _KINDS if pattern.search(name)), None)
    return kind if kind is not None and (shape is None or _fits(kind, shape)) else None


def _fits(kind: Kind, shape: tuple[int, ...]) -> bool:
    """Return whether the shape is one that computed tensors of this kind have."""
    match kind:
        case "frequencies":
            return len(shape) == 1 and shape[0] > 0
        case "causal mask":
            return len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]
        case "constant":
            return shape in ((), (1,))
        case "positions" | "zeros":
            return len(shape) in (1, 2)
        case "table":
            return len(shape) >= 2
