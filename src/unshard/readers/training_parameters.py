"""What a training script wrote about itself, flattened: `{"policy.model_name": "..."}`.

    train_params.yaml                       llama-recipes; every value is text
    config.yaml, torchtune_config.yaml      NeMo-RL, NeMo-Automodel, axolotl, torchtune
    meta.pt                                 Lightning, beside a sharded checkpoint: `hyper_parameters`

Nothing in them is made into an object, and values that are no plain text are left out.

Source:
    llama-cookbook src/llama_cookbook/utils/train_utils.py (`save_train_params`);
    pytorch-lightning src/lightning/pytorch/trainer/connectors/checkpoint_connector.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from unshard.checkpoint import BaseHint, TrainingParameters
from unshard.errors import InputError
from unshard.findings import Finding, finding
from unshard.readers.folders import Folder
from unshard.readers.rendering import cut
from unshard.readers.torch_save.torch_file import describe_torch_file
from unshard.readers.unpickling import Entries
from unshard.storage.files import InputFile

NAME = "train_params.yaml"
_CONFIGURATIONS = ("config.yaml", "torchtune_config.yaml")
_LIGHTNING = "meta.pt"
_LARGEST = 64 << 10
_DEEPEST = 8
# Where scripts name the model that training starts from, best first.
_BASE_KEYS = (
    "model_name",
    "model_name_or_path",
    "pretrained_model_name_or_path",
    "base_model",
    "policy.model_name",
    "model.pretrained_model_name_or_path",
    "actor_rollout_ref.model.path",
    "checkpointer.checkpoint_dir",
    "tokenizer_name",
)


def find_training_parameters(
    folders: Iterable[Folder],
) -> tuple[TrainingParameters | None, tuple[Finding, ...]]:
    """Return the training parameters in the first of `folders` that has some, and what cannot be read."""
    for folder in folders:
        if NAME in folder.files:
            return _read_train_params(folder.at(NAME))
        for name in (*_CONFIGURATIONS, _LIGHTNING):
            if name in folder.files:
                path = folder.at(name)
                values = _read_lightning(path) if name == _LIGHTNING else _read_yaml(path, deepest=_DEEPEST)
                if not isinstance(values, str) and any(values.get(key) for key in _BASE_KEYS):
                    return TrainingParameters(path, _texts(values)), ()
    return None, ()


def base_names(training: TrainingParameters | None) -> Iterator[BaseHint]:
    """Yield the models that training parameters name, each once."""
    named: set[str] = set()
    for key in _BASE_KEYS:
        value = training.get(key) if training else None
        if training is not None and value is not None and value not in named:
            named.add(value)
            yield BaseHint(value, f"{key} in {training.path.name}")


def _read_train_params(path: Path) -> tuple[TrainingParameters | None, tuple[Finding, ...]]:
    """Return what llama-recipes wrote, or None and the reason why it cannot be read."""
    parsed = _read_yaml(path, deepest=1)
    if isinstance(parsed, str):
        return None, (_unreadable(path, parsed),)
    others = [cut(key) for key, value in parsed.items() if value is None]
    left_out = (_unreadable(path, f"{', '.join(others[:3])}: no plain text, left out"),) if others else ()
    return TrainingParameters(path, _texts(parsed)), left_out


def _read_yaml(path: Path, *, deepest: int) -> dict[str, str | None] | str:
    """Return the values of a YAML mapping by dotted key, None for what is no text, or why there are none."""
    import yaml

    try:
        file = InputFile.describe(path)
        if file.size > _LARGEST:
            return f"{file.size:,} bytes"
        # The base loader makes text of every scalar, and expands neither tags nor merge keys.
        parsed = yaml.load(file.read(0, file.size), Loader=yaml.BaseLoader)  # noqa: S506
    except (yaml.YAMLError, ValueError, RecursionError, InputError) as error:
        return cut(str(error))
    return dict(_flattened(parsed, deepest)) if isinstance(parsed, dict) else "no mapping"


def _read_lightning(path: Path) -> dict[str, str | None]:
    """Return the hyper-parameters that Lightning saved, by dotted key."""
    try:
        value = describe_torch_file(InputFile.describe(path)).value
    except InputError:
        return {}
    found = value.get("hyper_parameters") if isinstance(value, Entries) else None
    return dict(_flattened(found, _DEEPEST)) if isinstance(found, dict) else {}


def _texts(values: Mapping[str, str | None]) -> dict[str, str]:
    return {key: value for key, value in values.items() if value is not None}


def _flattened(values: Mapping[object, object], deepest: int) -> Iterator[tuple[str, str | None]]:
    """Yield (dotted key, text) of a nested mapping, and None for what is no text."""
    pending: list[tuple[str, object, int]] = [("", values, 0)]
    while pending:
        key, value, depth = pending.pop()
        if isinstance(value, Mapping) and depth < deepest:
            inner = [(f"{key}.{k}" if key else str(k), v, depth + 1) for k, v in value.items()]
            pending += reversed(inner)
        else:
            yield key, value if isinstance(value, str) else None


def _unreadable(path: Path, saw: str) -> Finding:
    return finding("U106", subject=path.name, saw=saw, remedy="Name the base with --base.")
