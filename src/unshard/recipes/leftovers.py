"""Tensors that are no part of a plain model: by their names, and what they are.

Source:
    PEFT's `tuners/lora/layer.py`; bitsandbytes' `functional.QuantState`; the headers of GPTQ, AWQ,
    FP8 and MXFP4 models on the hub; TransformerEngine's `Module.get_extra_state`; torch's FlatParameter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Written for resuming only: a served model neither needs nor knows them.
_TRAINING_ONLY = re.compile(r"(^|\.)_extra_state(\.|$)|(^|\.)_extra_state\d*$")

_ADAPTERS = (
    (re.compile(r"\.lora_magnitude_vector(\.|$)"), "DoRA adapter"),
    (re.compile(r"\.lora_(A|B|embedding_A|embedding_B)(\.|$)"), "LoRA adapter"),
    (re.compile(r"(^|\.)(hada_w[12]|lokr_w[12]|oft_[rR]|vera_lambda|ia3_l)"), "PEFT adapter"),
    (re.compile(r"\.modules_to_save\.|\.trainable_tokens_delta(\.|$)"), "PEFT adapter"),
)

_QUANTISED = (
    (
        re.compile(r"\.(absmax|quant_map|nested_absmax|nested_quant_map)$|\.quant_state\."),
        "bitsandbytes 4-bit",
    ),
    (re.compile(r"\.(SCB|weight_format)$"), "bitsandbytes 8-bit"),
    (re.compile(r"\.(qweight|qzeros|g_idx|scales)$"), "GPTQ or AWQ"),
    (
        re.compile(r"(\.weight|_proj)_scale_inv$|\.(weight_scale|input_scale|activation_scale)$"),
        "FP8 with scales",
    ),
    (re.compile(r"_proj_(blocks|scales)$"), "MXFP4"),
    (
        re.compile(r"\.(weight_packed|weight_shape|weight_global_scale|weight_zero_point)$"),
        "compressed-tensors",
    ),
)

# The tensor that holds the values themselves, and what its end becomes without quantisation.
_PACKED = {".qweight": ".weight", ".weight_packed": ".weight", "_blocks": ""}

_FLAT = re.compile(r"(^|\.)(_flat_param|flat_param_\d+|flat_param)$")


def is_training_only(name: str) -> bool:
    """Return whether a tensor of this name is state of training and not of the model."""
    return "_extra_state" in name and _TRAINING_ONLY.search(name) is not None


def adapter_kind(name: str) -> str | None:
    """Return what adapter a tensor of this name belongs to, or None."""
    return next((kind for pattern, kind in _ADAPTERS if pattern.search(name)), None)


def quantisation_kind(name: str) -> str | None:
    """Return what quantisation a tensor of this name belongs to, or None."""
    if name.endswith(".weight"):  # most names end here
        return None
    return next((kind for pattern, kind in _QUANTISED if pattern.search(name)), None)


def unquantised_name(name: str) -> str | None:
    """Return what a tensor of a quantised model is called without quantisation, or None for its scales."""
    for ending, plain in _PACKED.items():
        if name.endswith(ending):
            return name.removesuffix(ending) + plain
    return None if quantisation_kind(name) else name


def flat_parameters(names: Iterable[str]) -> list[str]:
    """Return the names of whole FSDP units flattened into one vector, which carry no shapes."""
    return [name for name in names if _FLAT.search(name)]
