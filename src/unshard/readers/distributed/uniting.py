"""Tensors from the parts that all ranks hold: each covered exactly once, or everything that is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unshard.checkpoint import Replica
from unshard.dtypes import DType
from unshard.errors import UnsafeFileError
from unshard.readers.distributed.copies_of_parts import begin_equally, have_equal_checksums
from unshard.readers.distributed.parts import DistributedTensor, LocalPiece
from unshard.readers.distributed.rank_states import RankState, RankTensor
from unshard.readers.rendering import cut, listed
from unshard.tensors import (
    Box,
    Coverage,
    DescribedTensor,
    Piece,
    check_coverage,
    described_box,
)

_HINT = "Files of two saves lie together; keep those of one. Their times of change tell which they are: ls -l"


@dataclass(frozen=True, slots=True)
class Hole:
    """A part of a tensor that no file holds."""

    name: str
    shape: tuple[int, ...]
    box: Box

    @property
    def described(self) -> str:
        """The part in words."""
        return described_box(self.shape, self.box)


@dataclass(frozen=True, slots=True)
class United:
    """What the files of ranks hold together.

    Attributes:
        tensors: Every tensor by name; those with holes are among them.
        storages: For every tensor, what it shares with those that are views of the same storages.
        replicas: Parts that lie in several files.
        holes: Parts that lie in none.
        differing: Where copies of a part differ, by the name of the tensor: the files that hold them.
        users: By file and storage, the tensors that are read from there.
    """

    tensors: dict[str, DescribedTensor]
    storages: dict[str, object]
    replicas: list[Replica]
    holes: list[Hole]
    differing: dict[str, list[str]]
    users: dict[tuple[str, str], list[str]]


@dataclass(frozen=True, slots=True)
class _Held:
    """One tensor, and what files hold of it, in the order of the ranks."""

    name: str
    files: list[str] = field(default_factory=list)
    pieces: list[LocalPiece] = field(default_factory=list)


def unite(states: Sequence[RankState], subject: Path) -> United:
    """Return the tensors of which the ranks hold parts; no tensor is read.

    Raises:
        UnsafeFileError: The files contradict one another.
    """
    united = United({}, {}, [], [], {}, {})
    first: dict[str, RankTensor] = {}
    held: dict[str, _Held] = {}
    wrong: list[str] = []
    for state in states:
        for name, tensor in state.tensors.items():
            known = first.setdefault(name, tensor)
            wrong += _differences(name, known, tensor, state.file)
    if wrong:
        raise _contradiction(subject, wrong)
    ways = _ways(states)
    for state in states:
        for name, tensor in state.tensors.items():
            one = held.setdefault(name, _Held(name))
            pieces = _pieces(tensor, ways.get(name, 0))
            if pieces is None:
                wrong.append(
                    f"`{cut(name)}` has a size in {state.file} that the other ranks' leave no room for"
                )
                continue
            one.pieces.extend(pieces)
            one.files.extend([state.file] * len(pieces))
    for name, one in held.items():
        wrong += _put_together(one, first[name], united)
    if wrong:
        raise _contradiction(subject, wrong)
    return united


def _ways(states: Sequence[RankState]) -> dict[str, int]:
    """Return, for tensors whose placements can be read in two ways, the one in which every rank fits.

    Where the ranks that are there fit in both, it is the first; ranks that are missing will be told.
    """
    impossible: dict[str, set[int]] = {}
    for state in states:
        for name, tensor in state.distributed.items():
            if tensor.readings:
                wrong = (way for way, pieces in enumerate(tensor.readings) if pieces is None)
                impossible.setdefault(name, set()).update(wrong)
    return {name: int(0 in wrong) for name, wrong in impossible.items()}


def _pieces(tensor: RankTensor, way: int) -> Sequence[LocalPiece] | None:
    """Return what a rank holds of a tensor, or None where it does not fit if read in that way."""
    if isinstance(tensor, DistributedTensor):
        return tensor.readings[way] if tensor.readings else tensor.pieces
    return [LocalPiece(Box.whole(tensor.tensor.shape), tensor)]


def _differences(name: str, known: RankTensor, tensor: RankTensor, file: str) -> Iterator[str]:
    """Yield what the file of one rank says of a tensor that the first file with it does not."""
    for word, seen, expected in (
        ("shape", list(_shape(tensor)), list(_shape(known))),
        ("dtype", _dtype(tensor).name, _dtype(known).name),
        ("kind", _kind(tensor), _kind(known)),
    ):
        if seen != expected:
            yield f"`{cut(name)}` has {word} {seen} in {file}, and {expected} in those before"
            return
    one, other = _everything(known), _everything(tensor)
    if one is not other and one != other:  # those of all ranks are one object, of a thousand boxes
        yield f"`{cut(name)}` is cut otherwise in {file} than in those before"


def _everything(tensor: RankTensor) -> frozenset[Box]:
    return tensor.everything if isinstance(tensor, DistributedTensor) else frozenset()


def _shape(tensor: RankTensor) -> tuple[int, ...]:
    return tensor.shape if isinstance(tensor, DistributedTensor) else tensor.tensor.shape


def _dtype(tensor: RankTensor) -> DType:
    return tensor.dtype if isinstance(tensor, DistributedTensor) else tensor.tensor.dtype


def _kind(tensor: RankTensor) -> str:
    return tensor.kind if isinstance(tensor, DistributedTensor) else "plain tensor"


def _put_together(held: _Held, first: RankTensor, united: United) -> list[str]:
    """Add one tensor; return what is wrong with it."""
    name, shape = held.name, _shape(first)
    coverage = check_coverage(shape, [piece.box for piece in held.pieces])
    if wrong := _wrong(held, coverage):
        return [wrong]
    kept = [held.pieces[number] for number in coverage.kept]
    sources = [piece.stored.tensor.pieces[0].source for piece in kept]
    united.tensors[name] = DescribedTensor(
        shape,
        _dtype(first),
        tuple(Piece(piece.box, source) for piece, source in zip(kept, sources, strict=True)),
    )
    places = [(held.files[number], held.pieces[number].stored.storage.key) for number in coverage.kept]
    for place in places:
        united.users.setdefault(place, []).append(name)
    united.storages[name] = places[0] if places else name
    united.holes.extend(Hole(name, shape, box) for box in coverage.holes)
    for same in coverage.replicas:
        _add_replicas(held, same, united, is_plain=not isinstance(first, DistributedTensor))
    return []


def _add_replicas(held: _Held, same: Sequence[int], united: United, *, is_plain: bool) -> None:
    """Add the copies of a part; those that are known to differ from the first are told.

    Nothing says of a plain tensor that it is the same on every rank, so that one without a usable checksum
    is looked at.
    """
    original = held.pieces[same[0]]
    for number in same[1:]:
        copy = held.pieces[number]
        equal = have_equal_checksums(original.stored, copy.stored)
        if equal is None and is_plain:
            equal = begin_equally(original.stored, copy.stored)
        if equal is False:
            united.differing.setdefault(held.name, [held.files[same[0]]]).append(held.files[number])
        else:
            kept, other = (one.stored.tensor.pieces[0].source for one in (original, copy))
            united.replicas.append(Replica(held.name, original.box, kept, other))


def _wrong(held: _Held, coverage: Coverage) -> str | None:
    """Return how the parts of a tensor contradict each other, or None where they do not."""
    if coverage.overlaps:
        overlap = coverage.overlaps[0]
        files = listed([held.files[number] for number in overlap.among])
        return f"{described_box(coverage.shape, overlap.box)} of `{cut(held.name)}` are in {files}"
    if coverage.outside:
        number = coverage.outside[0]
        box = held.pieces[number].box
        return f"`{cut(held.name)}` reaches to {list(box.stop)} in {held.files[number]}"
    if coverage.irregular:
        return f"`{cut(held.name)}` is cut so that nobody could have saved it"
    return None


def _contradiction(subject: Path, wrong: Sequence[str]) -> UnsafeFileError:
    return UnsafeFileError(
        subject,
        "holds files of ranks that contradict one another",
        saw=listed(list(wrong)),
        expected="every part of a tensor in one place",
        hint=_HINT,
    )
