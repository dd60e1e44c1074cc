"""For llama-recipes (llama-cookbook): the same files by two functions of the same names, nothing gathered.

    from unshard.training.integrations.llama_recipes import (
        save_fsdp_model_checkpoint_full, save_train_params,
    )

    <root>/<folder>-<model name>/<model name, "/" as "--">-<epoch>.pt    the full state dict, as torch.save
    <root>/<folder>-<model name>/<the same>.pt.unshard.record.json       the record
    <root>/<folder>-<model name>/train_params.yaml                       both configurations, values as text

below the working directory, unless the root is absolute.

Source:
    llama_cookbook, model_checkpointing/checkpoint_handler.py (`save_fsdp_model_checkpoint_full`),
    utils/train_utils.py (`save_train_params`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from torch.nn import Module

from unshard.errors import OutputError
from unshard.training.saving import Saved, save_full

PARAMETERS_NAME = "train_params.yaml"


class _TrainConfig(Protocol):
    """What is read of llama-recipes' `train_config`."""

    model_name: str
    dist_checkpoint_root_folder: str
    dist_checkpoint_folder: str


def checkpoint_file(config: _TrainConfig, epoch: int) -> Path:
    """Return where llama-recipes has the full state dict of an epoch."""
    return _folder(config) / f"{config.model_name.replace('/', '--')}-{epoch}.pt"


def save_fsdp_model_checkpoint_full(
    model: Module,
    optimizer: torch.optim.Optimizer | None,
    rank: int,
    cfg: _TrainConfig,
    epoch: int = 1,
    **options: Any,
) -> Saved:
    """Write the model where llama-recipes does, over an earlier file; every rank calls it and none gathers.

    Args:
        model: The model in FSDP.
        optimizer: Not used: llama-recipes saves it by another function.
        rank: Not used: torch knows it.
        cfg: The `train_config`.
        epoch: The epoch.
        **options: What else `save_full` is to be told: `tokenizer`, `prompts`, `dtype`, ...

    Raises:
        UnshardError: As `save_full`; on every rank.
    """
    told = {"config": cfg, "seed": getattr(cfg, "seed", None), "overwrite": True}
    return save_full(model, checkpoint_file(cfg, epoch), format="pt", **{**told, **options})


def save_train_params(train_config: _TrainConfig, fsdp_config: object, rank: int) -> None:
    """Write both configurations in one flat mapping, every value as text; one rank calls it, as there.

    Raises:
        OutputError: The file cannot be written.
    """
    parts = (train_config, fsdp_config)
    values = {name: str(value) for part in parts for name, value in vars(part).items() if _is_own(name)}
    path = _folder(train_config) / PARAMETERS_NAME
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.dump(values, indent=4))
    except OSError as error:
        raise OutputError(path, "cannot be written", saw=error.strerror) from error


def _folder(config: _TrainConfig) -> Path:
    root, folder = config.dist_checkpoint_root_folder, config.dist_checkpoint_folder
    return Path.cwd() / f"{root}/{folder}-{config.model_name}"


def _is_own(name: str) -> bool:
    return not name.startswith("__")
