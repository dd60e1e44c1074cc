"""What lies around a checkpoint: training parameters, training state, hints to the base, small files.

All of it is told by names; only `train_params.yaml` and `adapter_config.json` are read. A base that
lies in the folder of the checkpoint, or above it, needs no hint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from unshard.checkpoint import BaseHint, Checkpoint, Extra, TrainingParameters
from unshard.errors import InputError
from unshard.findings import Finding, finding
from unshard.readers.folders import Folder, Tree
from unshard.readers.training_files import describe_training_files
from unshard.readers.training_parameters import NAME, read_training_parameters
from unshard.sizes import format_size
from unshard.storage.files import InputFile

# Folders beside the tensors in which verl and NeMo keep configuration and tokenizer.
_MODEL_FOLDERS = ("huggingface", "hf_config", "tokenizer")
_SIDE_FILE = re.compile(
    r"(config|generation_config|special_tokens_map|added_tokens|vocab|tekken|chat_template)\.json"
    r"|tokenizer.*|.*(processor|preprocessor)_config\.json|merges\.txt|vocab\.txt|.+\.(jinja|model|spm|tiktoken)"
)
_LARGEST_JSON = 1 << 20


def with_surroundings(checkpoint: Checkpoint, tree: Tree) -> Checkpoint:
    """Return the checkpoint with what lies around it in the run."""
    place = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    folder = tree.look_into(place)
    training, findings = _training(place, tree)
    beside = tuple(describe_training_files(folder))
    return replace(
        checkpoint,
        root=tree.roots[0],
        training=training,
        extras=(*checkpoint.extras, *beside),
        base_hints=(*checkpoint.base_hints, *_base_hints(folder, training)),
        side_files=_side_files(folder, tree),
        findings=(*checkpoint.findings, *findings, *_left_out(beside)),
    )


def _training(place: Path, tree: Tree) -> tuple[TrainingParameters | None, tuple[Finding, ...]]:
    """Return the training parameters nearest to a folder, in it or above it within the run."""
    for folder in tree.upwards(place):
        if NAME in folder.files:
            return read_training_parameters(folder.at(NAME))
    return None, ()


def _left_out(beside: tuple[Extra, ...]) -> Iterator[Finding]:
    for extra in beside:
        if extra.kind in ("optimizer", "scheduler", "rng"):
            yield finding("U102", subject=extra.name, saw=f"{format_size(extra.size)} of {extra.kind} state")


def _base_hints(folder: Folder, training: TrainingParameters | None) -> Iterator[BaseHint]:
    for name in _MODEL_FOLDERS:
        if name in folder.folders and (folder.path / name / "config.json").is_file():
            yield BaseHint(str(folder.path / name), f"config.json in `{name}/` beside the tensors")
    named: set[str] = set()
    for key in ("model_name", "tokenizer_name"):  # which are one in most runs
        value = training.get(key) if training else None
        if value is not None and value not in named:
            named.add(value)
            yield BaseHint(value, f"{key} in {NAME}")
    if "adapter_config.json" in folder.files:
        base = _read_json(folder.path / "adapter_config.json").get("base_model_name_or_path")
        if isinstance(base, str) and base:
            yield BaseHint(base, "base_model_name_or_path in adapter_config.json")


def _side_files(folder: Folder, tree: Tree) -> dict[str, Path]:
    """Return the small files of a model beside the tensors, or in a folder made for them."""
    found = {name: folder.at(name) for name in folder.files if _SIDE_FILE.fullmatch(name)}
    for inner in _MODEL_FOLDERS:
        if inner in folder.folders:
            place = tree.look_into(folder.path / inner)
            found = {n: place.at(n) for n in place.files if _SIDE_FILE.fullmatch(n)} | found
    return found


def _read_json(path: Path) -> dict[str, object]:
    """Return a small JSON object, or an empty one where there is none that can be read."""
    try:
        file = InputFile.describe(path)
        parsed = json.loads(file.read(0, file.size)) if file.size <= _LARGEST_JSON else None
    except (InputError, ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}
