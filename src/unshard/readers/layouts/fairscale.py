"""fairscale's FSDP, as metaseq and fairseq save it: flat parameters that say what is in them.

    checkpoint_last-shard0.pt, ...-shard1.pt        one file per rank, counted from 0
        model            layers.0.flat_param_0      the rank's range, padded to equal length; buffers
        shard_metadata   param_metadata             names, shapes and order of the parameters, and the
                                                    padding of this rank
    checkpoint_last-model_part-1-shard0.pt          the same of one of several tensor-parallel parts

Nothing is open: names and shapes are in every file, and a range that is missing is a hole. Refused by
name: tensor-parallel parts, and parameters that differ from rank to rank (`no_broadcast_optim_state`).

Source:
    fairscale/nn/data_parallel/fully_sharded_data_parallel.py (`local_metadata_dict`,
    `consolidate_shard_weights`, `_get_shard`); metaseq/checkpoint_utils.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from unshard.checkpoint import Checkpoint, Layout, Replica
from unshard.errors import UnsafeFileError, UnsupportedLayoutError
from unshard.readers.flat.fairscale_metadata import FairscaleMetadata, find_metadata, read_metadata
from unshard.readers.flat.padded_ranges import PaddedRange, unite_padded_ranges
from unshard.readers.folders import Folder
from unshard.readers.protocol import Candidate
from unshard.readers.rendering import cut, listed
from unshard.readers.steps import split_names
from unshard.readers.torch_save.torch_state import TorchState, describe_torch_state, foreign_classes
from unshard.storage.checksums import Checksums
from unshard.storage.files import InputFile
from unshard.tensors import Box, DescribedTensor, element_count

_SHARD = re.compile(r"(.*?)([-_]model_part-(\d{1,5}))?[-_]shard(\d{1,5})\.pt")
_METADATA = "shard_metadata"


@dataclass(frozen=True, slots=True)
class _Rank:
    """What one rank saved."""

    name: str
    number: int
    state: TorchState
    metadata: FairscaleMetadata


def find_candidates(folder: Folder) -> Iterator[Candidate]:
    """Yield the models in a folder whose files are numbered as shards, one for each stem of names."""
    files: dict[str, list[str]] = {}
    for name in folder.files:
        if match := _SHARD.fullmatch(name):
            files.setdefault(match[1], []).append(name)
    split = split_names(files, folder.path)
    for stem, names in files.items():
        series, numbers = split[stem]
        title = "one file per rank, as fairscale writes them"
        path = folder.path if len(files) == 1 else folder.at(names[0])
        yield Candidate(path, folder, tuple(names), title, series, numbers)


def open_candidate(candidate: Candidate, *, select: str | None) -> Checkpoint:
    """Return the model that fairscale's ranks hold together; no tensor is read.

    Raises:
        IncompleteCheckpointError: Ranks are missing.
        UnsupportedLayoutError: It is one of several tensor-parallel parts, or not fairscale's.
        UnsafeFileError: The files contradict themselves or one another.
        InputError: They cannot be read.
    """
    ranks = _ranks(candidate, select)
    first = ranks[0]
    vectors = unite_padded_ranges(_padded(candidate, ranks), subject=candidate.path)
    tensors: dict[str, DescribedTensor] = {}
    for name, backing in first.metadata.backings.items():
        start = 0
        for parameter, shape in backing.parameters.items():
            tensors[parameter] = vectors[name].part(start, shape)
            start += element_count(tensors[parameter])
    buffers, replicas = _buffers(candidate, ranks)
    tensors |= buffers
    shared = {again: kept for again, kept in first.metadata.shared.items() if kept in tensors}
    tensors |= {again: tensors[kept] for again, kept in shared.items()}
    return Checkpoint(
        path=candidate.path,
        root=candidate.folder.path,
        layout=_layout(ranks),
        tensors=tensors,
        container=first.state.container,
        storages={name: shared.get(name, name) for name in tensors},
        files=tuple(rank.state.saved.file for rank in ranks),
        checksums=Checksums.listed(c for rank in ranks for c in rank.state.checksums),
        replicas=replicas,
        extras=tuple(e for e in first.state.extras if not e.name.startswith(_METADATA)),
        classes=foreign_classes(first.state.saved.classes),
        traces=first.state.saved.traces,
        findings=first.state.findings,
    )


def _ranks(candidate: Candidate, select: str | None) -> list[_Rank]:
    """Return what every rank saved, in their order."""
    matches = [match for name in candidate.files if (match := _SHARD.fullmatch(name))]
    parts = sorted({int(match[3]) for match in matches if match[3] is not None})
    if parts and parts != [0]:
        raise UnsupportedLayoutError(
            candidate.path,
            "is a model in tensor-parallel parts, which are not put together",
            saw=f"model_part {listed([str(part) for part in parts])}",
            hint="Merge the parts with metaseq first: python -m metaseq.scripts.consolidate_fsdp_shards",
        )
    ranks = []
    for match in sorted(matches, key=lambda match: int(match[4])):
        state = describe_torch_state(InputFile.describe(candidate.folder.at(match[0])), select)
        metadata = find_metadata(state.saved.value)
        if metadata is None or state.selected:
            raise UnsupportedLayoutError(
                candidate.folder.at(match[0]),
                "is named as a shard of fairscale's, and does not say what its parameters are",
                expected="`shard_metadata` with `param_metadata`",
            )
        said = read_metadata(metadata, state.saved.file.path)
        ranks.append(_Rank(match[0], int(match[4]), state, said))
    return ranks


def _padded(candidate: Candidate, ranks: Sequence[_Rank]) -> dict[str, tuple[int, list[PaddedRange]]]:
    """Return, for every flat parameter, its length and the ranges that ranks hold of it.

    Raises:
        UnsafeFileError: The ranks do not say the same, or a file lacks what it says it has.
        UnsupportedLayoutError: Every rank has parameters of its own.
    """
    first = ranks[0]
    own = [name for name, backing in first.metadata.backings.items() if backing.is_own]
    if own and len(ranks) > 1:
        raise UnsupportedLayoutError(
            candidate.path,
            "holds parameters that every rank has for itself (`no_broadcast_optim_state`)",
            saw=listed([f"`{cut(name)}`" for name in own]),
            hint="They are experts of one rank each, under one name; only their trainer can name them apart.",
        )
    found: dict[str, tuple[int, list[PaddedRange]]] = {
        name: (backing.count, []) for name, backing in first.metadata.backings.items()
    }
    for rank in ranks:
        said = rank.metadata
        _require_same(candidate, rank.name, _without_padding(said) == _without_padding(first.metadata))
        for name, backing in said.backings.items():
            stored = rank.state.stored.get(name)
            _require_same(candidate, rank.name, stored is not None)
            assert stored is not None
            found[name][1].append(PaddedRange(rank.name, rank.number, stored, backing.padding))
    return found


def _without_padding(metadata: FairscaleMetadata) -> object:
    """Return what all ranks must say alike."""
    alike = {name: tuple(backing.parameters.items()) for name, backing in metadata.backings.items()}
    return alike, metadata.shared


def _require_same(candidate: Candidate, file: str, holds: bool) -> None:  # noqa: FBT001 a condition
    if not holds:
        raise UnsafeFileError(
            candidate.path,
            "holds shards that contradict one another about their parameters",
            saw=f"{file} has others than the first, or lacks some that it names",
            hint="Files of two saves lie together; keep those of one. Their times of change tell: ls -l",
        )


def _buffers(
    candidate: Candidate, ranks: Sequence[_Rank]
) -> tuple[dict[str, DescribedTensor], list[Replica]]:
    """Return what every rank has whole, from the first rank, and where the others have it."""
    first = ranks[0]
    found = {n: s.tensor for n, s in first.state.stored.items() if n not in first.metadata.backings}
    replicas = []
    for rank in ranks[1:]:
        for name, tensor in found.items():
            other = rank.state.stored.get(name)
            same = other is not None and other.tensor.shape == tensor.shape
            _require_same(candidate, rank.name, same and other.tensor.dtype == tensor.dtype)  # type: ignore[union-attr]
            assert other is not None
            if tensor.pieces:
                box = Box.whole(tensor.shape)
                replicas.append(Replica(name, box, tensor.pieces[0].source, other.tensor.pieces[0].source))
    return found, replicas


def _layout(ranks: Sequence[_Rank]) -> Layout:
    keys: Mapping[str, object] = ranks[0].state.saved.value  # type: ignore[assignment]
    writer = "metaseq" if "cfg" in keys else "fairscale"
    evidence = (
        f"`{ranks[0].name}` and its like: {len(ranks)} files",
        "`param_metadata` names the parameters in every flat one",
    )
    return Layout("fairscale", f"flat parameters of fairscale, {len(ranks)} ranks", writer, evidence)
