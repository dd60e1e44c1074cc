"""Tensors that lie where another of the base's should: told apart by whose numbers they hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from specimens import MAKERS, tiny_model
from unshard.checks import values_arrangement
from unshard.findings import Finding
from values_scene import State, broken, evidence_of, found_by, trained

CHECKS = values_arrangement.CHECKS
GATE, UP, DOWN = (f"model.layers.0.mlp.{each}_proj.weight" for each in ("gate", "up", "down"))
QUERY, KEY, OUTPUT = (f"model.layers.0.self_attn.{each}_proj.weight" for each in "qko")
NORMS = ("model.layers.0.input_layernorm.weight", "model.layers.0.post_attention_layernorm.weight")
Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A base, and a fine-tune of it."""
    return tuned("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A base with four experts in each layer, and a fine-tune of it."""
    return tuned("mixtral", tmp_path_factory.mktemp("mixtral"))


def tuned(family: str, folder: Path) -> Pair:
    model = tiny_model(family)
    model.save_pretrained(folder / "base")
    trained(model).save_pretrained(folder / "tuned")
    return folder / "base", folder / "tuned"


def found(pair: Pair, scratch: Path, change: Callable[[State], object]) -> list[Finding]:
    base, folder = pair
    return found_by(CHECKS, evidence_of(broken(folder, scratch / "broken", change), base))


def one(pair: Pair, scratch: Path, change: Callable[[State], object]) -> Finding:
    (only,) = found(pair, scratch, change)
    assert only.remedy
    return only


def exchange(state: State, *pairs: tuple[str, str]) -> None:
    for a, b in pairs:
        for number in range(2):
            here, there = (name.replace(".0.", f".{number}.") for name in (a, b))
            state[here], state[there] = state[there], state[here]


def test_a_fine_tune_is_in_order(llama: Pair, mixtral: Pair, tmp_path: Path) -> None:
    assert found(llama, tmp_path, lambda state: None) == []
    assert found(mixtral, tmp_path, lambda state: None) == []


@pytest.mark.parametrize("pair", [(GATE, UP), (QUERY, OUTPUT), NORMS], ids=["gate", "query", "norms"])
def test_exchanged_tensors_of_one_shape_are_told(llama: Pair, tmp_path: Path, pair: tuple[str, str]) -> None:
    told = one(llama, tmp_path, lambda state: exchange(state, pair))
    assert told.code == "U815"
    kinds = sorted(name.replace(".0.", ".*.") for name in pair)
    assert told.subject == " and ".join(kinds)
    assert f"{kinds[0]} and {kinds[1]} are exchanged in 2 layers" in told.saw
    assert "is 1.000 with the base's" in told.saw


def test_the_cosines_are_those_of_the_tensors(llama: Pair, tmp_path: Path) -> None:
    told = one(llama, tmp_path, lambda state: exchange(state, (GATE, UP)))
    evidence = evidence_of(tmp_path / "broken", llama[0])
    delta = evidence.measured[GATE].delta
    assert delta is not None
    assert told.saw.endswith(f"and {delta.cosine:.3f} with its own")  # all 2048 numbers are in the sample


def test_embedding_and_head_that_are_exchanged_are_told(llama: Pair, tmp_path: Path) -> None:
    def change(state: State) -> None:
        names = "lm_head.weight", "model.embed_tokens.weight"
        state[names[0]], state[names[1]] = state[names[1]], state[names[0]]

    assert one(llama, tmp_path, change).saw.startswith(
        "lm_head.weight and model.embed_tokens.weight are exchanged:"
    )


def test_a_tensor_that_holds_another_ones_numbers_is_no_exchange(llama: Pair, tmp_path: Path) -> None:
    told = one(llama, tmp_path, lambda state: state.update({UP: state[GATE].clone()}))
    assert told.code == "U815"
    assert told.saw.startswith(
        "model.layers.*.mlp.up_proj.weight holds the numbers of model.layers.*.mlp.gate_proj.weight in"
        " 1 layer:"
    )


def test_layers_that_are_exchanged_are_told_with_their_numbers(llama: Pair, tmp_path: Path) -> None:
    def change(state: State) -> None:
        for name in [each for each in state if ".layers.0." in each]:
            other = name.replace(".layers.0.", ".layers.1.")
            state[name], state[other] = state[other], state[name]

    told = one(llama, tmp_path, change)
    assert told.code == "U816"
    assert "layer 0 holds the base's layer 1 (9 tensors); layer 1 holds the base's layer 0 (9" in told.saw


def test_experts_that_are_exchanged_are_told_with_their_layer(mixtral: Pair, tmp_path: Path) -> None:
    def change(state: State) -> None:
        for name in [each for each in state if "layers.1." in each and ".experts.2." in each]:
            other = name.replace(".experts.2.", ".experts.3.")
            state[name], state[other] = state[other], state[name]

    told = one(mixtral, tmp_path, change)
    assert told.code == "U817"
    assert "expert 2 of layer 1 holds the base's expert 3 of layer 1 (3 tensors)" in told.saw


def test_experts_in_one_tensor_are_told_by_their_order(llama: Pair, tmp_path: Path) -> None:
    experts = torch.randn(6, 32, 16)
    base = broken(llama[0], tmp_path / "base", lambda s: s.update({"model.layers.0.experts.up": experts}))
    order = [1, 0, 2, 3, 5, 4]
    told = one(
        (base, llama[1]), tmp_path, lambda s: s.update({"model.layers.0.experts.up": experts[order].clone()})
    )
    assert (told.code, told.subject) == ("U817", "model.layers.0.experts.up")
    assert "has the base's 6 experts in the order 1 0 2 3 5 4" in told.saw


def permuted(state: State, *, again: bool) -> None:
    for name, heads in ((QUERY, 4), (KEY, 2)):
        for number in range(2):
            at = name.replace(".0.", f".{number}.")
            split = (heads, -1, 2, 32) if again else (heads, 2, 4, 32)
            state[at] = state[at].reshape(split).transpose(1, 2).reshape(-1, 32)


@pytest.mark.parametrize(
    ("again", "words"),
    [
        (False, "has the rows of 4 heads as Meta's format has them, not permuted"),
        (True, "has the rows of 4 heads permuted once more than the base's"),
    ],
)
def test_rotary_rows_in_the_wrong_order_are_told(
    llama: Pair, tmp_path: Path, again: bool, words: str
) -> None:
    told = {each.subject: each for each in found(llama, tmp_path, lambda s: permuted(s, again=again))}
    assert {each.code for each in told.values()} == {"U818"}
    assert sorted(told) == [
        "model.layers.*.self_attn.k_proj.weight in 2 layers",
        "model.layers.*.self_attn.q_proj.weight in 2 layers",
    ]
    assert words in told["model.layers.*.self_attn.q_proj.weight in 2 layers"].saw
    assert "of 2 heads" in told["model.layers.*.self_attn.k_proj.weight in 2 layers"].saw


def test_a_bias_in_rotary_disorder_is_told(tmp_path: Path) -> None:
    pair = tuned("qwen2", tmp_path / "qwen2")
    bias = "model.layers.0.self_attn.q_proj.bias"

    def change(state: State) -> None:
        state[bias] = state[bias].reshape(4, 2, 4).transpose(1, 2).reshape(-1)

    told = one(pair, tmp_path, change)
    assert (told.code, told.subject) == ("U818", bias)


def test_a_transposed_square_is_told(llama: Pair, tmp_path: Path) -> None:
    told = one(llama, tmp_path, lambda state: state.update({QUERY: state[QUERY].T}))
    assert (told.code, told.subject) == ("U819", QUERY)
    assert "is the base's transposed" in told.saw


@pytest.mark.parametrize(
    ("name", "dimension", "by", "words"),
    [
        (UP, 0, 32, "2 parts along dimension 0 in the order 1 0"),
        (UP, 0, 16, "4 parts along dimension 0 in the order 3 0 1 2"),
        (DOWN, 1, 16, "4 parts along dimension 1 in the order 3 0 1 2"),
    ],
)
def test_parts_in_another_order_are_told(
    llama: Pair, tmp_path: Path, name: str, dimension: int, by: int, words: str
) -> None:
    told = one(llama, tmp_path, lambda state: state.update({name: state[name].roll(by, dimension)}))
    assert (told.code, told.subject) == ("U820", name)
    assert f"has the base's {words};" in told.saw


def test_rows_of_gate_and_up_by_turns_are_told(llama: Pair, tmp_path: Path) -> None:
    def by_turns(state: State) -> None:
        state[UP] = state[UP].reshape(2, 32, 32).transpose(0, 1).reshape(64, 32)

    told = one(llama, tmp_path, by_turns)
    assert told.code == "U820"
    assert "has rows of the base's two halves by turns" in told.saw


def test_fused_parts_of_ranks_are_told(llama: Pair, tmp_path: Path) -> None:
    def of_two_ranks(state: State) -> None:
        gate, other, up, last = state[UP].chunk(4)
        state[UP] = torch.cat([gate, up, other, last])

    assert "4 parts along dimension 0 in the order 0 2 1 3" in one(llama, tmp_path, of_two_ranks).saw


def test_a_random_tensor_among_related_ones_is_told(llama: Pair, tmp_path: Path) -> None:
    def change(state: State) -> None:
        torch.manual_seed(0)
        state["lm_head.weight"].normal_(std=0.2)

    told = one(llama, tmp_path, change)
    assert (told.code, told.subject) == ("U814", "lm_head.weight")
    assert told.saw.endswith("unrelated or rearranged")


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "mamba", "t5", "encoder"])
@pytest.mark.parametrize("is_made", [True, False], ids=["made", "random"])
def test_another_model_of_equal_shapes_is_told_once(tmp_path: Path, family: str, is_made: bool) -> None:
    for seed, name in ((1, "base"), (2, "other")):
        torch.manual_seed(seed)
        model = MAKERS[family]()
        if not is_made:
            for parameter in model.parameters():
                parameter.data.normal_(std=0.2)
        model.save_pretrained(tmp_path / name)
    (told,) = found_by(CHECKS, evidence_of(tmp_path / "other", tmp_path / "base"))
    assert told.code == "U813"
    assert told.saw.startswith("0 of ") or family == "mamba"  # whose decays begin alike


