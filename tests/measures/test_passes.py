"""Measurements, held to what torch computes in float64 from whole tensors."""

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import unshard
from limits import MIB, run_limited
from unshard.dtypes import BFLOAT16
from unshard.measures import Delta, Measurement, Statistics, measure
from unshard.measures.buffers import BLOCK
from unshard.progress import Silence
from unshard.tensors import CastTensor, DescribedTensor, Tensor

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
EIGHT_BITS = [torch.float8_e4m3fn, torch.float8_e5m2]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32]
# One number, a block less one, a block, one more, and several jobs of the smallest dtypes.
COUNTS = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 17]


def described(folder: Path, **tensors: torch.Tensor) -> Mapping[str, DescribedTensor]:
    path = folder / f"{len(list(folder.iterdir()))}.safetensors"
    save_file(tensors, path)
    return unshard.open(path).tensors


def measured(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], workers: int = 2
) -> dict[str, Measurement]:
    return measure(ours, against=theirs, workers=workers, progress=Silence())


def statistics_of(folder: Path, tensor: torch.Tensor) -> Statistics:
    return measured(described(folder, x=tensor), {})["x"].statistics


def delta_of(folder: Path, ours: torch.Tensor, theirs: torch.Tensor) -> Delta:
    delta = measured(described(folder, x=ours), described(folder, x=theirs))["x"].delta
    assert delta is not None
    return delta


def some(count: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return (torch.randn(count, generator=generator, dtype=torch.float64) * 0.05 + 0.01).to(dtype)
    return torch.randint(0, 100, (count,), generator=generator).to(dtype)


def require_true(told: Statistics, tensor: torch.Tensor) -> None:
    """Hold statistics to torch's, in float64."""
    truth = tensor.double().flatten()
    finite = truth[truth.isfinite()]
    exponents = torch.frexp(finite[finite != 0]).exponent - 1
    values, counts = exponents.unique(return_counts=True)
    assert told.count == truth.numel()
    assert (told.nans, told.infinities) == (int(truth.isnan().sum()), int(truth.isinf().sum()))
    assert told.zeros == int((truth == 0).sum())
    assert told.magnitudes == tuple(zip(values.tolist(), counts.tolist(), strict=True))
    if finite.numel():
        assert (told.minimum, told.maximum) == (finite.min().item(), finite.max().item())
        assert told.mean == pytest.approx(finite.mean().item(), rel=0, abs=1e-13 * finite.abs().mean().item())
        # torch's own `std` adds one by one, and is off by more than this in millions of numbers.
        deviation = (finite - finite.mean()).square().mean().sqrt().item()
        assert told.deviation == pytest.approx(deviation, rel=1e-12)
        assert told.norm == pytest.approx(finite.norm().item(), rel=1e-12)
    else:
        assert (told.minimum, told.maximum, told.mean, told.deviation, told.norm) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtype", [*FLOATS, *EIGHT_BITS, *INTEGERS], ids=str)
def test_statistics_are_those_of_torch(tmp_path: Path, dtype: torch.dtype, count: int) -> None:
    tensor = some(count, dtype)
    require_true(statistics_of(tmp_path, tensor), tensor)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float8_e5m2], ids=str)
def test_broken_numbers_are_counted_and_left_out(tmp_path: Path, dtype: torch.dtype) -> None:
    smallest = torch.finfo(dtype).smallest_normal
    tensor = some(BLOCK + 100, torch.float64)
    tensor[5:12] = torch.tensor(
        [math.nan, math.inf, -math.inf, 0.0, -0.0, smallest / 2, -smallest / 4], dtype=torch.float64
    )
    tensor[BLOCK + 3] = -math.nan
    told = statistics_of(tmp_path, tensor.to(dtype))
    require_true(told, tensor.to(dtype))
    held = tensor.to(dtype).double()
    assert told.subnormals == int(((held != 0) & (held.abs() < smallest)).sum()) >= 2


def test_bool_and_complex_numbers_have_statistics(tmp_path: Path) -> None:
    assert statistics_of(tmp_path, torch.tensor([True, False, True, True])).mean == 0.75
    pair = torch.complex(some(1000, torch.float32), some(1000, torch.float32, 1))
    require_true(statistics_of(tmp_path, pair), torch.view_as_real(pair))


def test_a_scalar_and_a_constant_are_measured(tmp_path: Path) -> None:
    scalar, constant = (
        statistics_of(tmp_path, torch.tensor(0.1)),
        statistics_of(tmp_path, torch.full((BLOCK + 1,), 0.1)),
    )
    for told in (scalar, constant):
        assert told.is_constant
        assert told.mean == pytest.approx(torch.tensor(0.1).item(), rel=1e-15)
        assert told.deviation < 1e-15


