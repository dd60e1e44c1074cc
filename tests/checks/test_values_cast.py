"""What a cast loses, told before anything is written: in numbers that torch's own cast confirms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from specimens import tiny_model
from unshard.checks import values_cast
from unshard.dtypes import DTYPES
from unshard.findings import Finding, Severity
from values_scene import State, broken, evidence_of, found_by, trained

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    model = tiny_model("llama")
    with torch.no_grad():
        for parameter in model.parameters():  # what bfloat16 holds, as a published base has it
            parameter.copy_((parameter * 0.1).bfloat16())
    model.save_pretrained(folder)
    return folder


def found(folder: Path, base: Path | None, dtype: str | None) -> list[Finding]:
    return found_by(values_cast.CHECKS, evidence_of(folder, base, dtype=dtype))


def moved(deviation: float) -> Callable[[State], object]:
    """Return a change of every element that a fine-tune with a small learning rate makes."""

    def change(state: State) -> None:
        torch.manual_seed(0)
        for tensor in state.values():
            tensor += torch.randn_like(tensor) * deviation

    return change


@pytest.mark.parametrize(("deviation", "code"), [(1e-5, "U405"), (3e-4, "U406")])
def test_the_share_of_training_that_is_lost_is_told(
    base: Path, tmp_path: Path, deviation: float, code: str
) -> None:
    folder = broken(base, tmp_path / "tuned", moved(deviation))
    (told,) = found(folder, base, "bfloat16")
    ours, theirs = load_file(folder / "model.safetensors"), load_file(base / "model.safetensors")
    changed = sum(int((ours[name] != theirs[name]).sum()) for name in ours)
    lost = sum(
        int(((ours[n] != theirs[n]) & (ours[n].bfloat16() == theirs[n].bfloat16())).sum()) for n in ours
    )
    assert told.code == code
    assert told.severity == (Severity.WARNING if code == "U405" else Severity.INFO)
    assert told.subject == "cast to bfloat16"
    assert told.saw.startswith(f"{lost / changed:.1%} of the {changed:,} elements that training changed")
    assert all(part in told.saw for part in ("embeddings ", "norms ", "matrices "))
    assert "--dtype keep" in str(told.remedy)
    assert (lost > changed / 2) == (code == "U405")


def test_a_cast_that_loses_nothing_of_the_training_is_not_told(base: Path, tmp_path: Path) -> None:
    def rounded(state: State) -> None:
        moved(0.01)(state)
        for tensor in state.values():
            tensor.copy_(tensor.bfloat16())

    folder = broken(base, tmp_path / "tuned", rounded)
    assert found(folder, base, "bfloat16") == []
    assert found(folder, base, None) == []


def test_training_that_keeps_its_dtype_loses_nothing(base: Path, tmp_path: Path) -> None:
    folder = broken(base, tmp_path / "tuned", moved(1e-6))
    assert found(folder, base, None) == []
    assert found(folder, None, "bfloat16") == []  # without a base, nobody knows what training changed


def test_real_training_of_a_tiny_model_loses_little(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base")
    trained(model).save_pretrained(tmp_path / "tuned")
    assert [each.code for each in found(tmp_path / "tuned", tmp_path / "base", "bfloat16")] == ["U406"]


@pytest.mark.parametrize(
    ("dtype", "values", "infinite"),
    [
        ("float16", (65519.0,), 0),
        ("float16", (65520.0,), 1),  # half a step beyond the largest, and it rounds to even
        ("float16", (-70000.0, 1e10, 1e30), 3),
        ("bfloat16", (3.38e38,), 0),
        ("bfloat16", (3.4e38,), 1),
        ("float8_e5m2", (61440.0,), 1),
    ],
)
def test_numbers_that_become_infinite_are_counted(
    base: Path, tmp_path: Path, dtype: str, values: tuple[float, ...], infinite: int
) -> None:
    def change(state: State) -> None:
        state[UP].view(-1)[: len(values)] = torch.tensor(values)

    folder = broken(base, tmp_path / "large", change)
    cast = load_file(folder / "model.safetensors")[UP].to(getattr(torch, dtype)).float()
    assert int(torch.isinf(cast).sum()) == infinite
    told = [each for each in found(folder, None, dtype) if each.code == "U407"]
    assert len(told) == (infinite > 0)
    for each in told:
        assert each.saw.startswith(f"at least {infinite} number{'' if infinite == 1 else 's'} of {UP} would")
        assert each.remedy


def test_numbers_that_become_zero_are_told_where_they_are_many(base: Path, tmp_path: Path) -> None:
    folder = broken(base, tmp_path / "small", lambda state: state["lm_head.weight"].mul_(1e-6))
    weight = load_file(folder / "model.safetensors")["lm_head.weight"]
    vanished = int(((weight != 0) & (weight.half() == 0)).sum())
    (told,) = found(folder, None, "float16")
    assert told.code == "U408"
    assert told.severity is Severity.INFO
    # Counted by whole powers of two: the limit of float16 is one.
    assert told.saw.startswith(f"{vanished:,} of ")
    assert "lm_head.weight" in told.saw
    assert found(folder, None, "bfloat16") == []
    assert found(base, None, "float16") == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float8_e5m2"])
def test_limits_are_those_of_torch(dtype: str) -> None:
    kind = getattr(torch, dtype)
    limits = values_cast._limits(DTYPES[dtype])
    points = [limits.overflow, limits.overflow * (1 - 1e-3), limits.vanish, limits.vanish * (1 + 1e-3)]
    overflow, below, vanish, above = torch.tensor(points, dtype=torch.float64).to(kind).double().tolist()
    assert overflow == float("inf")
    assert vanish == 0.0
    assert above > 0.0
    assert below == pytest.approx(torch.finfo(kind).max, rel=1e-2)
