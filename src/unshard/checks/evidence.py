"""What a check may look at, and what a check is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from unshard.base import Base
from unshard.base.configuration import Config
from unshard.checkpoint import Checkpoint
from unshard.findings import Finding
from unshard.match import Outline
from unshard.measures import Measurement
from unshard.model_folder import ModelFolder
from unshard.tensors import DescribedTensor, Tensor


@dataclass(frozen=True, slots=True)
class Evidence:
    """What checks look at: headers and small files; numbers only where they were measured.

    Attributes:
        path: What was asked about.
        folder: The model folder it is, as it stands there, or None where it is a checkpoint of training.
        checkpoint: The tensors as a reader opened them, or None where that was not possible.
        outline: Names, ties and shapes held against the base, or None where nothing could be opened.
        tensors: The tensors that are judged, by the names that the model has where these are known, else as
            they lie there; with the casts of the result where it is known.
        config: The folder's own configuration, or that of the base.
        base: The base, or None. A model folder is not its own base.
        base_tensors: The base's own weights by name; empty where there are none.
        measured: What was measured of the tensors, and against `base_tensors`, by name; empty unless
            tensor bytes were asked for.
        is_deep: Whether tensor bytes may be read.
        read_model_class: Whether transformers may be asked; importing it takes seconds.
    """

    path: Path
    folder: ModelFolder | None = None
    checkpoint: Checkpoint | None = None
    outline: Outline | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    config: Config | None = None
    base: Base | None = None
    base_tensors: Mapping[str, DescribedTensor] = field(default_factory=dict)
    measured: Mapping[str, Measurement] = field(default_factory=dict)
    is_deep: bool = False
    read_model_class: bool = False

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors by name."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing to look at.

    Attributes:
        name: What it is called, `values.not_a_number`.
        codes: The findings that it may give.
        find: Yields them. It raises nothing for what lies in the folder, and does not know other checks.
    """

    name: str
    codes: tuple[str, ...]
    find: Callable[[Evidence], Iterable[Finding]]
