"""The names, shapes and dtypes a model needs, from the headers of the base's own weights."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from unshard.base.description import ExpectedTensor
from unshard.errors import BaseModelError, InputError
from unshard.readers.weights.weights_file import describe_weights_file
from unshard.storage.files import InputFile
from unshard.tensors import DescribedTensor

_UNKNOWN = ExpectedTensor(None, None)


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a model needs, and how that is known.

    Attributes:
        tensors: What it needs, by name.
        origin: Where that comes from, in words.
        ties: Names that repeat another tensor, and that tensor.
        in_order: Whether the tensors are in the order in which the model registers them.
    """

    tensors: Mapping[str, ExpectedTensor]
    origin: str
    ties: Mapping[str, str]
    in_order: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether every shape is known."""
        return all(tensor.shape is not None for tensor in self.tensors.values())


def expected_from_weights(folder: Path, *, apart_from: Collection[Path]) -> Expectation | None:
    """Return what the weights of a folder tell of the model, without reading one of them.

    Files of an index that are not there (a download that was cut short, or never made) leave names
    without shapes.

    Args:
        folder: The folder of the base.
        apart_from: Files that prove nothing, because they are the checkpoint itself.

    Raises:
        BaseModelError: A file of weights, or the index, is damaged.
    """
    for ending, index_name, single in (
        ("safetensors", "model.safetensors.index.json", "model.safetensors"),
        ("bin", "pytorch_model.bin.index.json", "pytorch_model.bin"),
    ):
        names = _names_by_file(folder, index_name, single, f"*.{ending}")
        there = {file: kept for file, kept in names.items() if (folder / file).is_file()}
        if any((folder / file).resolve() in apart_from for file in there):
            continue
        if there or any(names.values()):
            return _describe(folder, names, there, ending)
    return None


def _describe(
    folder: Path, names: Mapping[str, list[str]], there: Mapping[str, list[str]], ending: str
) -> Expectation:
    tensors = {name: _UNKNOWN for listed in names.values() for name in listed}
    for file in there:
        tensors |= {
            name: ExpectedTensor(tensor.shape, tensor.dtype)
            for name, tensor in _headers(folder / file).items()
        }
    origin = f"{'safetensors' if ending == 'safetensors' else 'pytorch_model.bin'} headers"
    if len(there) < len(names):
        origin = f"index, {len(names) - len(there)} of {len(names)} files missing"
    return Expectation(tensors, origin, {})


def _headers(path: Path) -> Mapping[str, DescribedTensor]:
    """Return the tensors of one file of weights.

    Raises:
        BaseModelError: It is damaged, or no file of weights.
    """
    try:
        return describe_weights_file(InputFile.describe(path)).tensors
    except InputError as error:
        raise BaseModelError(
            path,
            "is a file of the base's weights, and is damaged",
            saw=error.message,
            hint="Copy or download the base again; its headers tell what the result must have.",
        ) from error


def _names_by_file(folder: Path, index_name: str, single: str, pattern: str) -> dict[str, list[str]]:
    """Return the files that hold the weights, and for each the names an index lists, else none."""
    index = folder / index_name
    if (folder / single).is_file() or not index.is_file():
        files = [single] if (folder / single).is_file() else _weight_files(folder.glob(pattern))
        return {file: [] for file in files}
    names: dict[str, list[str]] = {}
    for name, file in _weight_map(index).items():
        names.setdefault(file, []).append(name)
    return names


def _weight_files(paths: Iterable[Path]) -> list[str]:
    """Return the names of those files that hold the weights of a model in Hugging Face's format."""
    return sorted(p.name for p in paths if p.name.startswith(("model", "pytorch_model")))


def _weight_map(index: Path) -> dict[str, str]:
    """Return the file of every tensor.

    Raises:
        BaseModelError: It is no index, or names files outside its folder.
    """
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        plain = {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BaseModelError(
            index, "is not an index of weights", saw=f"{type(error).__name__}: {error}"
        ) from error
    outside = sorted({file for file in plain.values() if Path(file).name != file or file in ("", ".", "..")})
    if outside:
        raise BaseModelError(
            index,
            "names files outside its folder",
            saw=outside[0],
            hint="Copy the base again from its source.",
        )
    return plain
