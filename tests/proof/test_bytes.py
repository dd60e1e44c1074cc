"""Bytes are compared one by one: every difference is found, and none is made up."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import unshard
from raw_tensors import EVERY_DTYPE, awkward_tensors, random_tensor, raw, store
from unshard.dtypes import BFLOAT16, DTYPES, FLOAT16, FLOAT32, DType
from unshard.errors import DamagedFileError
from unshard.progress import Silence
from unshard.proof.bytes import BytesProof, verify_bytes
from unshard.proof.coverage import used_checksums
from unshard.storage.checksums import Checksum
from unshard.storage.files import InputFile
from unshard.tensors import (
    CastTally,
    CastTensor,
    DescribedTensor,
    FileSource,
    Tensor,
    byte_count,
    whole_tensor,
)

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")

Torch = Mapping[str, torch.Tensor]


def prove(
    expected: Mapping[str, Tensor],
    actual: Mapping[str, Tensor],
    checksums: tuple[Checksum, ...] = (),
    *,
    workers: int = 2,
    digests: bool = False,
) -> BytesProof:
    return verify_bytes(
        expected, actual, checksums=checksums, workers=workers, digests=digests, progress=Silence()
    )


def span(tensor: DescribedTensor) -> tuple[InputFile, int, int]:
    """Return the file that holds a tensor, and where its bytes begin and end."""
    (place,) = tensor.places
    return place.file, place.offset, place.offset + byte_count(tensor)


def checksums_of(tensors: Mapping[str, DescribedTensor], truth: Torch) -> tuple[Checksum, ...]:
    """Return what the writer of a checkpoint leaves: the checksum of every tensor's true bytes."""
    return tuple(
        Checksum(*span(tensor), zlib.crc32(raw(truth[name])), f"member `{name}`")
        for name, tensor in tensors.items()
    )


