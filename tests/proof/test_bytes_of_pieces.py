"""Tensors in many pieces are proven as others are, and their checksums are taken on the way."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raw_tensors import random_tensor, raw, store, store_in_pieces
from unshard.dtypes import BFLOAT16
from unshard.errors import DamagedFileError
from unshard.progress import Silence
from unshard.proof.bytes import BytesProof, verify_bytes
from unshard.proof.coverage import used_checksums
from unshard.storage.checksums import Checksum
from unshard.tensors import Box, CastTensor, DescribedTensor, Piece, RangeSource, Tensor

SHAPES = {
    "large": (1500, 1733),
    "deep": (6, 500, 300),
    "small": (5, 3),
    "flat": (1001,),
    "one": (),
    "no": (0, 4),
}


class Sum(Silence):
    def __init__(self) -> None:
        self.total = self.done = 0

    def start(self, stage: str, total_bytes: int) -> None:
        self.total += total_bytes

    def advance(self, count: int) -> None:
        self.done += count


def truth() -> dict[str, torch.Tensor]:
    return {name: random_tensor(shape, "float32", seed=i) for i, (name, shape) in enumerate(SHAPES.items())}


def checksums_of(tensors: Mapping[str, DescribedTensor]) -> Iterator[Checksum]:
    """Yield the checksum of every piece, as a writer leaves it for the storage of every rank."""
    for name, tensor in tensors.items():
        for number, piece in enumerate(tensor.pieces):
            place, count = piece.source.place, piece.box.volume
            assert place is not None
            stop = place.offset + count * tensor.dtype.itemsize
            crc32 = zlib.crc32(place.file.read(place.offset, stop))
            yield Checksum(place.file, place.offset, stop, crc32, f"`{name}` of rank {number}")


def prove(
    expected: Mapping[str, Tensor],
    actual: Mapping[str, Tensor],
    checksums: tuple[Checksum, ...],
    *,
    digests: bool = False,
) -> tuple[BytesProof, int]:
    """Return the proof, and how many bytes were read beside those of the source that are compared."""
    progress = Sum()
    proof = verify_bytes(expected, actual, checksums=checksums, workers=3, digests=digests, progress=progress)
    assert progress.done == progress.total
    return proof, progress.done


@pytest.mark.parametrize("digests", [False, True])
@pytest.mark.parametrize("parts", [(5,), (1, 3), (2, 2), (1, 1, 2)], ids=str)
@pytest.mark.parametrize("target", ["as they are", "cast"])
def test_pieces_are_compared_and_their_checksums_taken(
    tmp_path: Path, parts: tuple[int, ...], digests: bool, target: str
) -> None:
    tensors = truth()
    stored = store_in_pieces(tmp_path / "ranks", tensors, parts)
    checksums = tuple(checksums_of(stored))
    expected: dict[str, Tensor] = dict(stored)
    if target == "cast":
        tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
        expected = {name: CastTensor(tensor, BFLOAT16) for name, tensor in stored.items()}
    actual = store(tmp_path / "output", tensors)
    proof, done = prove(expected, actual, checksums, digests=digests)
    total = sum(tensor.nbytes for tensor in stored.values())
    assert (proof.differences, proof.checked_bytes, proof.unchecked_bytes) == ((), total, 0)
    assert proof.compared_bytes == sum(tensor.nbytes for tensor in actual.values())
    # Rows are checked while they are compared; what interleaves in every row is read again for it.
    again = {(5,): 0, (1, 3): 1500 * 1733 + 9000 * 100 + 15, (2, 2): 1500 * 1733 + 9000 * 100 + 15}
    if parts in again:
        assert done == proof.compared_bytes + 4 * again[parts]


@pytest.mark.parametrize("parts", [(5,), (1, 3), (2, 2)], ids=str)
def test_every_checksum_is_held_against_its_own_piece(tmp_path: Path, parts: tuple[int, ...]) -> None:
    tensors = truth()
    stored = store_in_pieces(tmp_path / "ranks", tensors, parts)
    actual = store(tmp_path / "output", tensors)
    checksums = tuple(c for c in checksums_of(stored) if c.stop > c.start)
    for number, checksum in enumerate(checksums):
        wrong = (*checksums[:number], replace(checksum, crc32=checksum.crc32 ^ 1), *checksums[number + 1 :])
        with pytest.raises(DamagedFileError) as caught:
            prove(stored, actual, wrong)
        assert caught.value.problem.endswith(
            f": {checksum.subject} (bytes {checksum.start}..{checksum.stop})"
        )


@pytest.mark.parametrize("parts", [(5,), (1, 3)], ids=str)
def test_a_bit_that_differs_is_found_where_it_is(tmp_path: Path, parts: tuple[int, ...]) -> None:
    tensors = truth()
    stored = store_in_pieces(tmp_path / "ranks", tensors, parts)
    changed = tensors["large"].clone()
    changed.view(torch.int32)[1200, 1500] ^= 1 << 30
    proof, _ = prove(stored, store(tmp_path / "output", tensors | {"large": changed}), ())
    assert [(d.name, d.index, d.elements) for d in proof.differences] == [("large", (1200, 1500), 1)]


def test_one_storage_of_several_tensors_is_read_once(tmp_path: Path) -> None:
    """As the flat parameter of a rank: its checksum covers ranges of tensors, and padding behind them."""
    flat = torch.arange(1000, dtype=torch.float32)
    (whole,) = store(tmp_path / "rank", {"flat": flat}).values()
    checksums = tuple(checksums_of({"flat": whole}))

    def part(start: int, shape: tuple[int, ...]) -> DescribedTensor:
        box = Box.whole(shape)
        source = RangeSource(whole.pieces[0].source, start, start + box.volume)
        return DescribedTensor(shape, whole.dtype, (Piece(box, source),))

    expected = {
        "a": part(0, (10, 30)),
        "b": part(300, (40, 10)),
        "tied": part(300, (400,)),
        "c": part(700, (294,)),
    }
    output = {
        "a": flat[:300].reshape(10, 30),
        "b": flat[300:700].reshape(40, 10),
        "tied": flat[300:700],
        "c": flat[700:994],
    }
    proof, done = prove(expected, store(tmp_path / "output", output), checksums)
    assert (proof.differences, proof.checked_bytes, proof.unchecked_bytes) == ((), 4000, 0)
    assert done == proof.compared_bytes + 4 * 6
    bad = (replace(checksums[0], crc32=checksums[0].crc32 ^ 1),)
    with pytest.raises(DamagedFileError, match="`flat` of rank 0"):
        prove(expected, store(tmp_path / "output", output), bad)


def test_damage_in_bytes_that_no_tensor_takes_is_found(tmp_path: Path) -> None:
    flat = torch.ones(1000)
    flat[-1] = 2  # and the writer saw a 1
    (whole,) = store(tmp_path / "rank", {"flat": flat}).values()
    (seen,) = checksums_of({"flat": whole})
    checksum = replace(seen, crc32=zlib.crc32(raw(torch.ones(1000))))
    source = RangeSource(whole.pieces[0].source, 0, 10)
    expected = {"a": DescribedTensor((10,), whole.dtype, (Piece(Box((0,), (10,)), source),))}
    with pytest.raises(DamagedFileError, match="`flat` of rank 0"):
        prove(expected, store(tmp_path / "output", {"a": torch.ones(10)}), (checksum,))


def test_the_checksums_of_every_piece_are_chosen(tmp_path: Path) -> None:
    stored = store_in_pieces(tmp_path / "ranks", truth(), (1, 2))
    checksums = tuple(checksums_of(stored))
    used = used_checksums(checksums, [stored["large"], stored["small"]])
    assert [c.subject for c in used] == [
        f"`{name}` of rank {rank}" for name in ("large", "small") for rank in (0, 1)
    ]
