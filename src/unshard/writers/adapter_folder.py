"""A folder of an adapter, as PEFT writes it and loads it.

    adapter_model.safetensors    the adapter's own tensors, in one file
    adapter_config.json          what it is; the run's own, byte for byte, where there is one

At the top of a model folder transformers would apply it to the model, into which it is merged already:
beside a model it lies in a folder of its own.

Source:
    peft src/peft/peft_model.py (`save_pretrained`); transformers utils/peft_utils.py
    (`find_adapter_config_file`).
"""

from __future__ import annotations

from collections.abc import Mapping

from unshard.base import Base
from unshard.base.side_files import is_side_file, is_tokenizer_file
from unshard.errors import InputError
from unshard.match.kept_adapter import KeptAdapter
from unshard.plan import OutputFile, SideFile
from unshard.recipes.adapters import CONFIG, WEIGHTS
from unshard.tensors import Tensor
from unshard.writers.json_editing import edit_json
from unshard.writers.safetensors_folder import plan_safetensors_file

# Where an adapter lies beside the model that it is merged into.
INSIDE = "adapter/"


def plan_adapter_folder(kept: KeptAdapter, *, inside: str) -> tuple[OutputFile, SideFile]:
    """Return the two files of an adapter.

    Args:
        kept: The adapter.
        inside: What stands before their names: "", or the folder that they lie in.

    Raises:
        InputError: Its configuration cannot be edited.
    """
    try:
        content = edit_json(kept.config, kept.edits)
    except ValueError as error:
        raise InputError(CONFIG, "cannot be edited", saw=str(error)) from error
    tensors: Mapping[str, Tensor] = kept.model.tensors
    return (
        plan_safetensors_file(f"{inside}{WEIGHTS}", tensors),
        SideFile(f"{inside}{CONFIG}", content, None, kept.origin),
    )


def plan_tokenizer_files(base: Base | None) -> list[SideFile]:
    """Return the files of the tokenizer that goes with an adapter, and its chat template."""
    files = {} if base is None else base.side_files
    return [
        SideFile(name, None, path, "base or beside the checkpoint")
        for name, path in files.items()
        if is_side_file(name) and (is_tokenizer_file(name) or "chat_template" in name)
    ]
