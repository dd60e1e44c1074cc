"""Running a model: load, try, generate. Needs torch and transformers.

Nothing in here imports either before it is called.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from unshard.findings import Severity
from unshard.inference.packages import require_packages
from unshard.readers.places import Places, as_paths

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from unshard.inference.building import DeviceMap

__all__ = ["load", "require_packages"]


def load(
    path: Places,
    *,
    base: str | Path | None = None,
    dtype: str = "base",
    device: str = "auto",
    device_map: DeviceMap | None = None,
    step: int | None = None,
    select: str | None = None,
    lora_alpha: float | None = None,
    accept_inferred_shapes: bool = False,
    download: bool = True,
    fingerprint: bool = True,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Return the model at `path` and its tokenizer, ready for inference.

    The model is in eval mode, without gradients, and has answered a short prompt with finite numbers.
    A warning is issued for every finding that is one. The tokenizer is None where there is none.

    Args:
        path: A run folder, a checkpoint folder, a file, or a converted model; or the folders of several
            nodes, whose ranks wrote one checkpoint together.
        base: The model training started from: a folder or a name on the hub. Without it, it is looked
            for in and beside the checkpoint and in its training parameters.
        dtype: `base`, `keep`, `float32`, `bfloat16` or `float16`.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; where the checkpoint was saved is no matter.
        device_map: How accelerate spreads the model over devices, instead of `device`.
        step: Which of several checkpoints side by side; the newest without it.
        select: The container or prefix of the model, where a file holds several.
        lora_alpha: The numerator of an adapter's scale, where no file tells it.
        accept_inferred_shapes: Whether tensors may be as large as the parts of them that are there, where
            neither a file nor the base tells how large they are; nothing then proves that no part is missing.
        download: Whether a base that is not on this machine may be fetched from the hub.
        fingerprint: Whether the model must behave as the fingerprint of its record says, if there is one.

    Memory:
        Tensors whose bytes need no change are mapped from the checkpoint: they cost nothing but the
        kernel's cache of the file. Others are read or cast into memory once. There is never a second
        copy. The files must not change while the model is in use.

    Raises:
        MissingExtraError: torch, transformers or accelerate is not installed.
        UnshardError: The checkpoint, its base or the model is not sound; every class of it.
    """
    require_packages("load")
    from unshard.inference.opening import open_model

    loaded = open_model(
        as_paths(path),
        base=None if base is None else str(base),
        dtype=dtype,
        device=device,
        device_map=device_map,
        step=step,
        select=select,
        lora_alpha=lora_alpha,
        accept_inferred_shapes=accept_inferred_shapes,
        download=download,
        fingerprint=fingerprint,
    )
    for found in loaded.findings:
        if found.severity is not Severity.INFO:
            warnings.warn(f"{found.code} {found.title}: {found.subject}: {found.saw}", stacklevel=2)
    return loaded.model, loaded.tokenizer
