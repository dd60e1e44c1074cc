"""One file of torch.save per rank, each with its rank's part of the state dict.

    model_world_size_<W>_rank_<R>.pt              verl, SkyRL
    optim_world_size_..., extra_state_...         training state beside it, never opened
    pytorch_model_fsdp[_<i>]_rank<R>.bin          accelerate with use_dcp=False, and LOCAL_STATE_DICT
    <anything>rank<R><anything>.pt, .pth, .bin    anybody

Values are DTensors (FSDP2, FSDP1 with a mesh, tensor parallelism), ShardedTensors (FSDP1), flat parameters
(LOCAL_STATE_DICT of FSDP1), or plain tensors: replicated ones, and all of them where there is one rank.
Every file tells shapes, meshes and places. Refused: `Partial` placements; plain tensors of one name that
differ from rank to rank, since nothing tells how they belong together.

Memory:
    The pickle of one rank at a time, and a few hundred bytes for every part of a tensor.

Source:
    verl/utils/checkpoint/fsdp_checkpoint_manager.py; accelerate src/accelerate/utils/fsdp_utils.py
    (`save_fsdp_model`); torch/distributed/tensor/_api.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from unshard.checkpoint import Checkpoint, Layout
from unshard.findings import Finding, finding
from unshard.readers.distributed.rank_names import Ranks, family_of, find_families, rank_in
from unshard.readers.distributed.rank_states import (
    RankState,
    SharedLayouts,
    describe_rank_state,
    rank_state_of,
)
from unshard.readers.folders import Folder, size_of
from unshard.readers.layouts.rank_parts import assemble
from unshard.readers.protocol import Candidate
from unshard.readers.rendering import listed
from unshard.readers.steps import split_names
from unshard.readers.torch_save.torch_state import ChosenModel
from unshard.readers.training_files import training_kind
from unshard.sizes import counted, format_size
from unshard.storage.files import InputFile


def find_candidates(folder: Folder) -> Iterator[Candidate]:
    """Yield the families of files in a folder that differ in the number of a rank only.

    Of one model's families for several numbers of ranks, one that is complete is meant, and the others
    are of other saves; where several are complete, or none is, nothing tells.
    """
    names = [name for name in folder.files if training_kind(name) is None]
    families = find_families(folder.path, names)
    meant, left_out = _meant(families)
    split = split_names((_stem(ranks) for ranks in meant), folder.path)
    for ranks in meant:
        files = tuple(ranks.files.values())
        series, numbers = split[_stem(ranks)]
        counted = ranks.world_size is not None  # a number in the name that is no step
        yield Candidate(
            folder.path if len(meant) == 1 else folder.at(files[0]),
            folder,
            files,
            "one file per rank",
            _stem(ranks) if counted and len(meant) > 1 else "" if counted else series,
            () if counted else numbers,
            left_out=left_out if counted else (),
        )


def _meant(families: Sequence[Ranks]) -> tuple[list[Ranks], tuple[str, ...]]:
    """Return the families without those of other saves of the same model, and names of the latter's files."""
    counted = [ranks for ranks in families if ranks.world_size is not None]
    complete = [ranks for ranks in counted if ranks.is_complete]
    if len(complete) != 1:
        return list(families), ()
    left_out = [ranks for ranks in counted if ranks is not complete[0]]
    names = tuple(name for ranks in left_out for name in ranks.files.values())
    return [r for r in families if r.world_size is None or r is complete[0]], names


def _stem(ranks: Ranks) -> str:
    return ranks.before.rstrip("-_.").removesuffix("rank").rstrip("-_.")


def open_candidate(candidate: Candidate, *, select: str | None) -> Checkpoint:
    """Return the model whose parts lie in one file per rank; no tensor is read.

    Raises:
        TrainingStateError: The files hold only training state.
        AmbiguousModelError: They hold several models, and `select` does not name one.
        IncompleteCheckpointError: Parts of the model are in none of them.
        UnsafeFileError: They contradict themselves or one another.
        InputError: They cannot be read.
    """
    folder = candidate.folder
    (ranks,) = find_families(folder.path, candidate.files)
    shared = SharedLayouts()
    states = [
        describe_rank_state(InputFile.describe(folder.at(name)), rank, select=select, shared=shared)
        for rank, name in ranks.files.items()
    ]
    checkpoint = assemble(ranks, states, candidate.path, _layout(ranks, states, folder))
    told = _told_of_left_out(candidate, ranks)
    return replace(checkpoint, findings=(*told, *checkpoint.findings))


def open_part(model: ChosenModel, candidate: Candidate) -> Checkpoint:
    """Return the model in a single file whose tensors are one rank's parts, which may be all there is.

    Raises:
        IncompleteCheckpointError: Other ranks have parts, too.
        InputError: It cannot be read.
    """
    name = candidate.path.name
    ranks = family_of(candidate.folder.path, name)
    state = rank_state_of(model, rank_in(name), shared=SharedLayouts())
    return assemble(ranks, [state], candidate.path, _layout(ranks, [state], candidate.folder))


def _told_of_left_out(candidate: Candidate, ranks: Ranks) -> Iterator[Finding]:
    if candidate.left_out:
        size = format_size(sum(size_of(candidate.folder.at(name)) for name in candidate.left_out))
        yield finding(
            "U113",
            subject=listed(list(candidate.left_out)),
            saw=f"{len(candidate.left_out)} files, {size}",
            expected=f"only the files of {ranks.world_size} ranks, which are all there",
            remedy="They are of a save by another number of ranks. Delete them.",
        )


def _layout(ranks: Ranks, states: Sequence[RankState], folder: Folder) -> Layout:
    kinds = dict.fromkeys(t.kind for state in states for t in state.distributed.values())
    evidence = [f"`{next(iter(ranks.files.values()))}` and its like: of {counted(len(ranks.files), 'rank')}"]
    writer = None
    if ranks.world_size is not None:
        writer = "verl"
        if "fsdp_config.json" in folder.files:
            evidence.append("`fsdp_config.json` lies beside them")
    elif ranks.before.startswith("pytorch_model"):
        writer = "accelerate"
    if kinds:
        evidence.append(f"parts of {' and '.join(kinds)}s")
    what = " and ".join(kinds) or "plain tensor"
    title = f"one file per rank: {counted(len(ranks.files), 'file')} of {what}s"
    return Layout("rank-files", title, writer, tuple(evidence))
