"""What training changed, held against the base: nothing, a part, what was frozen, or all by a factor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from specimens import checkpoint_of, tiny_model
from unshard.checks import values_change
from unshard.findings import Finding, Severity
from values_scene import State, broken, evidence_of, found_by, trained

UP = "model.layers.1.mlp.up_proj.weight"
Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A base, and a fine-tune of it."""
    folder = tmp_path_factory.mktemp("llama")
    model = tiny_model("llama")
    model.save_pretrained(folder / "base")
    trained(model).save_pretrained(folder / "tuned")
    return folder / "base", folder / "tuned"


def found(pair: Pair, scratch: Path, change: Callable[[State], object]) -> dict[str, Finding]:
    base, folder = pair
    told = found_by(values_change.CHECKS, evidence_of(broken(folder, scratch / "broken", change), base))
    assert len({each.code for each in told}) == len(told)
    return {each.code: each for each in told}


def test_a_copy_of_the_base_is_told(llama: Pair, tmp_path: Path) -> None:
    told = found((llama[0], llama[0]), tmp_path, lambda state: None)
    assert list(told) == ["U811"]
    assert told["U811"].severity is Severity.WARNING
    assert told["U811"].saw == "0 of 21 tensors differ from the base: this is the base"


def test_the_base_in_a_wider_dtype_is_still_the_base(tmp_path: Path) -> None:
    model = tiny_model("llama", torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    model.float().save_pretrained(tmp_path / "wide")
    told = found((tmp_path / "base", tmp_path / "wide"), tmp_path, lambda state: None)
    assert list(told) == ["U811"]


def test_the_base_in_a_narrower_dtype_is_still_the_base(llama: Pair, tmp_path: Path) -> None:
    def narrow(state: State) -> None:
        state |= {name: tensor.bfloat16() for name, tensor in state.items()}

    told = found((llama[0], llama[0]), tmp_path, narrow)
    assert list(told) == ["U811"]
    assert told["U811"].saw.endswith("this is the base, 21 of them rounded to the dtype of the checkpoint")

    def narrow_and_moved(state: State) -> None:
        narrow(state)
        state[UP] *= 1.01

    told = found((llama[0], llama[0]), tmp_path, narrow_and_moved)
    assert list(told) == ["U812"]
    assert told["U812"].saw.startswith("1 of 21 tensors")


def test_a_fine_tune_is_told_in_numbers(llama: Pair, tmp_path: Path) -> None:
    told = found(llama, tmp_path, lambda state: None)
    assert list(told) == ["U812"]
    assert told["U812"].severity is Severity.INFO
    assert told["U812"].saw.startswith("21 of 21 tensors and 100.0% of the elements differ")
    assert "unchanged" not in told["U812"].saw


def test_parts_that_did_not_change_are_told_by_kind(llama: Pair, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    base = load_file(llama[0] / "model.safetensors")

    def freeze(state: State) -> None:
        for name in state:
            if ".layers.0." in name or "embed" in name:
                state[name] = base[name]

    told = found(llama, tmp_path, freeze)["U812"].saw
    assert told.startswith("11 of 21 tensors")
    assert "model.embed_tokens.weight" in told
    assert "model.layers.*.input_layernorm.weight (1 of 2)" in told


@pytest.mark.parametrize(("factor", "told_as"), [(8.0, "8.0"), (0.25, "0.25")])
def test_weights_that_were_scaled_are_told_with_the_factor(
    llama: Pair, tmp_path: Path, factor: float, told_as: str
) -> None:
    told = found(llama, tmp_path, lambda state: state[UP].mul_(factor))["U821"]
    assert told.subject == UP
    assert told.saw.startswith(f"the base's numbers times {told_as}")
    assert "cosine 0.99" in told.saw or "cosine 1.00" in told.saw


def test_weights_that_point_the_other_way_are_not_called_scaled(llama: Pair, tmp_path: Path) -> None:
    assert "U821" not in found(llama, tmp_path, lambda state: state[UP].mul_(-2.0))


def test_weights_that_decayed_are_not_called_scaled(llama: Pair, tmp_path: Path) -> None:
    def decay(state: State) -> None:
        for tensor in state.values():
            tensor *= 0.8

    assert "U821" not in found(llama, tmp_path, decay)


@pytest.mark.parametrize("by", [1.0, -1.0])
def test_norms_that_are_off_by_one_are_told(llama: Pair, tmp_path: Path, by: float) -> None:
    told = found(llama, tmp_path, lambda state: [state[name].add_(by) for name in state if "norm" in name])
    assert told["U822"].subject == "5 tensors"
    assert "model.layers.0.input_layernorm.weight" in told["U822"].saw
    assert "U822" not in found(llama, tmp_path, lambda s: [s[name].add_(0.5) for name in s if "norm" in name])


def frozen(pair: Pair, scratch: Path, change: Callable[[State], object], **training: str) -> list[Finding]:
    base, folder = pair
    evidence = evidence_of(broken(folder, scratch / "broken", change), base)
    checkpoint = checkpoint_of({"a": torch.ones(1)}, scratch / "run", training=training)
    told = found_by(
        values_change.CHECKS,
        type(evidence)(
            evidence.path,
            checkpoint=checkpoint,
            tensors=evidence.tensors,
            base_tensors=evidence.base_tensors,
            measured=evidence.measured,
            is_deep=True,
        ),
    )
    return [each for each in told if each.code == "U823"]


def test_frozen_layers_that_changed_are_told(llama: Pair, tmp_path: Path) -> None:
    settings = {"freeze_layers": "True", "num_freeze_layers": "1"}
    (told,) = frozen(llama, tmp_path, lambda state: None, **settings)
    assert told.saw.startswith("9 tensors of frozen layers differ from the base: model.layers.0.")
    assert told.expected == "the base's numbers: train_params.yaml says num_freeze_layers 1"


@pytest.mark.parametrize(
    "settings",
    [
        {"freeze_layers": "False", "num_freeze_layers": "1"},
        {"freeze_layers": "True", "num_freeze_layers": "0"},
        {"freeze_layers": "True", "num_freeze_layers": "many"},
        {"freeze_layers": "True"},
    ],
)
def test_layers_that_nothing_says_were_frozen_may_change(
    llama: Pair, tmp_path: Path, settings: dict[str, str]
) -> None:
    assert frozen(llama, tmp_path, lambda state: None, **settings) == []


def test_frozen_layers_that_are_the_bases_are_healthy(llama: Pair, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    base = load_file(llama[0] / "model.safetensors")

    def freeze(state: State) -> None:
        state |= {name: base[name].bfloat16() for name in state if ".layers.0." in name}

    assert frozen(llama, tmp_path, freeze, freeze_layers="True", num_freeze_layers="1") == []


def test_without_a_base_nothing_is_said(llama: Pair) -> None:
    assert found_by(values_change.CHECKS, evidence_of(llama[1])) == []
