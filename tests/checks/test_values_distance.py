"""Tensors that are far from the base and that nothing more exact explains; healthy fine-tunes are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from healthy_models import healthy_model, train
from specimens import MAKERS
from unshard.checks import (
    values_arrangement,
    values_change,
    values_numbers,
    values_orders,
    values_siblings,
    values_tails,
)
from unshard.findings import Finding, Severity
from values_scene import State, alarms, broken, evidence_of, found_by, trained

CHECKS = (
    *values_numbers.CHECKS,
    *values_tails.CHECKS,
    *values_siblings.CHECKS,
    *values_change.CHECKS,
    *values_arrangement.CHECKS,
)
UP, GATE, DOWN = (f"model.layers.0.mlp.{each}_proj.weight" for each in ("up", "gate", "down"))
QUERY = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"
Pair = tuple[Path, Path]
Change = Callable[[State], object]


def tuned(family: str, folder: Path) -> Pair:
    """Write a base whose parameters have all moved, and a fine-tune of it."""
    model = healthy_model(family, torch.float32)
    model.save_pretrained(folder / "base")
    train(model, steps=3, learning_rate=1e-3, seed=12).save_pretrained(folder / "tuned")
    return folder / "base", folder / "tuned"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return tuned("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def deepseek(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return tuned("deepseek-v3", tmp_path_factory.mktemp("deepseek"))


def found(pair: Pair, scratch: Path, change: Change) -> list[Finding]:
    """Return what is a warning or worse."""
    told = found_by(CHECKS, evidence_of(broken(pair[1], scratch / "broken", change), pair[0]))
    return [each for each in told if each.severity is not Severity.INFO]


def one(pair: Pair, scratch: Path, change: Change) -> Finding:
    (only,) = found(pair, scratch, change)
    assert only.remedy
    return only


def matrices(state: State) -> list[str]:
    return [name for name in state if state[name].dim() == 2 and ".layers." in name]


def random_like(part: torch.Tensor, *, times: float = 1.0) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn_like(part) * part.std() * times


def twice(state: State, names: list[str], dimension: int = 0) -> None:
    for name in names:
        first, _ = state[name].chunk(2, dimension)
        state[name] = torch.cat([first, first], dimension)


def test_a_part_of_one_rank_that_was_written_twice_is_told_with_its_rows(llama: Pair, tmp_path: Path) -> None:
    told = one(llama, tmp_path, lambda state: twice(state, [UP]))
    assert (told.code, told.subject) == ("U825", UP)
    assert told.saw == (
        "rows 40 to 79 of 80 are unrelated to the base's, and the others are the base's;"
        " they are rows 0 to 39 of 80 again"
    )


def test_columns_that_were_written_twice_are_told(llama: Pair, tmp_path: Path) -> None:
    told = one(llama, tmp_path, lambda state: twice(state, [DOWN], 1))
    assert (told.code, told.subject) == ("U825", DOWN)
    assert told.saw.startswith("columns 40 to 79 of 80 are unrelated")
    assert told.saw.endswith("they are columns 0 to 39 of 80 again")


def test_parts_that_were_written_twice_in_every_matrix_are_told(llama: Pair, tmp_path: Path) -> None:
    told = one(llama, tmp_path, lambda state: twice(state, matrices(state)))
    assert (told.code, told.subject) == ("U825", "14 tensors")
    assert "again" in told.saw


def test_half_of_another_layer_is_told_with_its_name(llama: Pair, tmp_path: Path) -> None:
    other = UP.replace(".0.", ".1.")
    told = one(llama, tmp_path, lambda state: state[UP][40:].copy_(state[other][40:]))
    assert told.code == "U825"
    assert told.saw.endswith(f"they are those of {other}")


@pytest.mark.parametrize("start", [40, 60], ids=["half", "quarter"])
def test_a_random_part_is_told_with_its_rows(llama: Pair, tmp_path: Path, start: int) -> None:
    told = one(llama, tmp_path, lambda state: state[UP][start:].copy_(random_like(state[UP][start:])))
    assert told.code == "U825"
    assert told.saw.startswith(f"rows {start} to 79 of 80 are unrelated")
    assert told.saw.endswith("and the others are the base's")


def test_two_random_parts_are_told_apart(llama: Pair, tmp_path: Path) -> None:
    def change(state: State) -> None:
        state[UP][10:20] = random_like(state[UP][10:20])
        state[UP][70:] = random_like(state[UP][70:])

    assert one(llama, tmp_path, change).saw.startswith("rows 10 to 19 and 70 to 79 of 80 are")


def test_rows_here_and_there_that_are_random_are_told(llama: Pair, tmp_path: Path) -> None:
    told = one(llama, tmp_path, lambda state: state[UP][::2].copy_(random_like(state[UP][::2])))
    assert (told.code, told.subject) == ("U825", UP)
    assert told.saw.startswith("differs by ")
    assert "where half of the tensors do by less than 6." in told.saw


@pytest.mark.parametrize("times", [0.2, 1.0, 4.5])
def test_random_matrices_are_told_whatever_their_scale(llama: Pair, tmp_path: Path, times: float) -> None:
    told = one(llama, tmp_path, lambda state: state[UP].copy_(random_like(state[UP], times=times)))
    assert (told.code, told.subject) == ("U814", UP)
    assert told.saw.endswith("unrelated or rearranged")


def test_a_random_layer_of_another_scale_is_told(llama: Pair, tmp_path: Path) -> None:
    def change(state: State) -> None:
        for name in matrices(state):
            if ".layers.1." in name:
                state[name] = random_like(state[name], times=4.5)

    told = [(each.code, each.subject) for each in found(llama, tmp_path, change)]
    assert told == [("U814", "5 tensors"), ("U825", "2 tensors")]  # the two have too few numbers to be sure


def test_bfloat16_that_was_read_as_float16_is_told(llama: Pair, tmp_path: Path) -> None:
    def change(state: State) -> None:
        state |= {name: tensor.bfloat16().view(torch.float16) for name, tensor in state.items()}

    told = [each for each in found(llama, tmp_path, change) if each.code == "U825"]
    assert [each.subject for each in told] == ["the model"]
    assert "of the base's norm and are" in told[0].saw


def test_rows_here_and_there_that_are_random_in_every_matrix_are_told(llama: Pair, tmp_path: Path) -> None:
    def change(state: State) -> None:
        for name in matrices(state):
            state[name][::2] = random_like(state[name][::2])

    told = one(llama, tmp_path, change)
    assert (told.code, told.subject) == ("U825", "the model")


@pytest.mark.parametrize("value", [1.0, -0.5])
def test_norms_that_are_one_number_everywhere_are_told(llama: Pair, tmp_path: Path, value: float) -> None:
    told = one(llama, tmp_path, lambda s: [s[name].fill_(value) for name in s if "norm" in name])
    assert (told.code, told.subject) == ("U804", "5 tensors")


def test_norms_of_gemma_that_are_one_are_not_taken_for_others(tmp_path: Path) -> None:
    pair = tuned("gemma3", tmp_path / "gemma3")

    def ones(state: State) -> None:
        for name in state:
            if name.endswith("norm.weight"):
                state[name].fill_(1.0)

    assert {each.code for each in found(pair, tmp_path, ones)} == {"U804"}


def test_norms_that_are_as_in_a_base_of_ones_are_healthy(llama: Pair, tmp_path: Path) -> None:
    def ones(state: State) -> None:
        for name in state:
            if "norm" in name:
                state[name].fill_(1.0)

    base = broken(llama[0], tmp_path / "base", ones)
    assert found((base, llama[1]), tmp_path, ones) == []
    assert (
        found((base, llama[1]), tmp_path / "more", lambda s: [s[n].fill_(1.01) for n in s if "norm" in n])
        == []
    )


def test_a_norm_of_another_size_is_told(llama: Pair, tmp_path: Path) -> None:
    told = one(llama, tmp_path, lambda state: state["model.norm.weight"].mul_(8))
    assert (told.code, told.subject) == ("U825", "model.norm.weight")
    assert "times as long" in told.saw


def test_a_norm_of_another_layer_is_told_though_norms_are_alike(llama: Pair, tmp_path: Path) -> None:
    told = one(llama, tmp_path, lambda s: s[NORM].copy_(s[NORM.replace(".0.", ".1.")]))
    assert told.code == "U816"


def test_norms_less_one_are_told_once(llama: Pair, tmp_path: Path) -> None:
    def less(state: State) -> None:
        for name in state:
            if "norm" in name:
                state[name] -= 1

    assert one(llama, tmp_path, less).code == "U822"


def test_biases_that_are_zero_are_told_once(tmp_path: Path) -> None:
    pair = tuned("qwen2", tmp_path / "qwen2")
    told = one(pair, tmp_path, lambda s: [s[name].zero_() for name in s if name.endswith("bias")])
    assert told.code == "U802"


def test_rotary_rows_of_a_part_of_a_head_in_the_wrong_order_are_told(deepseek: Pair, tmp_path: Path) -> None:
    config: dict[str, Any] = dict(evidence_of(deepseek[1]).config or {})
    rope, nope = config["qk_rope_head_dim"], config["qk_nope_head_dim"]

    def change(state: State) -> None:
        for name in state:
            if name.endswith("q_b_proj.weight"):
                heads = state[name].view(-1, nope + rope, state[name].shape[1])
                turned = heads[:, nope:].reshape(len(heads), 2, rope // 2, -1).transpose(1, 2)
                heads[:, nope:] = turned.reshape(len(heads), rope, -1).clone()
            if name.endswith("kv_a_proj_with_mqa.weight"):
                tail = state[name][-rope:]
                state[name][-rope:] = tail.view(rope // 2, 2, -1).transpose(0, 1).reshape(rope, -1).clone()

    told = found(deepseek, tmp_path, change)
    assert {each.code for each in told} == {"U818"}
    queries, keys = sorted(told, key=lambda each: "kv_a" in each.saw)
    assert f"the last {rope} rows of every {nope + rope} not permuted" in queries.saw
    assert f"the last {rope} rows of every {config['kv_lora_rank'] + rope} permuted once more" in keys.saw


def test_an_exchange_with_another_kind_in_another_layer_is_told(llama: Pair, tmp_path: Path) -> None:
    other = GATE.replace(".0.", ".1.")

    def change(state: State) -> None:
        state[UP], state[other] = state[other], state[UP]

    told = one(llama, tmp_path, change)
    assert told.code == "U815"
    assert f"with the base's {other}" in told.saw


def test_what_was_negated_or_shifted_is_not_called_random(llama: Pair, tmp_path: Path) -> None:
    told = one(llama, tmp_path, lambda state: state[UP].neg_())
    assert told.code == "U814"
    assert told.saw.endswith("it is the base's negated")
    told = one(llama, tmp_path / "more", lambda state: state.update({UP: state[UP].roll(1, 0)}))
    assert told.code == "U814"
    assert told.saw.endswith("unrelated or rearranged")


def rows_more(count: int, *, zeros: int) -> Change:
    def change(state: State) -> None:
        name = "model.embed_tokens.weight"
        state[name] = torch.cat([state[name], torch.randn(count, state[name].shape[1])])
        state[name][-zeros:] = 0

    return change


def test_rows_of_zeros_that_the_base_does_not_have_are_padding(llama: Pair, tmp_path: Path) -> None:
    assert found(llama, tmp_path, rows_more(60, zeros=60)) == []
    assert one(llama, tmp_path / "cut", rows_more(60, zeros=90)).code == "U803"


@pytest.mark.parametrize(("used", "rows", "is_padding"), [(300, 384, True), (300, 400, False)])
def test_rows_of_zeros_up_to_a_multiple_are_padding(
    llama: Pair, tmp_path: Path, used: int, rows: int, is_padding: bool
) -> None:
    def change(state: State) -> None:
        state["model.embed_tokens.weight"] = torch.cat([torch.randn(used, 48), torch.zeros(rows - used, 48)])

    told = found_by(values_tails.CHECKS, evidence_of(broken(llama[1], tmp_path / "broken", change)))
    assert [each.code for each in told] == ([] if is_padding else ["U803"])


@pytest.mark.parametrize("rate", [1e-4, 1e-3, 2e-2])
def test_a_fine_tune_at_any_sane_rate_is_healthy(llama: Pair, tmp_path: Path, rate: float) -> None:
    model = healthy_model("llama", torch.float32)
    train(model, steps=3, learning_rate=rate, seed=12).save_pretrained(tmp_path / "tuned")
    assert found((llama[0], tmp_path / "tuned"), tmp_path, lambda state: None) == []


@pytest.mark.parametrize("rate", [2e-2, 5e-2])
def test_training_from_weights_as_they_were_made_may_go_anywhere(tmp_path: Path, rate: float) -> None:
    torch.manual_seed(3)
    model = MAKERS["llama"]()
    model.save_pretrained(tmp_path / "base")
    trained(model, rate=rate, steps=6).save_pretrained(tmp_path / "tuned")
    told = found_by(CHECKS, evidence_of(tmp_path / "tuned", tmp_path / "base"))
    assert alarms(told) == []


@pytest.mark.parametrize("which", ["lora", "embeddings", "norms", "head", "rounded", "tokens"])
def test_parts_that_were_trained_alone_are_healthy(llama: Pair, tmp_path: Path, which: str) -> None:
    from safetensors.torch import load_file

    base = load_file(llama[0] / "model.safetensors")

    def change(state: State) -> None:
        torch.manual_seed(4)
        tuned = {name: tensor.clone() for name, tensor in state.items()}
        state |= {name: tensor.clone() for name, tensor in base.items()}
        if which == "lora":
            for name in [each for each in matrices(state) if "attn" in each]:
                rows, columns = state[name].shape
                added = torch.randn(rows, 4) @ torch.randn(4, columns)
                state[name] += 0.2 * added * state[name].norm() / added.norm()
        elif which == "rounded":
            state |= {name: tensor.bfloat16() for name, tensor in state.items()}
            state["lm_head.weight"] = tuned["lm_head.weight"].bfloat16()
        elif which == "tokens":
            rows = state["model.embed_tokens.weight"][-4:]
            rows.copy_(random_like(rows))
        else:
            part = {"embeddings": "embed", "norms": "norm", "head": "lm_head"}[which]
            state |= {name: tensor for name, tensor in tuned.items() if part in name}

    assert found(llama, tmp_path, change) == []


def test_biases_that_began_at_zero_may_grow(tmp_path: Path) -> None:
    pair = tuned("qwen2", tmp_path / "qwen2")

    def zero(state: State) -> None:
        for name in state:
            if name.endswith("bias"):
                state[name] *= 1e-3

    base = broken(pair[0], tmp_path / "base", zero)
    assert found((base, pair[1]), tmp_path, lambda state: None) == []


def test_small_biases_may_change_by_a_step_as_large_as_that_of_others(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    pair = tuned("qwen2", tmp_path / "qwen2")
    old = load_file(pair[0] / "model.safetensors")
    biases = [name for name in old if name.endswith("bias")]
    base = broken(pair[0], tmp_path / "base", lambda s: [s[name].mul_(0.06) for name in biases])
    assert found((base, pair[1]), tmp_path, lambda s: [s[n].sub_(0.94 * old[n]) for n in biases]) == []


def test_the_rows_that_turn_are_none_without_a_configuration_that_says_so() -> None:
    plain: dict[str, Any] = {"num_attention_heads": 4}
    assert not list(values_orders._latent_orders((64, 8), plain))
    assert not list(
        values_orders._latent_orders((64, 8), {**plain, "qk_rope_head_dim": 8, "kv_lora_rank": 0})
    )
