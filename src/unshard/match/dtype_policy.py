"""Which dtype every tensor of the result has.

`base` gives each tensor the dtype it has in the base's own weights, or — where those are not known —
the one the configuration names; `keep` changes nothing; a dtype's name means that dtype. Only
floating parameters are ever cast: integers, booleans and buffers stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

from unshard.base import Base
from unshard.base.configuration import lookup
from unshard.checkpoint import TrainingParameters
from unshard.dtypes import DTYPES, DType
from unshard.errors import OptionError
from unshard.findings import Finding, finding
from unshard.match.needs import Needs
from unshard.recipes.buffers import is_buffer
from unshard.tensors import Tensor

_CHOICES = ("base", "keep", "float32", "bfloat16", "float16")


def require_policy(dtype: str) -> None:
    """Raise unless `dtype` is a policy.

    Raises:
        OptionError: It is not; the message lists those that are.
    """
    if dtype not in _CHOICES:
        expected = ", ".join(_CHOICES)
        raise OptionError("--dtype", "has a value that means nothing", saw=dtype, expected=expected)


def configured_dtype(base: Base | None) -> DType | None:
    """Return the floating dtype that the base's configuration names, or None."""
    name = lookup(base.config, "dtype") if base is not None else None
    dtype = DTYPES.get(str(name).removeprefix("torch."))
    return dtype if dtype is not None and dtype.kind == "float" else None


def dtype_of(name: str, tensor: Tensor, *, policy: str, base: Base | None, needs: Needs | None) -> DType:
    """Return the dtype of a tensor in the result.

    Args:
        name: Its name in the model.
        tensor: The tensor as the checkpoint has it.
        policy: The dtype policy.
        base: The base.
        needs: What the model needs.
    """
    expected = needs.expected.get(name) if needs is not None else None
    if policy == "keep" or tensor.dtype.kind != "float":
        return tensor.dtype
    if policy == "base" and expected is not None and expected.dtype is not None:
        return expected.dtype
    if is_buffer(name) or (expected is not None and expected.is_buffer):
        return tensor.dtype
    if policy == "base":
        return configured_dtype(base) or tensor.dtype
    return DTYPES[policy]


def is_quantised(dtype: DType) -> bool:
    """Return whether numbers of this dtype mean nothing without scales that belong to them."""
    return dtype.kind == "float" and dtype.itemsize == 1


def main_dtype(tensors: Mapping[str, Tensor]) -> DType | None:
    """Return the floating dtype that most elements have, or None where there are none."""
    counts: dict[DType, int] = {}
    for tensor in tensors.values():
        if tensor.dtype.kind == "float":
            elements = 1
            for size in tensor.shape:
                elements *= size
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + elements
    return max(counts, key=lambda dtype: counts[dtype], default=None)


def check_training_precision(
    training: TrainingParameters | None, tensors: Mapping[str, Tensor]
) -> list[Finding]:
    """Return a finding where the precision training tells of is not that of the tensors on disk.

    float32 on disk is what mixed precision leaves, so it contradicts only training in pure bfloat16.
    """
    disk = main_dtype(tensors)
    if training is None or disk is None:
        return []
    pure = training.get("pure_bf16") == "True"
    half = training.get("use_fp16") == "True" and not pure
    if pure and disk.name != "bfloat16":
        told, expected = "pure_bf16: True", "bfloat16"
    elif half and disk.name == "bfloat16":
        told, expected = "use_fp16: True", "float16, or float32 master weights"
    else:
        return []
    return [
        finding(
            "U404",
            subject=training.path.name,
            saw=f"{told}, and most of the tensors are {disk}",
            expected=expected,
            remedy="Make sure that the training parameters belong to this checkpoint.",
        )
    ]
