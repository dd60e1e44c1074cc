"""Files that training leaves beside a model, told by their names."""

from __future__ import annotations

import re
from collections.abc import Iterator

from unshard.checkpoint import Extra, ExtraKind
from unshard.readers.folders import Folder, size_of

# llama-recipes: optimizer-<model>-<epoch>.pt; accelerate: optimizer.bin, optimizer_0/, scheduler.bin,
# random_states_0.pkl, scaler.pt; the Trainer: optimizer.pt, scheduler.pt, rng_state_0.pth,
# training_args.bin, trainer_state.json; Lightning: meta.pt; others follow suit.
_KINDS: tuple[tuple[re.Pattern[str], ExtraKind], ...] = (
    (re.compile(r"(optim|optimizer|opt_state)([-_.].*)?|.*[-_]optim(izer)?(_states?)?\.\w+"), "optimizer"),
    (re.compile(r"(lr_)?scheduler([-_.].*)?"), "scheduler"),
    (re.compile(r"(rng_state|random_states|extra_state_world_size)([-_.].*)?"), "rng"),
    (re.compile(r"trainer_state\.json"), "step"),
    (
        re.compile(
            r"training_args\.bin|meta\.pt|scaler([-_.].*)?|(dl_state_dict|sampler|dataloader)([-_.].*)?"
        ),
        "file",
    ),
)


def training_kind(name: str) -> ExtraKind | None:
    """Return which training state a file or folder of this name holds, or None where it holds none."""
    return next((kind for pattern, kind in _KINDS if pattern.fullmatch(name)), None)


def describe_training_files(folder: Folder) -> Iterator[Extra]:
    """Yield the training state beside a model, with its size; nothing of it is opened."""
    for name in folder.files:
        if (kind := training_kind(name)) is not None:
            yield Extra(name, kind, size_of(folder.at(name)))
    for name in folder.folders:
        if (kind := training_kind(name)) is not None:
            yield Extra(f"{name}/", kind, size_of(folder.at(name)))
