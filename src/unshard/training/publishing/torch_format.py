"""A plain state dict of a live model in torch's format, and the names that llama-recipes gives it.

    <root>/<folder>-<model name>/<model name with "--" for "/">-<epoch>.pt

llama-recipes' file is the state dict of FSDP1 as FULL_STATE_DICT gives it: every name of a tied parameter
is in it, each with a storage of its own, for FSDP gathers one after the other.

Source:
    llama-recipes model_checkpointing/checkpoint_handler.py (`save_model_checkpoint`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from unshard.plan import OutputFile
from unshard.tensors import Tensor
from unshard.writers.torch_file import plan_torch_file

# Where a folder of torch's format keeps its tensors; transformers looks for this name.
_IN_A_FOLDER = "pytorch_model.bin"


def llama_recipes_path(root: str | Path, folder: str, model_name: str, epoch: int) -> Path:
    """Return where llama-recipes puts the state dict of an epoch.

    Args:
        root: Its `dist_checkpoint_root_folder`.
        folder: Its `dist_checkpoint_folder`.
        model_name: Its `model_name`: a name on the hub, or a path.
        epoch: The epoch, counted from 0.
    """
    plain = model_name.replace("/", "--")
    return Path(root) / f"{folder}-{model_name}" / f"{plain}-{epoch}.pt"


def plan_pt_file(tensors: Mapping[str, Tensor], name: str | None, ties: Mapping[str, str]) -> OutputFile:
    """Return the file of a state dict.

    Args:
        tensors: The tensors by name.
        name: The name of the file, or None where it lies in a folder of a model.
        ties: Names that repeat a tensor, and that tensor; each gets a storage of its own.
    """
    again = {alias: tensors[kept] for alias, kept in ties.items() if kept in tensors and alias not in tensors}
    return plan_torch_file({**tensors, **again}, name=_IN_A_FOLDER if name is None else name)
