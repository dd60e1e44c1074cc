"""What torchtune wrote until the end of 2024: all epochs in one folder, the epoch behind the names of files.

    hf_model_0001_0.pt, hf_model_0002_0.pt, hf_model_0001_1.pt, ...    Hugging Face's names, in many files
    model-00001-of-00002_0.safetensors, ...                            the same in safetensors
    meta_model_0.pt, torchtune_model_0.pt                              Meta's names, its own, in one file
    adapter_0.pt                                                       merged into the model; not read
    recipe_state.pt                                                    training state

Only the names in safetensors tell how many files there are; a file that is missing at the end of the others
shows in the tensors that the base has. Its later folders, epoch_0/, are Hugging Face's.

Source:
    meta-pytorch/torchtune at eab21f0, torchtune/training/checkpointing/_checkpointer.py
    (`save_checkpoint` of its three checkpointers).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from unshard.checkpoint import Checkpoint, Layout, Traces
from unshard.errors import IncompleteCheckpointError, UnsafeFileError
from unshard.findings import finding
from unshard.readers.folders import Folder
from unshard.readers.protocol import Candidate
from unshard.readers.rendering import cut, listed
from unshard.readers.selection import select_model
from unshard.readers.weights.weights_file import WeightsFile, describe_weights_file
from unshard.sizes import counted
from unshard.storage.checksums import Checksums
from unshard.storage.files import InputFile
from unshard.tensors import DescribedTensor

_TORCH = re.compile(r"(hf_model)_(?P<number>\d{4})_(?P<epoch>\d{1,9})\.pt")
_SAFETENSORS = re.compile(r"(model)-(?P<number>\d{5})-of-(?P<total>\d{5})_(?P<epoch>\d{1,9})\.safetensors")
_ONE = re.compile(r"(meta_model|torchtune_model)_(?P<epoch>\d{1,9})\.pt")
_HINT = "Copy it here from where training saved it; without it the model cannot be rebuilt."


@dataclass(frozen=True, slots=True)
class _File:
    """A file of one epoch: what it is called, its number, of how many where that is told, and the epoch."""

    name: str
    kind: str
    number: int
    total: int | None
    epoch: int

    def like(self, number: int) -> str:
        """Return the name of another file of the same epoch."""
        if self.total is None:
            return f"hf_model_{number:04}_{self.epoch}.pt"
        return f"model-{number:05}-of-{self.total:05}_{self.epoch}.safetensors"


def find_candidates(folder: Folder) -> Iterator[Candidate]:
    """Yield every epoch whose files lie in a folder."""
    epochs: dict[tuple[str, int], list[str]] = {}
    for name in folder.files:
        if file := _parsed(name):
            epochs.setdefault((file.kind, file.epoch), []).append(name)
    for (kind, epoch), names in epochs.items():
        path = folder.path if len(epochs) == 1 else folder.at(names[0])
        merged = tuple(name for name in folder.files if name == f"adapter_{epoch}.pt")
        title = "an epoch of torchtune"
        yield Candidate(path, folder, tuple(names), title, kind, (epoch,), left_out=merged)


def open_candidate(candidate: Candidate, *, select: str | None) -> Checkpoint:
    """Return the model whose tensors lie in the files of one epoch; no tensor is read.

    Raises:
        IncompleteCheckpointError: A file is missing.
        UnsafeFileError: Two files hold one tensor.
        InputError: They cannot be read.
    """
    folder = candidate.folder
    files = [file for file in map(_parsed, candidate.files) if file is not None]
    _require_all(folder, files)
    parts = [describe_weights_file(InputFile.describe(folder.at(file.name))) for file in files]
    tensors = _united(folder, parts)
    storages = {name: token for part in parts for name, token in part.storages.items()}
    chosen = select_model({(): tensors}, select, candidate.path)
    before = f"{chosen.prefix}." if chosen.prefix else ""
    title = f"epoch {files[0].epoch} of torchtune: {counted(len(files), 'file')}"
    return Checkpoint(
        path=candidate.path,
        root=folder.path,
        layout=Layout("torchtune", title, "torchtune", (f"`{files[0].name}`",)),
        tensors=chosen.tensors,
        selected=chosen.prefix,
        storages={name: storages[before + name] for name in chosen.tensors},
        files=tuple(part.file for part in parts),
        checksums=Checksums.listed(checksum for part in parts for checksum in part.checksums),
        extras=tuple(dict.fromkeys(extra for part in parts for extra in part.extras)),
        classes=tuple(dict.fromkeys(name for part in parts for name in part.classes)),
        traces=Traces.of_all(part.traces for part in parts),
        findings=tuple(found for part in parts for found in part.findings),
    )


def _parsed(name: str) -> _File | None:
    if found := _ONE.fullmatch(name):
        return _File(name, found[1], 1, 1, int(found["epoch"]))
    if found := _TORCH.fullmatch(name):
        return _File(name, found[1], int(found["number"]), None, int(found["epoch"]))
    if found := _SAFETENSORS.fullmatch(name):
        return _File(name, found[1], int(found["number"]), int(found["total"]), int(found["epoch"]))
    return None


def _require_all(folder: Folder, files: Sequence[_File]) -> None:
    there = {file.number for file in files}
    last = max(files[0].total or 0, *there)
    missing = [files[0].like(number) for number in range(1, last + 1) if number not in there]
    if missing:
        raise IncompleteCheckpointError(
            folder.path,
            f"lacks {counted(len(missing), 'file')} of epoch {files[0].epoch}",
            saw=f"{len(there)} of {last}, without {listed(missing)}",
            hint=_HINT,
            gaps=[
                finding("U110", subject=name, saw="not there, and with it its tensors", remedy=_HINT)
                for name in missing
            ],
        )


def _united(folder: Folder, parts: Sequence[WeightsFile]) -> dict[str, DescribedTensor]:
    tensors: dict[str, DescribedTensor] = {}
    for part in parts:
        if twice := [name for name in part.tensors if name in tensors]:
            raise UnsafeFileError(
                folder.path,
                f"holds {counted(len(twice), 'tensor')} in two files of one epoch",
                saw=f"`{cut(twice[0])}`, again in {part.file.path.name}",
                hint="Files of two saves lie together; keep those of one.",
            )
        tensors |= part.tensors
    return tensors
