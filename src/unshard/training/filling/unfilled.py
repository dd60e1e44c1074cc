"""What of a model has no memory yet, or memory that nothing has filled: after it was built on meta.

`to_empty` gives everything memory, and a checkpoint fills what a checkpoint holds. Buffers that a module
computes when it is built are in none, and then hold whatever the memory held before.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from unshard.errors import OptionError, listed
from unshard.findings import Finding, finding
from unshard.training.live.module_tree import joined, modules_of

_REMEDY = (
    "Compute them after to_empty and before training: build the rotary embedding anew, or call the model's "
    "own function for it (torchtitan: init_weights)."
)


def require_memory(model: torch.nn.Module) -> None:
    """Return if everything that a checkpoint holds has memory.

    Raises:
        OptionError: Parameters, or buffers of the state dict, are on the meta device.
    """
    bare = [name for name, tensor in _tensors(model, persistent=True) if tensor.is_meta]
    if bare:
        raise OptionError(
            "model",
            "has parameters without memory, on the meta device",
            saw=f"{len(bare)} of them: {listed(bare)}",
            hint='Give them memory after fully_shard and before loading: model.to_empty(device="cuda") (or '
            '"cpu"), then load_full(model, ...).',
        )


def check_buffers(model: torch.nn.Module) -> tuple[Finding, ...]:
    """Return what to know of buffers that no checkpoint holds, and that nothing seems to have filled."""
    wrong = {
        name: what for name, tensor in _tensors(model, persistent=False) if (what := _fault(name, tensor))
    }
    if not wrong:
        return ()
    first, what = next(iter(wrong.items()))
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return (finding("U162", subject=first + more, saw=what, remedy=_REMEDY),)


def _tensors(model: torch.nn.Module, *, persistent: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what the state dict holds, or the buffers that it does not hold."""
    for prefix, module in modules_of(model):
        own = module._parameters.items() if persistent else ()
        hidden = module._non_persistent_buffers_set
        buffers = [(key, each) for key, each in module._buffers.items() if (key in hidden) != persistent]
        for key, tensor in (*own, *buffers):
            if tensor is not None:
                yield joined(prefix, key), tensor


def _fault(name: str, buffer: torch.Tensor) -> str | None:
    """Return what shows that nothing has filled a buffer, or None.

    Frequencies of rotary embeddings fall from one dimension to the next, some of them to zero.
    """
    if buffer.is_meta:
        return "it is on the meta device"
    if not name.endswith("inv_freq") or not buffer.numel():
        return None
    values = buffer.double()
    if not bool(torch.isfinite(values).all()) or not bool(values.any()):
        return "frequencies that are not finite, or all zero"
    if bool((values < 0).any()) or bool((values.diff() > 0).any()):
        return "frequencies below zero, or rising from one dimension to the next"
    return None
