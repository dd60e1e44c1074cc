"""What a model folder is, as data. Nothing is judged here: checks do that, and repairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from unshard.tensors import DescribedTensor


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file that is there and cannot be read as what its name says.

    Attributes:
        name: Its name in the folder.
        problem: What is wrong with it, as a sentence.
        hint: What to do.
        is_outside: Whether it is a link that leads out of the folder, which engines follow and we do not.
    """

    name: str
    problem: str
    hint: str | None = None
    is_outside: bool = False


@dataclass(frozen=True, slots=True)
class JsonFile:
    """A small JSON file.

    Attributes:
        name: Its name in the folder.
        content: Its bytes.
        value: The object it is.
    """

    name: str
    content: bytes
    value: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class WeightsOfFile:
    """One file of weights.

    Attributes:
        name: Its name in the folder.
        size: Bytes.
        tensors: What it holds, by name.
        metadata: What its header says beside tensors, such as `format`.
    """

    name: str
    size: int
    tensors: Mapping[str, DescribedTensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder that holds, or should hold, a model for inference.

    Attributes:
        path: The folder.
        names: Every file in it by its name relative to it, sorted; hidden ones and those in folders of
            other things (`checkpoint-*`, `.git`) left out.
        weights: Every file of weights that can be read, of the format that engines take first; one of the
            whole model before parts of it.
        other_weights: Names of files of weights in another format, which engines pass over, and of those
            that belong to something else: an adapter, an optimizer, a copy in Mistral's format.
        index: The index of the weights, or None where there is none or it cannot be read.
        json_files: Every other JSON file at the top that is an object, by name: config.json,
            generation_config.json, tokenizer_config.json, ...; not the vocabulary of the tokenizer.
        chat_template: The chat template, wherever it stands, or None.
        tokens: One more than the highest token id of the tokenizer, or None where it is not known.
        added_tokens: The content and id of every token that was added to the tokenizer.
        unreadable: Files that cannot be read as what they are called.
        is_growing: Whether something in it says that it is still being written.
    """

    path: Path
    names: tuple[str, ...]
    weights: tuple[WeightsOfFile, ...]
    other_weights: tuple[str, ...]
    index: JsonFile | None
    json_files: Mapping[str, JsonFile]
    chat_template: str | None
    tokens: int | None
    added_tokens: Mapping[str, int]
    unreadable: tuple[Unreadable, ...]
    is_growing: bool = False

    @property
    def tensors(self) -> dict[str, DescribedTensor]:
        """Every tensor of every file by name; of two with one name, that of the file that comes first."""
        found: dict[str, DescribedTensor] = {}
        for file in self.weights:
            for name, tensor in file.tensors.items():
                found.setdefault(name, tensor)
        return found

    def json(self, name: str) -> Mapping[str, object] | None:
        """Return what a JSON file of the folder says, or None where there is none that can be read."""
        file = self.json_files.get(name)
        return None if file is None else file.value
