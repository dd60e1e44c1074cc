"""Tensors that are no part of a plain model: by their names, and what they are.

Source:
    PEFT's `tuners/lora/layer.py`; TransformerEngine's `Module.get_extra_state`; torchao 0.5,
    float8/float8_linear.py (`Float8Linear.create_buffers`: delayed scaling); torch's FlatParameter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Written for resuming only: a served model neither needs nor knows them.
_TRAINING_ONLY = re.compile(
    r"(^|\.)_extra_state(\.|$)|(^|\.)_extra_state\d*$"
    r"|(^|\.)fp8_(amax_history|amax|scale)_(input|weight|grad_output|x|w|dL_dY)$"
)

_ADAPTERS = (
    (re.compile(r"\.lora_magnitude_vector(\.|$)"), "DoRA adapter"),
    (re.compile(r"\.lora_(A|B|embedding_A|embedding_B)(\.|$)"), "LoRA adapter"),
    (re.compile(r"(^|\.)(hada_w[12]|lokr_w[12]|oft_[rR]|vera_lambda|ia3_l)"), "PEFT adapter"),
    (re.compile(r"\.modules_to_save\.|\.trainable_tokens_delta(\.|$)"), "PEFT adapter"),
)

_FLAT = re.compile(r"(^|\.)(_flat_param|flat_param_\d+|flat_param)$")


def is_training_only(name: str) -> bool:
    """Return whether a tensor of this name is state of training and not of the model."""
    return ("_extra_state" in name or "fp8_" in name) and _TRAINING_ONLY.search(name) is not None


def adapter_kind(name: str) -> str | None:
    """Return what adapter a tensor of this name belongs to, or None."""
    return next((kind for pattern, kind in _ADAPTERS if pattern.search(name)), None)


def flat_parameters(names: Iterable[str]) -> list[str]:
    """Return the names of whole FSDP units flattened into one vector, which carry no shapes."""
    return [name for name in names if _FLAT.search(name)]
