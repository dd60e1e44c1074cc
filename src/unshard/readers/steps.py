"""Epochs and steps in the names of files and folders.

    checkpoint-500, step_00010, ep3-ba200, epoch=1-step=99.ckpt     a word and its number
    meta-llama--Llama-3.2-1B-2                                  llama-recipes: <model>-<epoch>
    meta-llama--Llama-3.2-1B-2-500                              forks of it: <model>-<epoch>-<step>

Models have numbers in their names, too. What belongs to the name is told by the folder, which
llama-recipes calls `<anything>-<model>`, and by the other files beside it.

Source:
    llama-cookbook src/llama_cookbook/model_checkpointing/checkpoint_handler.py
    (`save_fsdp_model_checkpoint_full`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

_WORD = re.compile(
    r"(?<![A-Za-z])(checkpoint|ckpt|global_?step|step|epoch|iteration|iter|ep|ba)([-_=]?)(\d{1,18})(?!\d|\.\d)",
    re.IGNORECASE,
)
_ONE = re.compile(r"(.+)[-_](\d{1,18})")
_TWO = re.compile(r"(.+)-(\d{1,18})-(\d{1,18})")
_NO_STEP = re.compile(r"(.*[-_.])?(rank|shard|part|mp|tp|pp|fsdp|of)", re.IGNORECASE)

Numbers = tuple[int, ...]


def split_words(name: str) -> tuple[str, Numbers]:
    """Return a name without the numbers that follow words for steps, and these numbers."""
    numbers = tuple(int(number) for _, _, number in _WORD.findall(name))
    return _WORD.sub(r"\1\2#", name), numbers


def split_names(stems: Iterable[str], folder: Path) -> dict[str, tuple[str, Numbers]]:
    """Return, for names of files in one folder, what names the model and the numbers after it."""
    names = list(stems)
    epochs: dict[str, set[str]] = {}
    for found in filter(None, map(_TWO.fullmatch, names)):
        epochs.setdefault(found[1], set()).add(found[2])
    return {name: _split(name, epochs, folder) for name in names}


def is_named_after(folder: Path, model: str) -> bool:
    """Return whether llama-recipes would put files of `model` (with `--` for `/`) into `folder`."""
    return bool(model) and str(folder).endswith(f"-{model.replace('--', '/')}")


def _split(name: str, epochs: Mapping[str, Collection[str]], folder: Path) -> tuple[str, Numbers]:
    series, numbers = split_words(name)
    if numbers:
        return series, numbers
    one, two = _ONE.fullmatch(name), _TWO.fullmatch(name)
    if one is None or _NO_STEP.fullmatch(one[1]):
        return name, ()
    # Two numbers are an epoch and a step where the folder is named so, or other files have other epochs.
    if (
        two
        and not is_named_after(folder, one[1])
        and (is_named_after(folder, two[1]) or len(epochs[two[1]]) > 1)
    ):
        return two[1], (int(two[2]), int(two[3]))
    return one[1], (int(one[2]),)
