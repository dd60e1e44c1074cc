"""The ranges that ranks hold of flat parameters, put together.

Every rank's range of a flat parameter is a ShardedTensor of one dimension, which says where it begins.
In hybrid sharding several ranks hold the same range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from unshard.checkpoint import Replica
from unshard.errors import IncompleteCheckpointError, UnsafeFileError
from unshard.findings import Finding, finding
from unshard.readers.distributed.parts import DistributedTensor, LocalPiece
from unshard.readers.distributed.rank_states import RankState
from unshard.readers.flat.module_order import without_wrappers
from unshard.readers.flat.vectors import Stretch, Vector
from unshard.readers.rendering import cut, listed
from unshard.tensors import Source
from unshard.tensors.coverage import Coverage, check_coverage, described_box

FLAT_PARAMETER = "_flat_param"
_MISSING = "Copy the files of all ranks into one folder, or give the folders of all nodes."
_TWO_SAVES = "Files of two saves lie together; keep those of one. Their times of change tell: ls -l"

Held = tuple[RankState, LocalPiece]


def flat_parts(state: RankState) -> dict[str, DistributedTensor]:
    """Return what a rank holds of flat parameters, by name."""
    return {
        name: tensor
        for name, tensor in state.tensors.items()
        if isinstance(tensor, DistributedTensor) and name.rpartition(".")[2] == FLAT_PARAMETER
    }


def unite_ranges(states: Sequence[RankState], subject: Path) -> tuple[dict[str, Vector], list[Replica]]:
    """Return every flat parameter whole, and ranges that several ranks hold.

    Raises:
        IncompleteCheckpointError: Ranges are held by no file.
        UnsafeFileError: The files contradict one another.
    """
    parts: dict[str, list[tuple[RankState, DistributedTensor]]] = {}
    for state in states:
        for name, tensor in flat_parts(state).items():
            parts.setdefault(name, []).append((state, tensor))
    gaps: list[Finding] = []
    vectors: dict[str, Vector] = {}
    replicas: list[Replica] = []
    for name, held in parts.items():
        _require_one_kind(name, held, subject)
        pieces = [(state, piece) for state, tensor in held for piece in tensor.pieces]
        whole = held[0][1]
        coverage = check_coverage(whole.shape, [piece.box for _, piece in pieces])
        _require_apart(name, coverage, pieces, subject)
        gaps += (_gap(name, coverage, hole) for hole in range(len(coverage.holes)))
        stretches = (pieces[number][1] for number in coverage.kept)
        vectors[name] = Vector(
            whole.dtype,
            tuple(Stretch(p.box.start[0], p.box.stop[0], _source(p)) for p in stretches),
        )
        replicas += _replicas(name, coverage, [piece for _, piece in pieces])
    if gaps:
        raise IncompleteCheckpointError(
            subject,
            f"lacks parts of {len({gap.subject for gap in gaps})} flat parameters",
            saw=f"{gaps[0].saw} of `{gaps[0].subject}`",
            hint=_MISSING,
            gaps=gaps,
        )
    return vectors, replicas


def _require_one_kind(name: str, held: Sequence[tuple[RankState, DistributedTensor]], subject: Path) -> None:
    """Raise unless all ranks say the same of a flat parameter."""
    kinds = {(tensor.shape, tensor.dtype.name): state.file for state, tensor in held}
    if len(kinds) > 1 or len(held[0][1].shape) != 1:
        shown = [f"{list(shape)} of {dtype} in {file}" for (shape, dtype), file in kinds.items()]
        raise UnsafeFileError(
            subject,
            f"holds files that contradict one another about `{cut(name)}`",
            saw=listed(shown),
            expected="one dimension, of one length and dtype",
            hint=_TWO_SAVES,
        )


def _require_apart(name: str, coverage: Coverage, pieces: Sequence[Held], subject: Path) -> None:
    """Raise where ranges overlap, or reach beyond the flat parameter."""
    wrong = [number for overlap in coverage.overlaps for number in overlap.among] or [*coverage.outside]
    if wrong:
        shown = [
            f"{described_box(coverage.shape, pieces[number][1].box)} in {pieces[number][0].file}"
            for number in wrong
        ]
        raise UnsafeFileError(
            subject,
            f"holds ranges of `{cut(name)}` that cannot be of one save",
            saw=listed(shown),
            expected=f"ranges that follow one another through {coverage.shape[0]:,} elements",
            hint=_TWO_SAVES,
        )


def _gap(name: str, coverage: Coverage, hole: int) -> Finding:
    part = described_box(coverage.shape, coverage.holes[hole])
    return finding("U112", subject=cut(name), saw=f"no file holds {part}", remedy=_MISSING)


def _replicas(name: str, coverage: Coverage, pieces: Sequence[LocalPiece]) -> list[Replica]:
    return [
        Replica(name, pieces[first].box, _source(pieces[first]), _source(pieces[other]))
        for first, *others in coverage.replicas
        for other in others
    ]


def storages_of(state: RankState) -> Mapping[str, tuple[str, int, int]]:
    """Return, by key of its storage, (name, where the rank's range begins, byte at which it does)."""
    found: dict[str, tuple[str, int, int]] = {}
    for name, tensor in flat_parts(state).items():
        for piece in filter(lambda piece: piece.box.volume, tensor.pieces):
            place = _source(piece).place
            if place is not None:
                found[piece.stored.storage.key] = (name, piece.box.start[0], place.offset)
    return found


def unit_of(name: str) -> str:
    """Return the module whose parameters a flat parameter holds, without wrappers; "" for the outermost."""
    return without_wrappers(name).rpartition(".")[0]


def _source(piece: LocalPiece) -> Source:
    """Return where a piece lies that has elements."""
    return piece.stored.tensor.pieces[0].source
