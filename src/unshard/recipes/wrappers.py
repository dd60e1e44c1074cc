"""Segments that training wrappers put into names, at the front or in the middle.

Source:
    torch/distributed/fsdp/_common_utils.py (`FSDP_WRAPPED_MODULE`); torch/distributed/algorithms/
    _checkpoint/checkpoint_wrapper.py (`_CHECKPOINT_WRAPPED_MODULE`); torch/_dynamo/eval_frame.py
    (`OptimizedModule._orig_mod`); torch/nn/parallel/distributed.py (`module`); Lightning before 2.1
    (`_forward_module`); fairscale's and torch 1.x's FSDP (`_fpw_module`); torch_xla's FSDP (`_orig_module`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

# No model has parts of these names: they can be removed wherever they stand.
WRAPPERS: dict[str, str] = {
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_orig_mod": "torch.compile",
    "_orig_module": "FSDP of torch_xla",
    "_forward_module": "Lightning",
    "_fpw_module": "FSDP of fairscale",
}

# Models do have parts of these names: they are removed only where the model's own names prove it.
AMBIGUOUS_WRAPPERS: dict[str, str] = {"module": "DDP or DeepSpeed"}


def without_segments(name: str, segments: Collection[str]) -> str:
    """Return `name` without the dotted segments that are in `segments`."""
    parts = name.split(".")
    kept = [part for part in parts if part not in segments]
    return ".".join(kept) if len(kept) < len(parts) else name


def wrappers_in(names: Iterable[str]) -> dict[str, int]:
    """Return the unambiguous wrapper segments that stand in `names`, and in how many of them."""
    found: dict[str, int] = {}
    for name in names:
        for segment in WRAPPERS.keys() & set(name.split(".")):
            found[segment] = found.get(segment, 0) + 1
    return found
