"""Files that training leaves beside a model, told by their names."""

from __future__ import annotations

import re
from collections.abc import Iterator

from unshard.checkpoint import Extra, ExtraKind
from unshard.readers.distributed.rank_names import Ranks
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
# accelerate: random_states_0.pkl; the Trainer: rng_state_0.pth; others have the word.
_OF_RANK = re.compile(r"(.*(?:rank|rng_state|random_states)[-_.]?)(\d{1,7})(.*)")


def training_kind(name: str) -> ExtraKind | None:
    """Return which training state a file or folder of this name holds, or None where it holds none."""
    return next((kind for pattern, kind in _KINDS if pattern.fullmatch(name)), None)


def describe_training_files(folder: Folder) -> Iterator[Extra]:
    """Yield the training state beside a model, with its size; nothing of it is opened.

    What every rank left under one name is one of them.
    """
    alike: dict[tuple[str, str], list[str]] = {}
    for name in (*folder.files, *(f"{name}/" for name in folder.folders)):
        if training_kind(name.rstrip("/")) is not None:
            found = _OF_RANK.fullmatch(name)
            alike.setdefault((found[1], found[3]) if found else (name, ""), []).append(name)
    for (before, after), names in alike.items():
        first, size = names[0].rstrip("/"), sum(size_of(folder.at(name.rstrip("/"))) for name in names)
        if len(names) > 1:
            ranks = {int(name[len(before) : len(name) - len(after)]): name for name in names}
            yield Extra(Ranks(folder.path, before, after, ranks).described(sorted(ranks)), _kind(first), size)
        else:
            yield Extra(names[0], _kind(first), size)


def _kind(name: str) -> ExtraKind:
    kind = training_kind(name)
    assert kind is not None
    return kind
