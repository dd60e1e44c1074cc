"""A model in training as the base that a checkpoint is led to: its own names, shapes, dtypes and ties.

Published files may have other names than the module (experts one by one), or other projects' names; the
code that leads a checkpoint to a published base leads it to the module just as well.
"""

from __future__ import annotations

import json
from pathlib import Path

from unshard.base import Base, ExpectedTensor
from unshard.base.configuration import TIE_FLAG, Config, tie_flag
from unshard.base.locating import locate_base
from unshard.dtypes import DTYPES, DType
from unshard.errors import BaseModelError
from unshard.recipes.ties import is_output_head
from unshard.training.live.local_parts import LocalTensor
from unshard.training.live.local_tensors import LocalModel


def base_of_live(local: LocalModel, *, model_config: object, reference: str | Path | None) -> Base:
    """Return the base that a model in training is.

    Args:
        local: The module as this rank holds it; names, shapes and dtypes are those of all ranks.
        model_config: The module's configuration, or None where it has none of transformers' kind.
        reference: Where the weights are that training started from; an adapter may be merged into
            them. Without it, where the configuration says it was loaded from.

    Raises:
        BaseModelError: The reference leads nowhere.
    """
    config = _as_data(model_config)
    if any(map(is_output_head, local.ties)) and not tie_flag(config):
        config = {**config, TIE_FLAG: True}
    name = type(model_config).__name__.removesuffix("Config") if model_config is not None else "module"
    return Base(
        path=_weights_of(reference, str(getattr(model_config, "name_or_path", None) or "")),
        reference=f"the {name} in training",
        origin="the module itself",
        config_bytes=json.dumps(config).encode(),
        config=config,
        expected={
            name: ExpectedTensor(tensor.shape, _held_in(tensor), name in local.buffers)
            for name, tensor in local.tensors.items()
        },
        expected_from="its parameters and buffers",
        expected_in_order=True,
        ties=local.ties,
    )


def _held_in(tensor: LocalTensor) -> DType:
    """Return the dtype of the memory; FSDP1 holds buffers in another one than they are published in."""
    if not tensor.parts:
        return tensor.dtype
    return DTYPES[str(tensor.parts[0].elements.dtype).removeprefix("torch.")]


def _as_data(model_config: object) -> Config:
    """Return a configuration as config.json has it; of no other kind anything is known."""
    to_json = getattr(model_config, "to_json_string", None)
    return {} if to_json is None else json.loads(to_json(use_diff=False))


def _weights_of(reference: str | Path | None, loaded_from: str) -> Path:
    """Return the folder of the weights that training started from, or a path where none is.

    Raises:
        BaseModelError: The reference that was given leads nowhere.
    """
    if reference is not None:
        return locate_base(str(reference), download=False)
    try:
        return locate_base(loaded_from, download=False) if loaded_from else Path("no base was named")
    except BaseModelError:
        return Path(loaded_from)
