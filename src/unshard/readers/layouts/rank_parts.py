"""A checkpoint from what ranks saved: united, or refused with everything that is missing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from unshard.checkpoint import Checkpoint, Extra, Layout, Traces
from unshard.errors import IncompleteCheckpointError, UnsafeFileError, UnsupportedLayoutError
from unshard.findings import Finding, finding
from unshard.readers.distributed.gaps import find_gaps, find_missing, incomplete
from unshard.readers.distributed.parts import DistributedTensor
from unshard.readers.distributed.rank_names import Ranks, ranges_of
from unshard.readers.distributed.rank_states import RankState
from unshard.readers.distributed.uniting import United, unite
from unshard.readers.flat.flat_states import FlatState, describe_flat
from unshard.readers.rendering import cut, listed
from unshard.readers.torch_save.torch_state import (
    foreign_classes,
    told_of_checksums,
    told_of_classes,
    told_of_training,
)
from unshard.sizes import counted
from unshard.storage.checksums import Checksum, Checksums

# What BatchNorm counts on every rank for itself; a gathered state dict has rank 0's.
_COUNTED_BY_EACH = re.compile(r"(.*\.)?(running_mean|running_var|num_batches_tracked)")


def assemble(ranks: Ranks, states: Sequence[RankState], path: Path, layout: Layout) -> Checkpoint:
    """Return the checkpoint that the states of ranks, in their order, are together.

    Raises:
        IncompleteCheckpointError: Parts of it are in no file.
        UnsafeFileError: The files contradict one another.
        UnsupportedLayoutError: Nothing tells how their plain tensors belong together.
    """
    world_size = max((s.world_size or 0 for s in states), default=0) or None
    flat = _describe_flat(ranks, states, world_size)
    others = states if flat is None else [_without(state, flat) for state in states]
    united = unite(others, ranks.folder)
    gaps = find_gaps(ranks, world_size, united.holes)
    if not gaps and ranks.missing(world_size):
        gaps = _unproven(ranks, world_size, states)
    if gaps:
        raise incomplete(ranks, gaps)
    _require_equal(others, united, ranks)
    return Checkpoint(
        path=path,
        root=ranks.folder,
        layout=layout if flat is None else _of_flat_parameters(layout, ranks),
        tensors=united.tensors,
        container=states[0].container,
        selected=states[0].selected,
        storages=united.storages if flat is None else {**flat.storages, **united.storages},
        files=tuple(state.saved.file for state in states),
        checksums=_checksums(states, united, flat),
        replicas=united.replicas if flat is None else (*united.replicas, *flat.replicas),
        unshaped=None if flat is None else flat.unshaped,
        extras=tuple(_extras(states)),
        classes=foreign_classes(_classes(states)),
        traces=Traces.of_all(state.saved.traces for state in states),
        findings=tuple(_findings(ranks, states, united, world_size)),
    )


def _of_flat_parameters(layout: Layout, ranks: Ranks) -> Layout:
    title = f"flat parameters of FSDP1, one file per rank: {counted(len(ranks.files), 'file')}"
    return replace(layout, name="flat-parameters", title=title)


def _describe_flat(ranks: Ranks, states: Sequence[RankState], world_size: int | None) -> FlatState | None:
    """Return the flat parameters; where they are incomplete, the ranks that are missing are told first."""
    try:
        return describe_flat(states, ranks.folder)
    except IncompleteCheckpointError as error:
        missing = find_missing(ranks, world_size, error.saw or "parts of flat parameters")
        if missing is None:
            raise
        raise incomplete(ranks, [missing, *error.gaps]) from None


def _without(state: RankState, flat: FlatState) -> RankState:
    return replace(state, tensors={n: t for n, t in state.tensors.items() if n not in flat.names})


def _unproven(ranks: Ranks, world_size: int | None, states: Sequence[RankState]) -> list[Finding]:
    """Return the gap of ranks that are missing where the others may not hold everything, though it seems so.

    They do where all of them have parts of the same tensors, as replicas have; not where each may have
    tensors of its own, or where nothing tells that a tensor is whole.
    """
    names = states[0].tensors.keys()
    if any(state.tensors.keys() != names for state in states):
        lost = "tensors of their own, since no two files have the same ones"
    elif not any(state.distributed for state in states):
        lost = "what cannot be told, since no tensor says whether it is whole"
    else:
        return []
    missing = find_missing(ranks, world_size, lost)
    return [] if missing is None else [missing]


def _require_equal(states: Sequence[RankState], united: United, ranks: Ranks) -> None:
    """Raise where copies of one part differ, and are none that every rank keeps for itself."""
    plain = {n for s in states for n, t in s.tensors.items() if not isinstance(t, DistributedTensor)}
    if mixed := [n for n in united.differing if n not in plain]:
        raise UnsafeFileError(
            ranks.folder,
            f"holds {counted(len(mixed), 'tensor')} of which parts lie in several files, and differ there",
            saw=listed([f"`{cut(n)}` in {listed(united.differing[n])}" for n in mixed]),
            expected="equal copies, as replicas have",
            hint="Some files are of another save; then copy all of them again. If replicas drifted apart in"
            " training, keep the files of one of them only.",
        )
    wrong = [n for n in united.differing if not _COUNTED_BY_EACH.fullmatch(n)]
    if wrong:
        raise UnsupportedLayoutError(
            ranks.folder,
            f"holds {len(wrong)} plain tensors that differ from rank to rank",
            saw=listed([f"`{cut(n)}` in {listed(united.differing[n])}" for n in wrong]),
            expected="equal ones, or DTensors or ShardedTensors, which say how they belong together",
            hint="They may be parts by tensor or expert parallelism, of which the files do not tell the rule."
            " Gather them where they were made, and save a full state dict.",
        )


def _checksums(states: Sequence[RankState], united: United, flat: FlatState | None) -> Checksums:
    """Return the checksums of all storages that tensors are read from; there may be millions."""
    users = dict(united.users)
    for state in states if flat is not None else ():
        for name, stored in state.stored(flat.names if flat is not None else ()):
            users.setdefault((state.file, stored.storage.key), []).append(name)
    by_file = {state.file: state.saved for state in states}

    def located() -> Iterator[Checksum]:
        for (file, key), names in users.items():
            saved = by_file[file]
            storage = saved.storages[key]
            if storage.crc32 is not None and storage.stop > storage.start:
                subject = ", ".join(dict.fromkeys(names))
                yield Checksum(saved.file, storage.start, storage.stop, storage.crc32, subject)

    storages = (by_file[file].storages[key] for file, key in users)
    nbytes = sum(storage.stop - storage.start for storage in storages if storage.crc32 is not None)
    return Checksums(nbytes, located)


def _extras(states: Sequence[RankState]) -> Iterator[Extra]:
    """Yield what else is in the files, that of all ranks under one name together."""
    found: dict[tuple[str, str], Extra] = {}
    for extra in (extra for state in states for extra in state.extras):
        known = found.get((extra.name, extra.kind))
        found[extra.name, extra.kind] = (
            extra if known is None else replace(known, size=known.size + extra.size)
        )
    yield from found.values()


def _classes(states: Sequence[RankState]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for state in states for name in state.saved.classes))


def _findings(
    ranks: Ranks, states: Sequence[RankState], united: United, world_size: int | None
) -> Iterator[Finding]:
    """Yield what a person should know of the files besides their tensors."""
    subject = ranks.described(list(ranks.files))
    yield from (replace(told, subject=subject) for told in states[0].told)
    yield from told_of_training(list(_extras(states)), subject)
    if unchecked := [state.saved for state in states if not state.saved.has_checksums]:
        yield told_of_checksums(unchecked[0], subject)
    yield from told_of_classes(_classes(states), subject)
    if united.replicas:
        names = list(dict.fromkeys(replica.name for replica in united.replicas))
        saw = f"{len(united.replicas)} parts of {len(names)} tensors, such as `{cut(names[0])}`"
        yield finding("U116", subject=subject, saw=saw, remedy="Compare them: --compare-replicas")
    if missing := ranks.missing(world_size):
        saw = f"without ranks {ranges_of(missing)}, whose parts the others hold, too"
        yield finding("U116", subject=subject, saw=saw)
    yield from _differing(united.differing, subject)


def _differing(differing: Mapping[str, Sequence[str]], subject: str) -> Iterator[Finding]:
    if differing:
        shown = [f"`{cut(name)}` in {listed(list(files))}" for name, files in differing.items()]
        yield finding(
            "U109",
            subject=subject,
            saw=f"{len(differing)} tensors: {listed(shown)}",
            expected="equal copies",
            remedy="Ranks drifted apart, or a file is of another save: compare the times of change, ls -l",
        )
