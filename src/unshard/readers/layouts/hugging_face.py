"""A Hugging Face folder: weights in one file or many, an index, and the small files of a model.

    model.safetensors | model-0000N-of-0000M.safetensors + model.safetensors.index.json
    pytorch_model.bin | pytorch_model-0000N-of-0000M.bin + pytorch_model.bin.index.json
    config.json, generation_config.json, tokenizer*, ...

Safetensors are preferred where both are there, as transformers does. An index must agree with the
files in both directions. Names in it are plain names in the folder. A single safetensors file of any
name is this layout, too; one of several is not.

Memory:
    Headers only: a few hundred bytes per tensor.

Source:
    transformers src/transformers/modeling_utils.py; huggingface_hub src/huggingface_hub/serialization.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from unshard.checkpoint import Checkpoint, Extra, Layout, Traces
from unshard.errors import IncompleteCheckpointError
from unshard.findings import Finding, finding
from unshard.readers.folders import Folder, size_of
from unshard.readers.protocol import Candidate
from unshard.readers.rendering import cut, listed
from unshard.readers.selection import select_model
from unshard.readers.training_files import training_kind
from unshard.readers.weights.weight_index import (
    WeightIndex,
    describe_weight_index,
    part_of,
    require_agreement,
)
from unshard.readers.weights.weights_file import WeightsFile, describe_weights_file
from unshard.storage.checksums import Checksums
from unshard.storage.files import InputFile
from unshard.tensors import DescribedTensor

_FORMATS = (("model", "safetensors"), ("pytorch_model", "bin"))
# Copies in the other format, FSDP's own copy of what the Trainer writes, and the shards that torch made
# the model of, are the same model.
_COPIES = re.compile(
    r"(pytorch_)?model(-\d{5}-of-\d{5}|_fsdp)?\.(bin|safetensors)(\.index\.json)?"
    r"|shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors"
)
_SHARD, _SHARDS = "shard-", "sharded"
_MANIFEST = "unshard.manifest.json"


def find_candidates(folder: Folder) -> Iterator[Candidate]:
    """Yield the model whose weights lie in a folder, or else every safetensors file in it."""
    found = _format(folder)
    if found is not None:
        files = tuple(filter(_COPIES.fullmatch, folder.files))
        yield Candidate(folder.path, folder, files, f"Hugging Face folder ({found[1]})")
        return
    for name in folder.files:
        if name.endswith(".safetensors") and not _is_of_another_layout(name):
            stem = name.removesuffix(".safetensors")
            yield Candidate(folder.at(name), folder, (name,), "safetensors file", stem)


def open_candidate(candidate: Candidate, *, select: str | None) -> Checkpoint:
    """Return the model in a Hugging Face folder, or in one safetensors file; no tensor is read.

    Raises:
        IncompleteCheckpointError: Files of it are missing; the tensors they held are named.
        UnsafeFileError: The index and the files disagree.
        InputError: It cannot be read.
    """
    path = candidate.path
    is_folder = path.is_dir()
    folder = candidate.folder
    index = _index_of(folder) if is_folder else _only(path.name)
    parts = [describe_weights_file(InputFile.describe(folder.at(name))) for name in index.files]
    require_agreement(folder, index, {part.file.path.name: part.tensors for part in parts})
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    storages = {name: token for part in parts for name, token in part.storages.items()}
    chosen = select_model({(): tensors}, select, path)
    before = f"{chosen.prefix}." if chosen.prefix else ""
    return Checkpoint(
        path=path,
        root=folder.path,
        layout=_layout(folder, index, is_folder=is_folder),
        tensors=chosen.tensors,
        container=parts[0].container if len(parts) == 1 else (),
        selected=chosen.prefix,
        storages={name: storages[before + name] for name in chosen.tensors},
        files=tuple(part.file for part in parts),
        checksums=Checksums.listed(checksum for part in parts for checksum in part.checksums),
        extras=(*_once(parts), *(_copies(folder, index) if is_folder else ())),
        classes=tuple(dict.fromkeys(name for part in parts for name in part.classes)),
        traces=Traces.of_all(part.traces for part in parts),
        findings=(
            *(found for part in parts for found in part.findings),
            *(_numbers_told(folder, tensors) if is_folder else ()),
        ),
    )


def _format(folder: Folder) -> tuple[str, str] | None:
    """Return the stem and ending of the weights in a folder: safetensors, where there are both.

    An index alone counts, for what it names is then missing; but not beside the shards of a model.
    """
    sharded = any(name.startswith(_SHARD) for name in folder.files)
    for stem, ending in _FORMATS:
        index = rf"{stem}\.{ending}\.index\.json"
        own = re.compile(rf"{stem}(-\d{{5}}-of-\d{{5}})?\.{ending}" + ("" if sharded else f"|{index}"))
        if any(map(own.fullmatch, folder.files)):
            return stem, ending
    return None


def _index_of(folder: Folder) -> WeightIndex:
    found = _format(folder)
    assert found is not None
    return describe_weight_index(folder, *found)


def _only(name: str) -> WeightIndex:
    """Return the index of a single file.

    Raises:
        IncompleteCheckpointError: Its name says that it is one of several.
    """
    part = part_of(name)
    if part is not None and part[1] > 1:
        raise IncompleteCheckpointError(
            name,
            f"is file {part[0]} of {part[1]} of a model",
            hint="Give the folder that all of them lie in.",
        )
    return WeightIndex((name,), None, {})


def _is_of_another_layout(name: str) -> bool:
    return training_kind(name) is not None or name.startswith(("adapter_model", "shard-"))


def _once(parts: list[WeightsFile]) -> tuple[Extra, ...]:
    """Return what the files hold besides tensors, without what every one of them repeats."""
    return tuple(dict.fromkeys(extra for part in parts for extra in part.extras))


def _copies(folder: Folder, index: WeightIndex) -> Iterator[Extra]:
    """Yield files of weights that are not part of the model that was taken."""
    for name in filter(_COPIES.fullmatch, folder.files):
        if name not in index.files and not name.endswith(".json"):
            yield Extra(name, "file", size_of(folder.at(name)), "weights that were not read")
    if _SHARDS in folder.folders:
        size = size_of(folder.path / _SHARDS)
        yield Extra(f"{_SHARDS}/", "file", size, "the shards that the weights were made of; not read")


def _numbers_told(folder: Folder, tensors: Mapping[str, DescribedTensor]) -> Iterator[Finding]:
    """Tell of tensors that torch writes as zero when it makes a model of the shards beside it.

    Source:
        torch/distributed/checkpoint/_consolidate_hf_safetensors.py
        (`_write_sub_tensor_to_file_optimized`, which copies nothing where there are no dimensions).
    """
    shards = [name for name in folder.files if name.startswith(_SHARD)]
    numbers = [f"`{cut(name)}`" for name, tensor in tensors.items() if tensor.shape == ()]
    if numbers and (shards or _SHARDS in folder.folders):
        place = f"`{_SHARDS}/`" if _SHARDS in folder.folders else "the files shard-*"
        yield finding(
            "U121",
            subject=folder.path.name,
            saw=f"{listed(numbers)}, in files that lie beside the shards they may be made of",
            remedy=f"Compare them with {place}, or convert these instead.",
        )


def _layout(folder: Folder, index: WeightIndex, *, is_folder: bool) -> Layout:
    ending = index.files[0].rpartition(".")[2]
    count = "one file" if len(index.files) == 1 else f"{len(index.files)} files"
    evidence = [f"`{index.name}` lists {count}" if index.name else f"`{index.files[0]}`"]
    writer = None
    for name, who in ((_MANIFEST, "unshard"), ("trainer_state.json", "Hugging Face Trainer")):
        if writer is None and name in folder.files:
            writer = who
            evidence.append(f"`{name}` lies beside it")
    if "config.json" in folder.files and is_folder:
        evidence.append("`config.json` lies beside it")
    title = f"Hugging Face folder: {count} of {ending}" if is_folder else "one safetensors file"
    return Layout("hugging-face", title, writer, tuple(evidence))
