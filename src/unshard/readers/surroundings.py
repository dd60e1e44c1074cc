"""What lies around a checkpoint: training parameters, training state, hints to the base, small files.

All of it is told by names; only training parameters, the record and `adapter_config.json` are read. A base
that lies in the folder of the checkpoint, or above it, needs no hint.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from unshard.checkpoint import BaseHint, Checkpoint, Extra, Layout, TrainingParameters
from unshard.errors import InputError
from unshard.findings import Finding, finding
from unshard.readers.folders import Folder, Tree
from unshard.readers.record_files import find_record, hints_of, parameters_of
from unshard.readers.steps import split_words
from unshard.readers.training_files import describe_training_files
from unshard.readers.training_parameters import base_names, find_training_parameters
from unshard.sizes import format_size
from unshard.storage.files import InputFile

# Folders beside the tensors in which verl and NeMo keep configuration and tokenizer.
_MODEL_FOLDERS = ("huggingface", "hf_config", "tokenizer")
_SIDE_FILE = re.compile(
    r"(config|generation_config|special_tokens_map|added_tokens|vocab|tekken|chat_template)\.json"
    r"|tokenizer.*|.*(processor|preprocessor)_config\.json|merges\.txt|vocab\.txt|.+\.(jinja|model|spm|tiktoken)"
)
# What tells the scale of an adapter; it lies with the tensors, or where the run keeps what all steps share.
_ADAPTER_FILES = ("adapter_config.json", "lora_train_meta.json")
_ADAPTER_FOLDER = "lora_adapter"  # verl's copy of the adapter, beside the files of ranks
_LARGEST_JSON = 1 << 20


def with_surroundings(checkpoint: Checkpoint, tree: Tree) -> Checkpoint:
    """Return the checkpoint with what lies around it in the run."""
    place = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    folder = tree.look_into(place)
    step = _folders_of_step(folder, tree)
    record = find_record(checkpoint.path, step)
    training, findings = find_training_parameters(tree.upwards(place))
    training = training or parameters_of(record)
    beside = tuple(extra for place in step for extra in describe_training_files(place))
    return replace(
        checkpoint,
        root=tree.roots[0],
        training=training,
        record=record.record,
        record_path=record.path,
        layout=_with_writer(checkpoint.layout, step),
        extras=(*checkpoint.extras, *beside),
        base_hints=_once((*hints_of(record), *checkpoint.base_hints, *_base_hints(folder, tree, training))),
        side_files=_side_files(folder, tree),
        findings=(*checkpoint.findings, *record.findings, *findings, *_left_out(beside)),
    )


def _folders_of_step(folder: Folder, tree: Tree) -> list[Folder]:
    """Return the folder of the tensors, and the one above it where that is the folder of the step.

    accelerate and others put the model, the optimizer and the rest of a step into folders of their own.
    """
    above = list(itertools.islice(tree.upwards(folder.path), 2))
    numbered = [bool(split_words(place.path.name)[1]) for place in above]
    return above if numbered == [False, True] else [folder]


def _with_writer(layout: Layout, step: Sequence[Folder]) -> Layout:
    """Return the layout, written by the Trainer where its state lies beside what accelerate wrote."""
    name = "trainer_state.json"
    if layout.writer == "accelerate" and any(name in place.files for place in step):
        evidence = (*layout.evidence, f"`{name}` lies beside it")
        return replace(layout, writer="Hugging Face Trainer", evidence=evidence)
    return layout


def _left_out(beside: tuple[Extra, ...]) -> Iterator[Finding]:
    for extra in beside:
        if extra.kind in ("optimizer", "scheduler", "rng"):
            yield finding("U102", subject=extra.name, saw=f"{format_size(extra.size)} of {extra.kind} state")


def _base_hints(folder: Folder, tree: Tree, training: TrainingParameters | None) -> Iterator[BaseHint]:
    for place in _model_folders(folder, tree):
        if "config.json" in place.files:
            yield BaseHint(str(place.path), f"config.json in `{place.path.name}/` beside the tensors")
    yield from base_names(training)
    adapter = _adapter_files(folder, tree).get("adapter_config.json")
    base = None if adapter is None else _read_json(adapter).get("base_model_name_or_path")
    if isinstance(base, str) and base:
        yield BaseHint(base, "base_model_name_or_path in adapter_config.json")


def _once(hints: Iterable[BaseHint]) -> tuple[BaseHint, ...]:
    """Return hints without those that name again what one before them names."""
    found: dict[str, BaseHint] = {}
    for hint in hints:
        found.setdefault(hint.reference, hint)
    return tuple(found.values())


def _model_folders(folder: Folder, tree: Tree) -> Iterator[Folder]:
    """Yield the folders made for configuration and tokenizer in the checkpoint's folder, or beside it."""
    for place in itertools.islice(tree.upwards(folder.path), 2):
        for name in _MODEL_FOLDERS:
            if name in place.folders:
                yield tree.look_into(place.path / name)


def _side_files(folder: Folder, tree: Tree) -> dict[str, Path]:
    """Return the small files of a model beside the tensors, or in a folder made for them."""
    found: dict[str, Path] = {}
    for place in (folder, *_model_folders(folder, tree)):
        found = {name: place.at(name) for name in place.files if _SIDE_FILE.fullmatch(name)} | found
    return found | _adapter_files(folder, tree)


def _adapter_files(folder: Folder, tree: Tree) -> dict[str, Path]:
    """Return the files that tell an adapter's scale: the nearest of each, from the tensors up to the run."""
    found: dict[str, Path] = {}
    for place in tree.upwards(folder.path):
        inner = [tree.look_into(place.path / _ADAPTER_FOLDER)] if _ADAPTER_FOLDER in place.folders else []
        for each in (place, *inner):
            found = {name: each.at(name) for name in _ADAPTER_FILES if name in each.files} | found
    return found


def _read_json(path: Path) -> dict[str, object]:
    """Return a small JSON object, or an empty one where there is none that can be read."""
    try:
        file = InputFile.describe(path)
        parsed = json.loads(file.read(0, file.size)) if file.size <= _LARGEST_JSON else None
    except (InputError, ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}
