"""The files of weights in a folder: which an engine takes, and what each of them holds.

Source:
    transformers 5.23, modeling_utils.py (`_get_resolved_checkpoint_files`: the one file, then the index,
    then the same of torch); vllm, model_executor/model_loader/default_loader.py (`_prepare_weights`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from unshard.errors import UnshardError
from unshard.model_folder.description import Unreadable, WeightsOfFile
from unshard.readers.torch_save.torch_state import describe_torch_state
from unshard.readers.training_files import training_kind
from unshard.readers.weights.safetensors_file import describe_tensors, read_safetensors_header
from unshard.storage.files import InputFile

_WEIGHTS = re.compile(r".+\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|gguf|ggml|onnx|ot|npz)")
# Files with these names are no part of the model, whatever they hold.
_NO_MODEL = re.compile(r"(adapter_model|consolidated|shard-\d+-|optimizer|training_args|rng_state).*")
_FORMATS = (
    re.compile(r".+\.safetensors"),
    re.compile(r"pytorch_model.*\.bin"),
    re.compile(r".+\.bin"),
    re.compile(r".+\.(pt|pth)"),
)
_FIRST = ("model.safetensors", "pytorch_model.bin")
_POINTER, _LONGEST_POINTER = b"version https://git-lfs.github.com/spec/", 1024


def choose_weights(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the names of the weights that engines take, as they order them, and of all others."""
    weights = [name for name in names if _WEIGHTS.fullmatch(name.rpartition("/")[2])]
    own = [n for n in weights if "/" not in n and not _NO_MODEL.match(n) and training_kind(n) is None]
    for form in _FORMATS:
        if chosen := [name for name in own if form.fullmatch(name)]:
            chosen.sort(key=lambda name: (name not in _FIRST, name))
            return chosen, [name for name in weights if name not in chosen]
    return [], weights


def describe_weights(path: Path, name: str) -> WeightsOfFile | Unreadable:
    """Return what a file of weights holds, or why that cannot be told; no tensor is read.

    Args:
        path: Where it lies.
        name: Its name in the folder.
    """
    try:
        file = InputFile.describe(path)
        if _is_pointer(file):
            return Unreadable(
                name, "is a pointer of git-lfs, not the weights", "Run in the folder: git lfs pull"
            )
        if not name.endswith(".safetensors"):
            return WeightsOfFile(name, file.size, describe_torch_state(file, None).tensors)
        header = read_safetensors_header(file)
        return WeightsOfFile(name, file.size, describe_tensors(file, header), header.metadata)
    except UnshardError as error:
        parts = (
            error.problem,
            error.saw and f"saw {error.saw}",
            error.expected and f"expected {error.expected}",
        )
        return Unreadable(name, ", ".join(filter(None, parts)), error.hint)


def _is_pointer(file: InputFile) -> bool:
    return file.size <= _LONGEST_POINTER and file.read(0, min(file.size, len(_POINTER))) == _POINTER
