"""Quantised weights: by which names their parts go together, and what their codes stand for.

A quantised weight lies in several tensors: the values, their scales, and more. A part is known by how its
name ends; what stands before that leads to the name of the weight as a model without quantisation has it.

Source:
    bitsandbytes/functional.py (`QuantState.as_dict`) and nn/modules.py (`Linear8bitLt`);
    transformers/integrations/{finegrained_fp8,fbgemm_fp8,mxfp4}.py; compressed_tensors/compressors/;
    torchao/prototype/safetensors/safetensors_support.py (`flatten_tensor_state_dict`); the headers of
    GPTQ, AWQ, HQQ, FP8 and MXFP4 models on the hub.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

BNB4, BNB8, FP8, MXFP4 = "bitsandbytes 4-bit", "bitsandbytes 8-bit", "FP8 with scales", "MXFP4"
GPTQ, PACKED, TORCHAO, HQQ, QUANTO = "GPTQ or AWQ", "compressed-tensors", "torchao", "HQQ", "quanto"

# What `quant_method` in config.json calls each kind; several formats use names of FP8's kind.
METHODS: dict[str, tuple[str, ...]] = {
    BNB4: ("bitsandbytes",),
    BNB8: ("bitsandbytes",),
    FP8: ("fp8", "fbgemm_fp8", "compressed-tensors", "modelopt", "deepseek", "quark"),
    MXFP4: ("mxfp4",),
    GPTQ: ("gptq", "awq", "gptq_marlin", "awq_marlin", "auto-round"),
    PACKED: ("compressed-tensors",),
    TORCHAO: ("torchao",),
    HQQ: ("hqq",),
    QUANTO: ("quanto",),
}


@dataclass(frozen=True, slots=True)
class Part:
    """What one tensor is of a quantised weight.

    Attributes:
        kind: How the weight is quantised.
        weight: Its name in a model without quantisation.
        role: `values`, or what else the tensor is: `scale`, `absmax`, `zeros`, ...
    """

    kind: str
    weight: str
    role: str


# In the order in which they are tried: the kind, how names end, and what the weight is called instead.
# The role is the group `role`, or `values` where the ending has none.
_ENDINGS: tuple[tuple[str, re.Pattern[str], str], ...] = (
    (BNB4, re.compile(r"\.(?P<role>absmax|quant_map|nested_absmax|nested_quant_map)$"), ""),
    (BNB4, re.compile(r"\.(?P<role>quant_state)\.\w+$"), ""),
    (BNB8, re.compile(r"(?:\.weight)?\.(?P<role>SCB|weight_format)$"), ".weight"),
    (GPTQ, re.compile(r"\.qweight$"), ".weight"),
    (GPTQ, re.compile(r"\.(?P<role>qzeros|g_idx|scales)$"), ".weight"),
    (PACKED, re.compile(r"\.weight_packed$"), ".weight"),
    (PACKED, re.compile(r"\.weight_(?P<role>shape|global_scale|zero_point|g_idx)$"), ".weight"),
    (FP8, re.compile(r"\.weight_(?P<role>scale_inv|scale_2|scale)$"), ".weight"),
    (FP8, re.compile(r"(?<=_proj)_(?P<role>scale_inv)$"), ""),
    (FP8, re.compile(r"\.(?P<role>(?:input|activation|output)_(?:global_)?scale)$"), ".weight"),
    (MXFP4, re.compile(r"(?<=_proj)_blocks$"), ""),
    (MXFP4, re.compile(r"(?<=_proj)_(?P<role>scales)$"), ""),
    (TORCHAO, re.compile(r"\._weight_qdata$"), ".weight"),
    (TORCHAO, re.compile(r"\._weight_(?P<role>scale|zero_point|scale_and_zero|act_pre_scale)$"), ".weight"),
    (HQQ, re.compile(r"\.W_q$"), ".weight"),
    (QUANTO, re.compile(r"\.weight\._data$"), ".weight"),
    (QUANTO, re.compile(r"\.weight\._(?P<role>scale|shift)$"), ".weight"),
)
# Every ending has one of these, so that most names are passed over at once.
_TELLING = re.compile(
    r"absmax|quant_map|quant_state|SCB$|weight_format$|qweight$|qzeros$|g_idx$|scales?$|weight_packed$|weight_shape$"
    r"|zero_point$|scale_inv$|scale_2$|_blocks$|_qdata$|scale_and_zero$|W_q$|\._data$|\._shift$"
)

# The roles without which a weight of a kind is not whole: one of each.
NEEDED: dict[str, tuple[tuple[str, ...], ...]] = {
    BNB4: (("absmax",), ("quant_state",)),
    BNB8: (("SCB",),),
    FP8: (("scale", "scale_inv"),),
    MXFP4: (("scales",),),
    GPTQ: (("scales",), ("qzeros",)),
    PACKED: (("scale",),),
    TORCHAO: (("scale",),),
    HQQ: (),
    QUANTO: (("scale",),),
}

# What engines need of activations, and no weight is made of.
_OF_ACTIVATIONS = re.compile(r"(input|activation|output)_(global_)?scale")

# NF4: the quantiles of a normal distribution, scaled to [-1, 1].
# Source: bitsandbytes/csrc/kernels.cu (`nf4_dequantization_lut`, `fp4_dequantization_lut`); the code in the
# checkpoint (`quant_map`) repeats it, and its own library does not read that.
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_FP4_POSITIVE = (0.0, 0.005208333333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25)
FP4 = (*_FP4_POSITIVE, *(-value for value in _FP4_POSITIVE))

# Source: OCP Microscaling Formats (MX) Specification 1.0, E2M1.
_E2M1_POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1 = (*_E2M1_POSITIVE, *(-value for value in _E2M1_POSITIVE))

# How far up in its word of 32 bits AWQ puts each of eight neighbours.
# Source: AutoAWQ, awq/utils/packing_utils.py (`AWQ_REVERSE_ORDER`).
AWQ_SHIFTS = (0, 16, 4, 20, 8, 24, 12, 28)


def part_of(name: str) -> Part | None:
    """Return what a tensor of this name is of a quantised weight, or None.

    The values of many kinds have the name of the weight itself, and are no part by name.
    """
    if _TELLING.search(name) is None:
        return None
    for kind, ending, plain in _ENDINGS:
        found = ending.search(name, 1)
        if found is not None:
            role = found.groupdict().get("role") or "values"
            return Part(kind, name[: found.start()] + plain, role)
    return None


def quantisation_kind(name: str) -> str | None:
    """Return what quantisation a tensor of this name belongs to, or None."""
    part = part_of(name)
    return None if part is None else part.kind


def unquantised_name(name: str) -> str | None:
    """Return what a tensor of a quantised model is called without quantisation, or None for its scales."""
    part = part_of(name)
    if part is None:
        return name
    return part.weight if part.role == "values" else None


def is_of_activations(role: str) -> bool:
    """Return whether a part scales what flows through the model, and not its weights."""
    return _OF_ACTIVATIONS.fullmatch(role) is not None