def flipped(tensor: torch.Tensor, *bits: int) -> torch.Tensor:
    """Return a copy of a tensor in which some bits are turned over."""
    changed = bytearray(raw(tensor))
    for bit in bits:
        changed[bit // 8] ^= 1 << bit % 8
    return torch.frombuffer(changed, dtype=tensor.dtype).reshape(tensor.shape)


def cast(
    tensors: Mapping[str, DescribedTensor], dtype: DType, tally: CastTally | None = None
) -> dict[str, Tensor]:
    tally = tally or CastTally()
    return {name: CastTensor(tensor, dtype, tally) for name, tensor in tensors.items()}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("digests", [False, True])
def test_equal_bytes_are_proven_equal(tmp_path: Path, workers: int, digests: bool) -> None:
    truth = awkward_tensors(EVERY_DTYPE)
    expected, actual = store(tmp_path / "source", truth), store(tmp_path / "output", truth)
    proof = prove(expected, actual, checksums_of(expected, truth), workers=workers, digests=digests)
    total = sum(byte_count(tensor) for tensor in expected.values())
    assert not proof.differences
    assert not proof.findings
    assert proof.told == {
        "tensors": len(truth),
        "compared_bytes": total,
        "checked_bytes": total,
        "unchecked_bytes": 0,
    }
    hashed = {name: hashlib.sha256(raw(tensor)).hexdigest() for name, tensor in truth.items()}
    assert proof.digests == (hashed if digests else {})


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
def test_one_flipped_bit_is_found_in_every_dtype(tmp_path: Path, dtype: str) -> None:
    truth = {"a": random_tensor((70, 81), dtype, seed=5), "b": random_tensor((3,), dtype, seed=6)}
    bit = (17 * 81 + 3) * DTYPES[dtype].itemsize * 8
    wrong = truth | {"a": flipped(truth["a"], bit)}
    (difference,) = prove(store(tmp_path / "source", truth), store(tmp_path / "output", wrong)).differences
    assert (difference.name, difference.index, difference.elements) == ("a", (17, 3), 1)
    assert difference.saw != difference.expected


@pytest.mark.parametrize("digests", [False, True])
def test_differences_are_counted_wherever_they_are(tmp_path: Path, digests: bool) -> None:
    truth = {"a": torch.arange(5_000_000, dtype=torch.float32).reshape(5000, 1000)}
    elements = [4_999_999, 3_000_001, 3_000_002, 70_000]
    wrong = {"a": flipped(truth["a"], *(32 * element for element in elements))}
    expected, actual = store(tmp_path / "source", truth), store(tmp_path / "output", wrong)
    (difference,) = prove(expected, actual, workers=3, digests=digests).differences
    assert (difference.index, difference.elements) == ((70, 0), 4)
    assert (difference.saw, difference.expected) == ("70000.0078125 (0x4788b801)", "70000.0 (0x4788b800)")


def test_a_difference_is_told_as_a_finding(tmp_path: Path) -> None:
    expected = store(tmp_path / "source", {"norm": torch.ones(2, 2)})
    actual = store(tmp_path / "output", {"norm": torch.tensor([[1.0, 1.0], [0.5, 2.0]])})
    (found,) = prove(expected, actual).findings
    assert (found.code, found.severity, found.subject) == ("U703", "error", "norm")
    assert found.saw == "0.5 (0x3f000000) at [1, 0]"
    assert found.expected == "1.0 (0x3f800000); 2 elements differ"


@pytest.mark.parametrize(
    ("one", "other"), [(0x80000000, 0), (0x7FC00000, 0x7FC00001)], ids=["signs of zero", "payloads of NaN"]
)
def test_values_that_compare_equal_and_are_not_the_same_bits_differ(
    tmp_path: Path, one: int, other: int
) -> None:
    stored = [
        store(tmp_path / f"{bits:x}", {"a": torch.tensor([bits - (bits >> 31 << 32)], dtype=torch.int32)})
        for bits in (one, other)
    ]
    floats = [{"a": whole_tensor(FileSource.contiguous(*span(t["a"])[:2], (1,), FLOAT32))} for t in stored]
    assert len(prove(floats[0], floats[1]).differences) == 1


@pytest.mark.parametrize("target", [BFLOAT16, FLOAT16], ids=str)
def test_casts_are_done_again_and_compared(tmp_path: Path, target: DType) -> None:
    truth = {"a": torch.randn(1501, 999), "b": torch.randn(()), "c": torch.randn(0, 3)}
    right = {name: tensor.to(getattr(torch, target.name)) for name, tensor in truth.items()}
    source = store(tmp_path / "source", truth)
    tally = CastTally()
    proof = prove(cast(source, target, tally), store(tmp_path / "right", right), checksums_of(source, truth))
    assert (proof.tensors, proof.differences, proof.unchecked_bytes) == (3, (), 0)
    assert proof.checked_bytes == 2 * proof.compared_bytes
    assert (tally.overflowed, tally.underflowed) == (0, 0)


def test_a_cast_that_truncates_is_found(tmp_path: Path) -> None:
    truth = {"a": torch.randn(10_000)}
    cut = (truth["a"].view(torch.int32) >> 16).to(torch.int16).view(torch.bfloat16)
    proof = prove(cast(store(tmp_path / "s", truth), BFLOAT16), store(tmp_path / "o", {"a": cut}))
    assert proof.differences[0].elements == int((cut != truth["a"].to(torch.bfloat16)).sum())


def test_losses_of_a_cast_are_not_counted_a_second_time(tmp_path: Path) -> None:
    truth = {"a": torch.tensor([1e30, 1e-30])}
    tally = CastTally()
    source = cast(store(tmp_path / "source", truth), FLOAT16, tally)
    prove(source, store(tmp_path / "output", {"a": truth["a"].to(torch.float16)}))
    assert (tally.overflowed, tally.underflowed) == (0, 0)


def test_tensors_that_cannot_be_compared_are_differences(tmp_path: Path) -> None:
    expected = store(tmp_path / "source", {n: torch.ones(2, 3) for n in ("fine", "gone", "shape", "dtype")})
    actual = store(
        tmp_path / "output",
        {"fine": torch.ones(2, 3), "shape": torch.ones(3, 2), "dtype": torch.ones(2, 3).double()},
    )
    proof = prove(expected, actual)
    assert {d.name: (d.saw, d.expected) for d in proof.differences} == {
        "gone": ("no such tensor", "float32 of shape [2, 3]"),
        "shape": ("float32 of shape [3, 2]", "float32 of shape [2, 3]"),
        "dtype": ("float64 of shape [2, 3]", "float32 of shape [2, 3]"),
    }
    assert proof.tensors == 1


def test_digests_need_nothing_to_compare_with(tmp_path: Path) -> None:
    truth = awkward_tensors(["bfloat16"])
    proof = prove({}, store(tmp_path / "output", truth), digests=True)
    assert (proof.tensors, proof.compared_bytes) == (0, 0)
    assert proof.digests == {name: hashlib.sha256(raw(t)).hexdigest() for name, t in truth.items()}


def test_damage_in_the_source_is_found_by_its_checksums_and_named(tmp_path: Path) -> None:
    truth = {f"{i}": torch.full((1000, 1000), float(i)) for i in range(6)}
    wrong = {name: flipped(t, 8_000_000 * int(name)) if int(name) < 4 else t for name, t in truth.items()}
    source = store(tmp_path / "model.pt", wrong)
    actual = store(tmp_path / "output", wrong)  # a faithful copy of what was damaged before
    with pytest.raises(DamagedFileError, match="bytes that disagree with their checksums") as caught:
        prove(source, actual, checksums_of(source, truth))
    _, start, stop = span(source["0"])
    assert f"member `0` (bytes {start}..{stop}), member `1` " in caught.value.problem
    assert caught.value.problem.endswith("and 1 more")
    assert caught.value.saw == f"CRC-32 {zlib.crc32(raw(wrong['0'])):08x}"
    assert caught.value.expected == f"{zlib.crc32(raw(truth['0'])):08x}"


@pytest.mark.parametrize("how", ["cast", "part of a storage", "turned", "not used", "shared"])
def test_checksums_are_checked_however_the_bytes_are_used(tmp_path: Path, how: str) -> None:
    truth = {"a": torch.randn(1000, 900), "b": torch.randn(50)}
    source = store(tmp_path / "source", truth)
    file, offset, _ = span(source["a"])
    expected: dict[str, Tensor] = dict(source)
    if how == "cast":
        expected = cast(source, BFLOAT16)
    elif how == "part of a storage":
        expected["a"] = whole_tensor(FileSource.contiguous(file, offset + 40, (899, 1000), FLOAT32))
    elif how == "turned":
        expected["a"] = whole_tensor(FileSource(file, offset, (900, 1000), (1, 900), FLOAT32))
    elif how == "not used":
        del expected["a"]
    else:
        expected["c"] = source["a"]
    output = {
        name: torch.from_numpy(tensor_values(tensor)).to(getattr(torch, tensor.dtype.name))
        for name, tensor in expected.items()
    }
    actual = store(tmp_path / "output", output)
    checksums = checksums_of(source, truth)
    assert prove(expected, actual, checksums).checked_bytes == 4 * (900_000 + 50)
    bad = (replace(checksums[0], crc32=checksums[0].crc32 ^ 1), checksums[1])
    with pytest.raises(DamagedFileError, match="member `a`"):
        prove(expected, actual, bad)


def tensor_values(tensor: Tensor) -> np.ndarray:
    """Return the values a tensor is made from, before its cast."""
    source = tensor.source if isinstance(tensor, CastTensor) else tensor
    assert isinstance(source, DescribedTensor)
    return source.numpy()


def test_bytes_without_checksums_are_told_apart(tmp_path: Path) -> None:
    truth = {"a": torch.ones(100), "b": torch.ones(7)}
    source = store(tmp_path / "source", truth)
    checksums = checksums_of(source, truth)[1:]
    proof = prove(source, store(tmp_path / "output", truth), checksums)
    assert (proof.checked_bytes, proof.unchecked_bytes) == (28, 400)


def test_only_the_checksums_of_what_is_used_are_chosen(tmp_path: Path) -> None:
    truth = {name: torch.ones(10) for name in "abcd"} | {"empty": torch.ones(0)}
    source = store(tmp_path / "source", truth)
    other = store(tmp_path / "other", truth)
    checksums = checksums_of(source, truth)
    file, offset, _ = span(source["c"])
    inside = whole_tensor(FileSource.contiguous(file, offset + 8, (3,), FLOAT32))
    between = whole_tensor(FileSource.contiguous(file, span(source["d"])[1] - 5, (1,), FLOAT32))
    used = used_checksums(checksums, [source["b"], inside, between, other["a"], source["empty"]])
    assert [c.subject for c in used] == ["member `b`", "member `c`"]


def test_files_that_change_meanwhile_are_refused(tmp_path: Path) -> None:
    class Touching(Silence):
        def advance(self, count: int) -> None:
            os.utime(tmp_path / "source")

    truth = {"a": torch.ones(100)}
    expected, actual = store(tmp_path / "source", truth), store(tmp_path / "output", truth)
    with pytest.raises(DamagedFileError, match="changed while it was being read"):
        verify_bytes(expected, actual, checksums=(), workers=2, digests=False, progress=Touching())


@pytest.mark.parametrize("digests", [False, True])
def test_every_byte_is_read_once(tmp_path: Path, digests: bool) -> None:
    class Sum(Silence):
        total = done = 0

        def start(self, stage: str, total_bytes: int) -> None:
            self.total += total_bytes

        def advance(self, count: int) -> None:
            self.done += count

    truth = {"a": torch.ones(3_000_000), "b": torch.ones(7)}
    source = store(tmp_path / "source", truth)
    progress = Sum()
    verify_bytes(
        {"a": source["a"]},
        store(tmp_path / "output", truth),
        checksums=checksums_of(source, truth),
        workers=1,
        digests=digests,
        progress=progress,
    )
    # The checksum of `a` is taken while `a` is compared; that of `b` is not, and needs a pass.
    assert progress.done == progress.total == 12_000_000 + 28 + (28 if digests else 0)


def test_the_proof_does_not_know_the_engine() -> None:
    folder = Path(unshard.__file__).parent / "proof"
    for module in ("bytes.py", "passes.py", "coverage.py"):
        text = (folder / module).read_text()
        assert "engines.local" not in text
        assert "written_file" not in text
        assert "writers" not in text
