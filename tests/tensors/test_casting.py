"""Casts, against torch and against exact arithmetic."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch

from unshard.dtypes import DTYPES
from unshard.tensors.casting import cast_block


def cast(values: np.ndarray, name: str) -> tuple[np.ndarray, tuple[int, int]]:
    out = np.empty(values.shape, DTYPES[name].numpy)
    return out, cast_block(values, out)


def every_pattern(name: str) -> np.ndarray:
    """Return every 16-bit value, or a large deterministic sample of the 32-bit ones."""
    dtype = DTYPES[name].numpy
    if dtype.itemsize == 2:
        return np.arange(1 << 16, dtype=np.uint16).view(dtype)
    sample = np.random.default_rng(1).integers(0, 1 << 32, 1 << 21, dtype=np.uint32)
    edges = np.arange(1 << 16, dtype=np.uint32) << 16  # every upper half with the ties around it
    ties = [
        edges + np.uint32(delta) for delta in (0, 1, 0x7FFF, 0x8000, 0x8001, 0x0FFF, 0x1000, 0x1001, 0xFFFF)
    ]
    return np.concatenate([sample, *ties]).view(dtype)


def is_nan(values: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # ml_dtypes warns of signalling NaNs
        nan: np.ndarray = np.isnan(values)
        return nan


FLOATS = ["float32", "float16", "bfloat16"]


@pytest.mark.parametrize(("source", "target"), [p for p in itertools.product(FLOATS, FLOATS) if p[0] != p[1]])
def test_finite_values_are_rounded_as_torch_rounds_them(source: str, target: str) -> None:
    values = every_pattern(source)
    ours, _ = cast(values, target)
    raw = torch.from_numpy(values.view(np.uint8)).view(getattr(torch, source))
    theirs = raw.to(getattr(torch, target)).view(torch.uint8).numpy().view(ours.dtype)
    number = ~is_nan(values)
    bits = f"u{ours.dtype.itemsize}"
    assert np.array_equal(ours.view(bits)[number], theirs.view(bits)[number])


@pytest.mark.parametrize(
    ("source", "target"), [p for p in itertools.product([*FLOATS, "float64"], FLOATS) if p[0] != p[1]]
)
def test_nan_stays_nan_and_keeps_its_sign(source: str, target: str) -> None:
    values = np.array([np.nan, -np.nan], DTYPES[source].numpy)
    ours, lost = cast(values, target)
    assert is_nan(ours).all()
    assert np.signbit(ours).tolist() == np.signbit(values).tolist()
    assert lost == (0, 0)


def nearest(value: float, candidates: list[float]) -> list[float]:
    distance = [abs(Fraction(c) - Fraction(value)) for c in candidates]
    return [c for c, d in zip(candidates, distance, strict=True) if d == min(distance)]


@pytest.mark.parametrize("target", ["float16", "bfloat16"])
def test_float64_is_rounded_once(target: str) -> None:
    dtype = DTYPES[target].numpy
    every = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    exact = every[~is_nan(every)].astype(np.float64)
    grid = np.sort(exact[np.isfinite(exact)])
    middles = (grid[:-1] + grid[1:]) / 2
    nudged = np.concatenate([middles, np.nextafter(middles, np.inf), np.nextafter(middles, -np.inf)])
    ours, _ = cast(nudged, target)
    for i in np.random.default_rng(2).integers(0, len(nudged), 3000):
        at = int(i) % len(middles)
        best = nearest(float(nudged[i]), [float(grid[at]), float(grid[at + 1])])
        assert float(ours[i]) in best
        if len(best) == 2:  # a tie goes to the even one
            assert int(ours[i : i + 1].view(np.uint16)[0]) % 2 == 0


def test_overflow_and_underflow_are_counted() -> None:
    values = np.array([1e38, -1e6, 65504, 65519, 65520, 1e-9, -1e-9, 0.0, -0.0, np.inf, np.nan], np.float32)
    assert cast(values, "float16")[1] == (3, 2)
    assert cast(values.astype(DTYPES["bfloat16"].numpy), "float16")[1] == (5, 2)
    assert cast(np.array([3.4e38, 1e-45, 1.0], np.float32), "bfloat16")[1] == (1, 1)
    assert cast(np.array([1e300, 1e-300], np.float64), "bfloat16")[1] == (1, 1)
    assert cast(np.array([1e300, 1e-300], np.float64), "float32")[1] == (1, 1)
