"""What files of ranks lack: whole ranks, and rows that none of those that are there hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from unshard.errors import IncompleteCheckpointError
from unshard.findings import Finding, finding
from unshard.readers.distributed.rank_names import Ranks, ranges_of
from unshard.readers.distributed.uniting import Hole
from unshard.readers.rendering import cut, listed

_MOST_TENSORS = 20


def find_gaps(ranks: Ranks, world_size: int | None, holes: Sequence[Hole]) -> list[Finding]:
    """Return everything that is missing; nothing where every tensor is whole."""
    if not holes:
        return []
    tensors = list(dict.fromkeys(hole.name for hole in holes))
    lost = f"parts of {_named(tensors)}, such as {holes[0].described} of `{cut(holes[0].name)}`"
    missing = find_missing(ranks, world_size, lost)
    return [*([] if missing is None else [missing]), *_holes(holes)]


def find_missing(ranks: Ranks, world_size: int | None, lost: str) -> Finding | None:
    """Return the gap of the ranks without a file, and what is lost with them; None where all are there."""
    missing = ranks.missing(world_size)
    if not missing:
        return None
    if ranks.is_nameless:
        return _lone_part(ranks, len(missing) + 1, lost)
    names, numbers = ranks.described(missing), ranges_of(missing)
    total = len(missing) + len(ranks.files)
    one = len(missing) == 1
    return finding(
        "U110",
        subject=names,
        saw=f"rank{' ' if one else 's '}{numbers} of {total} {'is' if one else 'are'} absent, and with"
        f" {'it' if one else 'them'} {lost}",
        expected=f"{total} files",
        remedy=f"Other nodes wrote what is absent, or it was not copied: copy `{names}` here, or give the"
        " folders of all nodes. No file that is here holds the same: without it the model cannot be rebuilt.",
    )


def _lone_part(ranks: Ranks, total: int, lost: str) -> Finding:
    return finding(
        "U110",
        subject=ranks.before,
        saw=f"it is the part of one of {total} ranks, and lacks {lost}",
        expected=f"files of {total} ranks, which differ in the number of the rank only",
        remedy="If every rank saved one, give them names such as `model_rank_0.pt`, with the right ranks, in"
        " one folder. If only one rank saved, the model cannot be recovered from it; gather it before saving:"
        " get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)).",
    )


def incomplete(ranks: Ranks, gaps: Sequence[Finding]) -> IncompleteCheckpointError:
    """Return the error that tells everything that is missing, the first of it in its sentence."""
    first = gaps[0]
    return IncompleteCheckpointError(
        ranks.folder,
        "lacks files of ranks" if first.code == "U110" else "lacks parts of tensors",
        saw=f"`{first.subject}`: {first.saw}",
        hint=first.remedy,
        gaps=gaps,
    )


def _holes(holes: Sequence[Hole]) -> Iterator[Finding]:
    by_name: dict[str, list[Hole]] = {}
    for hole in holes:
        by_name.setdefault(hole.name, []).append(hole)
    remedy = "Copy the files of all ranks here; if they are all here, take an earlier step."
    for name, own in list(by_name.items())[:_MOST_TENSORS]:
        parts = listed([hole.described for hole in own])
        yield finding("U112", subject=cut(name), saw=f"no file holds {parts}", remedy=remedy)
    if others := list(by_name)[_MOST_TENSORS:]:
        saw = f"no file holds all of {_named(others)}"
        yield finding("U112", subject=f"{len(others)} more tensors", saw=saw, remedy=remedy)


def _named(tensors: Sequence[str]) -> str:
    names = listed([f"`{cut(name)}`" for name in tensors])
    return names if len(tensors) == 1 else f"{len(tensors)} tensors ({names})"
