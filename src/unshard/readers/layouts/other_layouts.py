"""Layouts that are recognised by the names of their files, and not read.

Each row is what one is called, the names that tell it, names of files that come with it, and what to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from unshard.checkpoint import Checkpoint
from unshard.errors import UnsupportedLayoutError
from unshard.readers.folders import Folder
from unshard.readers.protocol import Candidate
from unshard.readers.rendering import listed

_FULL = "Save a full state dict instead (StateDictType.FULL_STATE_DICT, or full_state_dict=True)."


@dataclass(frozen=True, slots=True)
class _Layout:
    """A layout that is not read.

    Attributes:
        title: What it is called.
        marks: Names of files, any of which tells it.
        companions: Names of files that belong to it.
        hint: What to do instead.
    """

    title: str
    marks: re.Pattern[str]
    companions: re.Pattern[str]
    hint: str | None


def _layout(title: str, marks: str, hint: str | None = None, companions: str = r"(?!)") -> _Layout:
    return _Layout(title, re.compile(marks), re.compile(companions), hint)


_LAYOUTS = (
    _layout(
        "DeepSpeed ZeRO",
        r".*mp_rank_\d+(_model|_optim)_states\.pt|.*_optim_states\.pt|layer_\d+-model_\d+-model_states\.pt",
        "Convert it with the script that DeepSpeed put beside it: python zero_to_fp32.py FOLDER OUT",
    ),
    _layout("Megatron-LM", r"model_optim_rng\.pt|common\.pt"),
    _layout("one file per rank, as PyTorch/XLA writes them", r"rank\d+-of-\d+-.*\.(bin|pth|pt)", _FULL),
    _layout("torchsnapshot", r"\.snapshot_metadata"),
    _layout(
        "a PEFT adapter beside other checkpoints",
        r"adapter_model\.(safetensors|bin|pt)",
        "Give it a folder of its own, with its adapter_config.json.",
    ),
    _layout("a diffusers pipeline", r"model_index\.json"),
    _layout("GGUF, made for inference already", r".+\.gguf"),
    _layout("TensorFlow", r"tf_model\.h5|.+\.ckpt\.index"),
    _layout("Flax", r"flax_model\.msgpack"),
    _layout("Orbax", r"_CHECKPOINT_METADATA|_METADATA"),
    _layout("NeMo's archive", r".+\.nemo", "Unpack it, and give the folder: tar -xf FILE"),
)
_BY_TITLE = {layout.title: layout for layout in _LAYOUTS}


def find_candidates(folder: Folder) -> Iterator[Candidate]:
    """Yield the layouts whose files lie in a folder."""
    for layout in _LAYOUTS:
        if any(map(layout.marks.fullmatch, folder.files)):
            files = (n for n in folder.files if layout.marks.fullmatch(n) or layout.companions.fullmatch(n))
            yield Candidate(folder.path, folder, tuple(files), layout.title)


def open_candidate(candidate: Candidate, *, select: str | None) -> Checkpoint:
    """Refuse the layout by its name.

    Raises:
        UnsupportedLayoutError: Always.
    """
    raise UnsupportedLayoutError(
        candidate.path,
        f"is a layout that is recognised, and not read yet: {candidate.title}",
        saw=listed(list(candidate.files)),
        hint=_BY_TITLE[candidate.title].hint,
    )