def test_a_large_mean_does_not_spoil_the_deviation(tmp_path: Path) -> None:
    tensor = some(3 * BLOCK, torch.float64) + 1e6
    expected = tensor.std(correction=0).item()
    assert statistics_of(tmp_path, tensor).deviation == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_largest_numbers_do_not_overflow(tmp_path: Path, dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    told = measured(
        described(tmp_path, x=torch.tensor([most, most], dtype=dtype)),
        described(tmp_path, x=torch.tensor([-most, most], dtype=dtype)),
    )
    delta = told["x"].delta
    assert delta is not None
    assert all(
        map(math.isfinite, (delta.dot, delta.norm, delta.distance, delta.largest, told["x"].statistics.mean))
    )
    assert (delta.changed, told["x"].statistics.maximum) == (1, torch.tensor(most, dtype=dtype).item())


def test_digests_tell_bytes_apart_and_know_the_same_ones_in_another_place(tmp_path: Path) -> None:
    tensor = some(5 * BLOCK, torch.bfloat16)
    held = described(
        tmp_path,
        same=tensor.clone(),
        shaped=tensor.clone().view(5, -1),
        turned=tensor.flip(0),
        negated=-tensor,
        changed=torch.cat([tensor[:-1], tensor[-1:] * 2]),
    )
    found = measured(held, {})
    digests = {name: each.statistics.digest for name, each in found.items()}
    assert digests["same"] == digests["shaped"]
    assert len(set(digests.values())) == 4


def test_digests_see_two_signs_move(tmp_path: Path) -> None:
    """The highest bit of a word has an effect that another one cannot undo."""
    tensor = some(64, torch.bfloat16)
    moved = tensor.clone()
    moved[[3, 11]] *= -1  # the last ones of two words of 64 bits
    found = measured(described(tmp_path, x=tensor, y=moved), {})
    assert found["x"].statistics.digest != found["y"].statistics.digest


def test_digests_do_not_depend_on_how_bytes_are_read(tmp_path: Path) -> None:
    """Rows of 700 001 bytes are read one by one, and end in the middle of words."""
    rows = torch.randint(0, 256, (13, 700_001), dtype=torch.uint8)
    held = described(tmp_path, rows=rows, flat=rows.flatten().clone())
    found = measured(held, {})
    assert found["rows"].statistics == found["flat"].statistics
    require_true(found["rows"].statistics, rows)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(
    "theirs", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str
)
@pytest.mark.parametrize("ours", [torch.float32, torch.bfloat16], ids=str)
def test_distances_are_those_of_torch(
    tmp_path: Path, ours: torch.dtype, theirs: torch.dtype, count: int
) -> None:
    new, old = some(count, ours), some(count, torch.float64)
    old[::3] += 0.001
    old = old.to(theirs)
    told = delta_of(tmp_path, new, old)
    a, b = new.double(), old.double()
    assert (told.count, told.changed, told.survived) == (count, int((a != b).sum()), int((a != b).sum()))
    # Rows of 1024 products of float32, each of which rounds once at the most.
    rel = 1e-12 if 4 in (ours.itemsize, theirs.itemsize) else 1024 * 2**-24
    assert told.dot == pytest.approx((a * b).sum().item(), rel=rel)
    assert told.norm == pytest.approx(a.norm().item(), rel=rel)
    assert told.other_norm == pytest.approx(b.norm().item(), rel=rel)
    assert told.distance == pytest.approx((a - b).norm().item(), rel=rel)
    assert told.largest == ((a - b).abs().max().item() if count else 0.0)


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e25])
def test_distances_of_numbers_whose_squares_are_beyond_float32_are_true(tmp_path: Path, scale: float) -> None:
    new, old = ((some(BLOCK + 9, torch.float64, seed) * scale).bfloat16() for seed in (0, 1))
    told = delta_of(tmp_path, new, old)
    a, b = new.double(), old.double()
    assert told.dot == pytest.approx((a * b).sum().item(), rel=1e-4, abs=0)
    assert told.norm == pytest.approx(a.norm().item(), rel=1e-4, abs=0)
    assert told.distance == pytest.approx((a - b).norm().item(), rel=1e-4, abs=0)
    same = delta_of(tmp_path, new, new.clone())
    assert same.norm == same.other_norm == pytest.approx(a.norm().item(), rel=1e-4, abs=0)


def test_a_cosine_near_one_is_as_far_from_it_as_it_should_be(tmp_path: Path) -> None:
    old = some(3 * BLOCK, torch.bfloat16)
    new = old.clone()
    new[::5000] *= 1.0625
    a, b = new.double(), old.double()
    angle = 1 - (a @ b / (a.norm() * b.norm())).item()
    assert 0 < angle < 1e-6
    assert 1 - delta_of(tmp_path, new, old).cosine == pytest.approx(angle, rel=1e-4)


