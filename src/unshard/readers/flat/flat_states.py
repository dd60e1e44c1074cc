"""LOCAL_STATE_DICT of FSDP1: what every rank saved of flat parameters, as tensors whose shapes are open.

    use_orig_params=False   model.layers.0._flat_param             ShardedTensor of one dimension
    use_orig_params=True    the same, and views of the rank's range of it under the parameters' names:
                            model.layers.0.mlp.up_proj.weight      one dimension, empty where the rank
                                                                   holds none of it
    both                    buffers, and parameters that FSDP was told to ignore, whole on every rank

The outermost unit's is called `_flat_param`. A ShardedTensor's length counts no padding to a multiple of
the ranks with use_orig_params=False; with True it does, and parameters begin at multiples of 16 bytes.

Source:
    torch/distributed/fsdp/_state_dict_utils.py (`_local_post_state_dict_hook`), _flat_param.py
    (`FlatParamHandle._init_flat_param_and_metadata`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unshard.checkpoint import Replica, Unshaped
from unshard.errors import UnsafeFileError
from unshard.readers.distributed.rank_states import RankState
from unshard.readers.flat.module_order import without_wrappers
from unshard.readers.flat.ranges import flat_parts, storages_of, unite_ranges
from unshard.readers.flat.slices import FlatSlices
from unshard.readers.flat.units import FlatUnits
from unshard.readers.flat.vectors import Stretch, Vector
from unshard.readers.rendering import cut
from unshard.readers.torch_save.torch_objects import StoredTensor


@dataclass(frozen=True, slots=True)
class FlatState:
    """What the ranks hold flat.

    Attributes:
        unshaped: The parameters, whose shapes only a base tells.
        names: Names in the state dicts that are accounted for; all others are tensors of other kinds.
        storages: A token for every parameter that has a name, equal for those that are one.
        replicas: Ranges that several ranks hold.
    """

    unshaped: Unshaped
    names: frozenset[str]
    storages: Mapping[str, object]
    replicas: tuple[Replica, ...]


def describe_flat(states: Sequence[RankState], subject: Path) -> FlatState | None:
    """Return what the ranks hold flat, or None where they hold nothing so; no tensor is read.

    Args:
        states: What the ranks saved, one state for each, in their order.
        subject: The folder they are in.

    Raises:
        IncompleteCheckpointError: Parts of flat parameters are missing.
        UnsafeFileError: The files contradict one another.
    """
    flats = dict.fromkeys(name for state in states for name in flat_parts(state))
    if not flats:
        return None
    vectors, replicas = unite_ranges(states, subject)
    slices = _slices(_by_part(states, vectors), subject)
    if not slices:
        others = frozenset(name for state in states for name in state.tensors) - flats.keys()
        units = FlatUnits(subject, vectors, others, _modules(states))
        return FlatState(units, frozenset(flats), {}, tuple(replicas))
    storages = {
        name: next((stretch.source.place for stretch in vector.stretches), None) or name
        for name, vector in slices.items()
    }
    return FlatState(FlatSlices(subject, slices), frozenset({*flats, *slices}), storages, tuple(replicas))


def _modules(states: Sequence[RankState]) -> tuple[str, ...]:
    """Return the names of the modules without their wrappers, if all ranks tell the same, or nothing."""
    told = {state.modules for state in states}
    if len(told) > 1:
        return ()
    plain = dict.fromkeys(map(without_wrappers, told.pop()))
    before = f"{states[0].selected}." if states[0].selected else ""
    return tuple(name.removeprefix(before) for name in plain if name.startswith(before))


def _by_part(states: Sequence[RankState], vectors: Mapping[str, Vector]) -> list[RankState]:
    """Return the states in the order of their parts, one of those that hold the same part.

    Which part it is is told by where a range begins, in units of the first one's length, and not by the
    number in the name of the file.
    """
    parts: dict[int, RankState] = {}
    for state in states:
        for name, tensor in flat_parts(state).items():
            for piece in filter(lambda piece: piece.box.volume, tensor.pieces):
                part = piece.box.start[0] // vectors[name].stretches[0].stop
                parts.setdefault(part, state)
                break
    return [state for _, state in sorted(parts.items(), key=lambda item: item[0])]


def _slices(states: Sequence[RankState], subject: Path) -> dict[str, Vector]:
    """Return the parameters that lie in slices under their own names; each a vector.

    A plain tensor is a slice where it is of one dimension on every rank, and a view of the rank's range
    of a flat parameter. Where FSDP copied the ranges to another device no views are left; there, every
    tensor of one dimension is taken for a slice if one of them has other lengths on other ranks. If it
    is none, its length is not what the base says.
    """
    shared = {state.file: storages_of(state) for state in states}
    by_name: dict[str, list[tuple[RankState, StoredTensor]]] = {}
    for state in states:
        for name, tensor in state.tensors.items():
            if isinstance(tensor, StoredTensor):
                by_name.setdefault(name, []).append((state, tensor))
    lengths = {
        name: {tensor.tensor.shape[0] for _, tensor in held}
        for name, held in by_name.items()
        if all(len(tensor.tensor.shape) == 1 for _, tensor in held)
    }
    viewed = {
        name
        for name in lengths
        if any(t.tensor.nbytes and t.storage.key in shared[s.file] for s, t in by_name[name])
    }
    if not viewed and any(len(found) > 1 for found in lengths.values()):
        viewed = {name for name, found in lengths.items() if found != {0}}
    for name in sorted(viewed):
        if len(by_name[name]) < len(states):
            there = {state.file for state, _ in by_name[name]}
            absent = next(state.file for state in states if state.file not in there)
            raise _unlike(name, subject, f"none in {absent}", "one in the file of every rank")
    return {name: _vector(name, held, shared, subject) for name, held in by_name.items() if name in viewed}


def _vector(
    name: str,
    held: Sequence[tuple[RankState, StoredTensor]],
    shared: Mapping[str, Mapping[str, tuple[str, int, int]]],
    subject: Path,
) -> Vector:
    """Return a parameter from its slices, which must follow one another in the flat parameter, too."""
    dtype, stretches, done = held[0][1].tensor.dtype, list[Stretch](), 0
    end: tuple[str, int] | None = None
    for state, stored in held:
        (count,) = stored.tensor.shape
        if count == 0:
            continue
        source = stored.tensor.pieces[0].source
        stretches.append(Stretch(done, done + count, source))
        done += count
        flat = shared[state.file].get(stored.storage.key)
        if stored.tensor.dtype != dtype:
            raise _unlike(name, subject, f"{stored.tensor.dtype} in {state.file}", str(dtype))
        if flat is not None and source.place is not None:
            begin = flat[1] + (source.place.offset - flat[2]) // dtype.itemsize
            if end is not None and end != (flat[0], begin):
                saw = f"elements from {begin:,} of `{cut(flat[0])}` in {state.file}"
                raise _unlike(
                    name, subject, saw, f"from {end[1]:,} of `{cut(end[0])}`, where those before end"
                )
            end = flat[0], begin + count
    return Vector(dtype, tuple(stretches))


def _unlike(name: str, subject: Path, saw: str, expected: str) -> UnsafeFileError:
    return UnsafeFileError(
        subject,
        f"holds slices of `{cut(name)}` that do not belong together",
        saw=saw,
        expected=expected,
        hint="Files of two saves lie together; keep those of one. Their times of change tell: ls -l",
    )
