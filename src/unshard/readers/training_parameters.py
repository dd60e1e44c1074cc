"""What a training script wrote about itself: `train_params.yaml` of llama-recipes.

A flat mapping; every value is text ("True", "None", "StateDictType.FULL_STATE_DICT"). Nothing in it is
made into an object, and values that are no plain text are left out.

Source:
    llama-cookbook src/llama_cookbook/utils/train_utils.py (`save_train_params`).
"""

from __future__ import annotations

from pathlib import Path

from unshard.checkpoint import TrainingParameters
from unshard.findings import Finding, finding
from unshard.readers.rendering import cut
from unshard.storage.files import InputFile

NAME = "train_params.yaml"
_LARGEST = 64 << 10


def read_training_parameters(path: Path) -> tuple[TrainingParameters | None, tuple[Finding, ...]]:
    """Return the training parameters at `path`, or None and the reason why they cannot be read."""
    import yaml

    file = InputFile.describe(path)
    if file.size > _LARGEST:
        return None, (_unreadable(path, f"{file.size:,} bytes"),)
    try:
        # The base loader makes text of every scalar, and expands neither tags nor merge keys.
        parsed = yaml.load(file.read(0, file.size), Loader=yaml.BaseLoader)  # noqa: S506
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return None, (_unreadable(path, cut(str(error))),)
    if not isinstance(parsed, dict):
        return None, (_unreadable(path, "no mapping"),)
    values = {k: v for k, v in parsed.items() if isinstance(k, str) and isinstance(v, str)}
    others = [cut(str(key)) for key in parsed if key not in values]
    left_out = (_unreadable(path, f"{', '.join(others[:3])}: no plain text, left out"),) if others else ()
    return TrainingParameters(path, values), left_out


def _unreadable(path: Path, saw: str) -> Finding:
    return finding("U106", subject=path.name, saw=saw, remedy="Name the base with --base.")