def test_broken_numbers_of_16_bits_are_left_out_of_distances(tmp_path: Path) -> None:
    new, old = some(BLOCK + 9, torch.bfloat16), some(BLOCK + 9, torch.bfloat16, 1)
    new[:4] = torch.tensor([math.nan, math.inf, 1.0, math.nan])
    old[:4] = torch.tensor([math.nan, 1.0, -math.inf, 1.0])
    told = delta_of(tmp_path, new, old)
    a, b = new[4:].double(), old[4:].double()
    assert told.changed == int((a != b).sum()) + 3
    assert told.dot == pytest.approx((a * b).sum().item(), rel=1e-4, abs=0)
    assert (told.norm, told.distance) == pytest.approx((a.norm().item(), (a - b).norm().item()), rel=1e-4)


def test_nan_is_nan_and_zero_has_no_sign(tmp_path: Path) -> None:
    bits = torch.tensor([0x7FC00000, 0x7F800000, 0, 0x3F800000, 0x7FC00000], dtype=torch.int32)
    other = torch.tensor([0x7FC00123, 0x7F800000, -(1 << 31), 0x3F800000, 0x3F800000], dtype=torch.int32)
    told = delta_of(tmp_path, bits.view(torch.float32), other.view(torch.float32))
    assert told.changed == 1
    assert (told.norm, told.other_norm, told.distance) == (1.0, 1.0, 0.0)


def test_integers_are_compared_exactly_whatever_float64_makes_of_them(tmp_path: Path) -> None:
    large = torch.tensor([2**53, 2**53 + 1, 2**62 + 1, 7])
    assert delta_of(tmp_path, large, large + torch.tensor([1, 0, 1, 0])).changed == 2
    assert delta_of(tmp_path, large, large.double()).changed == 2
    assert delta_of(tmp_path, large.double(), large).changed == 2
    small = torch.tensor([70_000, 7], dtype=torch.int32)
    assert delta_of(tmp_path, small, small.short()).changed == 1


def test_what_survives_a_cast_is_what_still_differs_after_it(tmp_path: Path) -> None:
    old = some(BLOCK + 9, torch.float32)
    new = old + 2e-4 * some(BLOCK + 9, torch.float32, 1)
    for other in (old, old.bfloat16()):
        ours, theirs = described(tmp_path, x=new), described(tmp_path, x=other)
        told = measured({"x": CastTensor(ours["x"], BFLOAT16)}, theirs)["x"]
        assert told.delta is not None
        assert told.delta.changed == int((new.double() != other.double()).sum())
        assert told.delta.survived == int((new.bfloat16() != other.bfloat16()).sum())
        assert 0 < told.delta.survived < told.delta.changed
        require_true(told.statistics, new)


def test_any_number_of_workers_tells_the_same(tmp_path: Path) -> None:
    tensors = {str(n): some(n * 700_000 + 1, torch.float32, n) for n in range(5)}
    ours = described(tmp_path, **tensors)
    theirs = described(tmp_path, **{name: tensor + 1e-3 for name, tensor in tensors.items()})
    told = [measured(ours, theirs, workers) for workers in (1, 2, 5)]
    assert told[0] == told[1] == told[2]
    require_true(told[0]["4"].statistics, tensors["4"])  # several jobs


def test_a_tensor_of_another_shape_or_of_no_counterpart_has_no_distance(tmp_path: Path) -> None:
    ours = described(tmp_path, x=torch.ones(2, 3), y=torch.ones(2))
    found = measured(ours, described(tmp_path, x=torch.ones(3, 2)))
    assert [each.delta for each in found.values()] == [None, None]


class Counted(Silence):
    def __init__(self) -> None:
        self.total = 0

    def start(self, stage: str, total_bytes: int) -> None:
        self.total = total_bytes


def test_the_same_bytes_are_read_once(tmp_path: Path) -> None:
    ours = described(tmp_path, x=some(1000, torch.float32), y=torch.ones(1000))
    progress = Counted()
    tied = {**ours, "z": ours["x"]}
    told = measure(tied, against=tied, workers=1, progress=progress)
    assert progress.total == 8000
    assert told["z"] == told["x"]
    delta = told["x"].delta
    assert delta is not None
    assert (delta.changed, delta.distance) == (0, 0.0)
    assert delta.norm == delta.other_norm == pytest.approx(told["x"].statistics.norm, rel=1e-12)


def test_memory_does_not_grow_with_tensors(tmp_path: Path) -> None:
    """Two tensors of 96 MiB, read by two workers, fit into 40 MiB."""
    for name in "ab":
        save_file({"x": some(48 * MIB, torch.bfloat16)}, tmp_path / f"{name}.safetensors")
    body = """
import unshard
from unshard.measures import measure
from unshard.progress import Silence
a, b = (unshard.open(path).tensors for path in sys.argv[1:])
import numpy, ml_dtypes
limit(40 << 20)
print(measure(a, against=b, workers=2, progress=Silence())["x"].delta.changed)
"""
    done = run_limited(body, tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert (done.stdout.strip(), done.stderr) == ("0", "")
