"""Numbers that are wrong by themselves: each is named with its count, and healthy ones are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from specimens import tiny_model
from unshard.checks import values_numbers, values_siblings, values_tails
from unshard.findings import Finding
from values_scene import State, alarms, broken, evidence_of, found_by, trained

CHECKS = (*values_numbers.CHECKS, *values_tails.CHECKS, *values_siblings.CHECKS)
UP = "model.layers.1.mlp.up_proj.weight"
NORM = "model.layers.1.input_layernorm.weight"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model: 21 tensors, of which `UP` has 2048 numbers."""
    folder = tmp_path_factory.mktemp("llama")
    trained(tiny_model("llama")).save_pretrained(folder)
    return folder


def found(folder: Path, scratch: Path, change: Callable[[State], object]) -> list[Finding]:
    return found_by(CHECKS, evidence_of(broken(folder, scratch / "broken", change)))


def one(folder: Path, scratch: Path, change: Callable[[State], object]) -> Finding:
    (only,) = found(folder, scratch, change)
    assert only.remedy
    return only


def put(name: str, *values: float) -> Callable[[State], object]:
    def change(state: State) -> None:
        state[name].view(-1)[: len(values)] = torch.tensor(values)

    return change


def test_a_trained_model_is_healthy(llama: Path) -> None:
    assert found_by(CHECKS, evidence_of(llama)) == []


def test_nan_and_infinity_are_counted_apart(llama: Path, tmp_path: Path) -> None:
    told = one(llama, tmp_path, put(UP, torch.nan, torch.inf, -torch.inf))
    assert (told.code, told.subject, told.saw) == ("U801", UP, "1 NaN and 2 infinite of 2,048 numbers")


def test_every_tensor_with_nan_is_in_one_finding(llama: Path, tmp_path: Path) -> None:
    def change(state: State) -> None:
        for name in (UP, NORM, "lm_head.weight"):
            put(name, torch.nan)(state)

    told = one(llama, tmp_path, change)
    assert told.subject == "3 tensors"
    assert all(name in told.saw for name in (UP, NORM, "lm_head.weight"))
    assert "1 NaN of" in told.saw


def test_a_mask_of_infinities_is_no_damage(llama: Path, tmp_path: Path) -> None:
    mask = torch.triu(torch.full((16, 16), -torch.inf), 1)
    assert found(llama, tmp_path, lambda state: state.update({"model.mask": mask})) == []
    told = one(llama, tmp_path, lambda state: state.update({"model.mask": torch.full((16, 16), torch.inf)}))
    assert told.code == "U801"


def test_a_matrix_of_zeros_is_told(llama: Path, tmp_path: Path) -> None:
    told = one(llama, tmp_path, lambda state: state[UP].zero_())
    assert (told.code, told.subject, told.saw) == ("U802", UP, "all of 2,048 numbers")


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.bias", "q_proj.lora_B.weight", "embeddings.position_embeddings"]
)
def test_zeros_where_models_begin_with_zeros_are_healthy(llama: Path, tmp_path: Path, name: str) -> None:
    shape = (64, 32) if "bias" not in name else (64,)
    assert found(llama, tmp_path, lambda state: state.update({name: torch.zeros(shape)})) == []


def test_one_norm_of_zeros_among_many_is_told(tmp_path: Path) -> None:
    model = trained(tiny_model("llama"))
    model.save_pretrained(tmp_path / "model")

    def four_norms(state: State) -> None:
        for number in range(2, 5):
            state[NORM.replace("1", str(number))] = state[NORM] * number
        state[NORM].zero_()

    assert one(tmp_path / "model", tmp_path, four_norms).subject == NORM

    def all_zero(state: State) -> None:
        four_norms(state)
        for name in state:
            if "input_layernorm" in name:
                state[name].zero_()

    assert found(tmp_path / "model", tmp_path, all_zero) == []  # as Gemma's are when it is made


def test_a_constant_matrix_is_told(llama: Path, tmp_path: Path) -> None:
    told = one(llama, tmp_path, lambda state: state[UP].fill_(0.5))
    assert (told.code, told.saw) == ("U804", "0.5 everywhere")
    assert found(llama, tmp_path, lambda state: state[NORM].fill_(1.0)) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_flipped_bit_of_an_exponent_is_told(tmp_path: Path, dtype: torch.dtype) -> None:
    tiny_model("llama", dtype).save_pretrained(tmp_path / "model")

    def flip(state: State) -> None:
        bits = state[UP].view(torch.int32 if dtype == torch.float32 else torch.int16)
        bits[3, 5] ^= 1 << (30 if dtype == torch.float32 else 14)

    told = one(tmp_path / "model", tmp_path, flip)
    assert (told.code, told.subject) == ("U805", UP)
    assert told.saw.startswith("1 of 2,048 numbers beyond 16,777,216")


