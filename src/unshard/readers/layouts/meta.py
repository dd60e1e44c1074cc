"""Meta's own files: one for every rank of tensor parallelism, each with its part of the matrices.

    consolidated.00.pth ... consolidated.07.pth    flat state dicts of plain tensors, as torch.save wrote them
    params.json                                    dim, n_heads, n_kv_heads, ...
    tokenizer.model, checklist.chk

No tensor says that it is a part: by its name it is one of rows (`wq`, `wk`, `wv`, `w1`, `w3`, `output`), of
columns (`wo`, `w2`), or whole, as norms are. The embedding is cut into columns for Llama 1 and 2, into rows
since; its shape tells. How many files there were follows from `wo`, whose columns together are as many as a
norm is long. Whole tensors that differ from file to file are refused: they are parts by an unknown rule.

Source:
    meta-llama/llama llama/model.py (`ColumnParallelLinear`, `RowParallelLinear`, `ParallelEmbedding`),
    meta-llama/llama3 llama/model.py (`VocabParallelEmbedding`); facebookresearch/fairscale
    fairscale/nn/model_parallel/layers.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from unshard.checkpoint import Checkpoint, Layout
from unshard.readers.distributed.parts import DistributedTensor, LocalPiece
from unshard.readers.distributed.rank_names import Ranks
from unshard.readers.distributed.rank_states import RankState, RankTensor, SharedLayouts, describe_rank_state
from unshard.readers.folders import Folder
from unshard.readers.layouts.rank_parts import assemble
from unshard.readers.protocol import Candidate
from unshard.readers.torch_save.torch_objects import StoredTensor
from unshard.sizes import counted
from unshard.storage.files import InputFile
from unshard.tensors import Box

_FILE = re.compile(r"consolidated\.(\d\d)\.pth")
_ROWS = re.compile(r"(.+\.)?(attention\.w[qkv]|feed_forward\.(experts\.\d+\.)?w[13]|output)\.weight")
_COLUMNS = re.compile(r"(.+\.)?(attention\.wo|feed_forward\.(experts\.\d+\.)?w2)\.weight")
_OUTPUT_OF_ATTENTION = re.compile(r"(.+\.)?attention\.wo\.weight")
_EMBEDDING, _NORM = "tok_embeddings.weight", "norm.weight"


def find_candidates(folder: Folder) -> Iterator[Candidate]:
    """Yield the files of a folder that are named as Meta names them, which are one model."""
    files = tuple(filter(_FILE.fullmatch, folder.files))
    if files:
        yield Candidate(folder.path, folder, files, "Meta's files, one per rank of tensor parallelism")


def open_candidate(candidate: Candidate, *, select: str | None) -> Checkpoint:
    """Return the model whose matrices are cut into one part for each file; no tensor is read.

    Raises:
        IncompleteCheckpointError: A file is missing.
        UnsafeFileError: The files contradict one another.
        UnsupportedLayoutError: Tensors are cut by a rule that is not known.
        InputError: They cannot be read.
    """
    folder, shared = candidate.folder, SharedLayouts()
    files = {int(name.split(".")[1]): name for name in candidate.files}
    ranks = Ranks(folder.path, "consolidated.", ".pth", files)
    states = [
        describe_rank_state(InputFile.describe(folder.at(name)), rank, select=select, shared=shared)
        for rank, name in files.items()
    ]
    world_size = _world_size(states[0].tensors) or max(files) + 1
    cut = [replace(state, tensors=dict(_placed(state, world_size))) for state in states]
    evidence = [f"`{candidate.files[0]}`"]
    if "params.json" in folder.files:
        evidence.append("`params.json` lies beside it")
    title = f"Meta's files of tensor parallelism: {counted(len(files), 'file')}"
    return assemble(ranks, cut, folder.path, Layout("meta", title, "Meta", tuple(evidence)))


def _world_size(tensors: Mapping[str, RankTensor]) -> int | None:
    """Return in how many parts matrices were cut, or None where that does not follow."""
    norm = tensors.get(_NORM)
    output = next((t for name, t in tensors.items() if _OUTPUT_OF_ATTENTION.fullmatch(name)), None)
    if not isinstance(norm, StoredTensor) or not isinstance(output, StoredTensor):
        return None
    whole, part = norm.tensor.shape, output.tensor.shape
    if len(whole) != 1 or len(part) != 2 or not part[1] or whole[0] % part[1]:
        return None
    return whole[0] // part[1]


def _placed(state: RankState, world_size: int) -> Iterator[tuple[str, RankTensor]]:
    """Yield the tensors of a rank, those that are parts with their place in the whole."""
    norm = state.tensors.get(_NORM)
    width = norm.tensor.shape[0] if isinstance(norm, StoredTensor) and norm.tensor.shape else None
    for name, tensor in state.tensors.items():
        dim = _dimension(name, tensor, width)
        if dim is None or not isinstance(tensor, StoredTensor):
            yield name, tensor
        else:
            yield name, _part(tensor, dim, state.rank, world_size)


def _dimension(name: str, tensor: RankTensor, width: int | None) -> int | None:
    """Return the dimension along which a tensor is cut, or None where every file has it whole."""
    if not isinstance(tensor, StoredTensor) or len(tensor.tensor.shape) != 2:
        return None
    if _ROWS.fullmatch(name):
        return 0
    if _COLUMNS.fullmatch(name):
        return 1
    if name.endswith(_EMBEDDING):
        return 0 if tensor.tensor.shape[1] == width else 1
    return None


def _part(stored: StoredTensor, dim: int, rank: int, world_size: int) -> DistributedTensor:
    shape = stored.tensor.shape
    start, stop, whole = [0] * len(shape), list(shape), list(shape)
    start[dim], stop[dim], whole[dim] = rank * shape[dim], (rank + 1) * shape[dim], world_size * shape[dim]
    return DistributedTensor(
        kind="part by tensor parallelism",
        shape=tuple(whole),
        dtype=stored.tensor.dtype,
        pieces=(LocalPiece(Box(tuple(start), tuple(stop)), stored),),
        world_size=world_size,
    )