def test_hard_training_is_not_taken_for_disorder(tmp_path: Path) -> None:
    for rate in (1e-3, 2e-2, 5e-2):
        torch.manual_seed(3)
        model = MAKERS["llama"]()
        model.save_pretrained(tmp_path / "base")
        trained(model, rate=rate, steps=6).save_pretrained(tmp_path / "tuned")
        assert found_by(CHECKS, evidence_of(tmp_path / "tuned", tmp_path / "base")) == []


def test_what_a_tensor_has_wrong_by_itself_is_not_called_random(llama: Pair, tmp_path: Path) -> None:
    assert found(llama, tmp_path, lambda state: state[UP].fill_(0.5)) == []
    assert found(llama, tmp_path, lambda state: state[UP].view(-1)[:1].fill_(1e30)) == []


def test_a_weight_that_grew_from_nothing_is_not_called_random(llama: Pair, tmp_path: Path) -> None:
    base = broken(llama[0], tmp_path / "base", lambda state: state["lm_head.weight"].normal_(std=1e-5))
    assert found((base, llama[1]), tmp_path, lambda state: None) == []


def test_shapes_that_differ_from_the_base_are_not_compared(llama: Pair, tmp_path: Path) -> None:
    def resize(state: State) -> None:
        for name in ("lm_head.weight", "model.embed_tokens.weight"):
            state[name] = torch.cat([state[name], torch.randn(8, 32)])

    assert found(llama, tmp_path, resize) == []