def test_a_number_far_above_all_others_is_told(llama: Path, tmp_path: Path) -> None:
    told = one(llama, tmp_path, put(UP, 9000.0))
    assert (told.code, told.saw) == (
        "U805",
        "1 of 2,048 numbers 256 times larger than all others, up to 9e+03",
    )
    assert found(llama, tmp_path, put(UP, 3.0, 20.0)) == []  # outliers as real models have them


def test_memory_that_nobody_initialised_is_told(llama: Path, tmp_path: Path) -> None:
    def counters(state: State) -> None:
        state[UP].view(torch.int32).copy_(torch.arange(2048).reshape(state[UP].shape))

    told = one(llama, tmp_path, counters)
    assert (told.code, told.saw) == ("U805", "2,047 of 2,048 numbers too small to be normal")


def test_float16_may_hold_numbers_that_are_not_normal(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2e-3)
    model.half().save_pretrained(tmp_path)
    assert found_by(CHECKS, evidence_of(tmp_path)) == []


def test_a_copy_of_another_layer_is_told(llama: Path, tmp_path: Path) -> None:
    other = UP.replace("1", "0")
    told = one(llama, tmp_path, lambda state: state.update({other: state[UP].clone()}))
    assert (told.code, told.saw) == ("U806", f"{other} = {UP}")


def test_tied_weights_and_tables_are_no_copies(llama: Path, tmp_path: Path) -> None:
    table = torch.randn(64, 32)

    def change(state: State) -> None:
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
        state |= {f"{side}.embed_positions.weight": table.clone() for side in ("encoder", "decoder")}
        state |= {f"h.{n}.attn.mask2": torch.tril(torch.ones(64, 64)) for n in range(2)}

    assert found(llama, tmp_path, change) == []


def test_a_scale_unlike_that_of_other_layers_is_told(llama: Path, tmp_path: Path) -> None:
    def change(state: State) -> None:
        for number in range(2, 8):
            state[UP.replace("1", str(number))] = torch.randn(64, 32) * 0.2
        state[UP] *= 1024

    told = one(llama, tmp_path, change)
    assert (told.code, told.subject) == ("U807", UP)
    assert told.saw == "half of the numbers are below 256, those of its kind in other layers below 0.25"


def test_a_scale_that_training_does_not_make_is_told(llama: Path, tmp_path: Path) -> None:
    told = one(llama, tmp_path, lambda state: state["lm_head.weight"].mul_(1e-12))
    assert (told.code, told.subject) == ("U807", "lm_head.weight")
    assert "outside of what training makes" in told.saw


def test_scales_of_siblings_may_differ_tenfold(llama: Path, tmp_path: Path) -> None:
    def change(state: State) -> None:
        for number in range(2, 8):
            state[UP.replace("1", str(number))] = torch.randn(64, 32) * (0.01 if number == 2 else 0.2)

    assert found(llama, tmp_path, change) == []


def test_a_file_that_was_cut_and_filled_up_is_told(llama: Path, tmp_path: Path) -> None:
    told = one(llama, tmp_path, lambda state: state[UP].view(-1)[900:].zero_())
    assert (told.code, told.subject, told.saw) == (
        "U803",
        UP,
        f"{UP} is zero from element 900 of 2,048 to its end",
    )
    assert found(llama, tmp_path, lambda state: state[UP].view(-1)[1100:].zero_()) == []  # too short to tell
    assert found(llama, tmp_path, lambda state: state[UP].view(-1)[100:1900].zero_()) == []  # not the end


def test_a_long_tail_of_zeros_is_found_to_the_element(llama: Path, tmp_path: Path) -> None:
    long = torch.randn(400, 1000)
    long.view(-1)[123_457:] = 0
    long.view(-1)[5] = 0  # a zero that is no part of the tail
    told = one(llama, tmp_path, lambda state: state.update({"model.extra.weight": long}))
    assert "from element 123,457 of 400,000" in told.saw


def test_rows_of_tokens_that_do_not_exist_may_be_zero(llama: Path, tmp_path: Path) -> None:
    def rows(count: int) -> Callable[[State], object]:
        def change(state: State) -> None:
            wide = torch.randn(1000, 64)
            wide[-count:] = 0
            state["model.embed_tokens.weight"] = wide

        return change

    assert found(llama, tmp_path, rows(90)) == []
    assert one(llama, tmp_path, rows(500)).code == "U803"


def test_a_model_as_it_was_made_looks_untrained_and_that_is_no_problem(tmp_path: Path) -> None:
    import transformers

    from specimens import MAKERS

    for family in ("llama", "gemma2", "mixtral", "gpt2", "gemma3"):
        torch.manual_seed(0)
        model: transformers.PreTrainedModel = MAKERS[family]()
        model.save_pretrained(tmp_path / family)
        told = found_by(CHECKS, evidence_of(tmp_path / family))
        assert alarms(told) == []
        assert [each.code for each in told] == (["U808"] if family != "gpt2" else [])


def test_nothing_is_said_before_tensors_were_read(llama: Path, tmp_path: Path) -> None:
    folder = broken(llama, tmp_path / "broken", lambda state: state[UP].zero_())
    assert found_by(CHECKS, evidence_of(folder, is_deep=False)) == []
