"""Rotary frequencies: recomputed as transformers computes them, compared within their rounding."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from specimens import State, codes, match_state, one, published, tiny_model
from unshard.errors import MatchError
from unshard.match.frequencies import compare_frequencies, rotary_variants

Folder = Callable[[str], Path]
States = Callable[[str], State]
NAME = "model.layers.0.self_attn.rotary_emb.inv_freq"

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.01 * i for i in range(32)],
    "long_factor": [2.0 + 0.1 * i for i in range(32)],
    "original_max_position_embeddings": 4096,
}
SCALINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn, its own betas": YARN | {"beta_fast": 16, "beta_slow": 2},
    "yarn, not truncated": YARN | {"truncate": False},
    "longrope": LONGROPE,
}


def config_of(scaling: dict[str, Any], theta: float, **more: object) -> dict[str, Any]:
    config: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": 256,
        "num_attention_heads": 4,
        "max_position_embeddings": 8192,
        "rope_theta": theta,
    }
    return config | ({"rope_scaling": scaling} if scaling else {}) | more


def from_transformers(config: dict[str, Any]) -> torch.Tensor:
    """Return the frequencies of a model of transformers, which computes them in float32."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    # A configuration of transformers writes into the dictionaries it is given.
    own = transformers.LlamaConfig(**deepcopy(config))
    frequencies: torch.Tensor = LlamaRotaryEmbedding(own).inv_freq
    return frequencies


def stored(values: torch.Tensor) -> np.ndarray:
    return np.asarray(values.double().numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("theta", [10000.0, 500000.0, 1e6])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_frequencies_of_transformers_are_recognised(scaling: str, theta: float, dtype: torch.dtype) -> None:
    config = config_of(SCALINGS[scaling], theta)
    frequencies = from_transformers(config).to(dtype)
    assert compare_frequencies(stored(frequencies), rotary_variants(config, NAME)).fits is True


@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_new_spelling_says_the_same(scaling: str) -> None:
    parameters = {"rope_type": "default", **SCALINGS[scaling], "rope_theta": 500000.0}
    frequencies = stored(from_transformers(config_of(SCALINGS[scaling], 500000.0)))
    config = {k: v for k, v in config_of({}, 1.0).items() if k != "rope_theta"} | {
        "rope_parameters": parameters
    }
    assert compare_frequencies(frequencies, rotary_variants(config, NAME)).fits is True


@pytest.mark.parametrize("scaling", [name for name in SCALINGS if name not in ("plain", "dynamic")])
def test_another_scaling_is_not_the_same(scaling: str) -> None:
    frequencies = stored(from_transformers(config_of({}, 500000.0)))
    config = config_of(SCALINGS[scaling], 500000.0)
    assert compare_frequencies(frequencies, rotary_variants(config, NAME)).fits is False


def test_the_long_factors_of_longrope_are_recognised() -> None:
    config = config_of(LONGROPE, 10000.0)
    plain = 10000.0 ** (-np.arange(32) / 32)
    variants = rotary_variants(config, NAME)
    assert compare_frequencies(plain / np.array(LONGROPE["long_factor"]), variants).fits is True


def test_dynamic_frequencies_may_have_grown_with_a_long_text() -> None:
    config = config_of({"rope_type": "dynamic", "factor": 2.0}, 10000.0)
    grown = 31234.5 ** (-np.arange(32) / 32)
    assert compare_frequencies(grown, rotary_variants(config, NAME)).fits is True
    shrunk = 9000.0 ** (-np.arange(32) / 32)
    assert compare_frequencies(shrunk, rotary_variants(config, NAME)).fits is False


def test_a_slightly_different_theta_is_seen_in_float32() -> None:
    frequencies = stored(from_transformers(config_of({}, 10001.0)))
    comparison = compare_frequencies(frequencies, rotary_variants(config_of({}, 10000.0), NAME))
    assert (comparison.fits, comparison.evidence) == (False, "32 frequencies of theta 10001")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_theta_that_values_imply_is_told(dtype: torch.dtype) -> None:
    frequencies = from_transformers(config_of({}, 500000.0)).to(dtype)
    comparison = compare_frequencies(stored(frequencies), rotary_variants(config_of({}, 10000.0), NAME))
    assert comparison.fits is False
    implied = float(comparison.evidence.rpartition(" ")[2])
    assert implied == pytest.approx(500000.0, rel=0.1)


def test_a_scale_that_values_imply_is_told() -> None:
    linear = from_transformers(config_of({"rope_type": "linear", "factor": 8.0}, 10000.0))
    comparison = compare_frequencies(stored(linear), rotary_variants(config_of({}, 10000.0), NAME))
    assert comparison.evidence == "32 frequencies of theta 10000, scaled by 1/8"


def test_garbage_is_told_as_garbage() -> None:
    noise = np.random.default_rng(0).standard_normal(32)
    comparison = compare_frequencies(noise, rotary_variants(config_of({}, 10000.0), NAME))
    assert comparison.evidence.startswith("32 frequencies that follow no single theta, from 0.1257 to ")


def test_rounding_to_bfloat16_stays_recognised_after_widening() -> None:
    widened = from_transformers(config_of(LLAMA3, 500000.0)).bfloat16().float()
    assert (
        compare_frequencies(stored(widened), rotary_variants(config_of(LLAMA3, 500000.0), NAME)).fits is True
    )


def test_only_part_of_a_head_may_turn() -> None:
    config = config_of({}, 10000.0, partial_rotary_factor=0.5)
    half = 10000.0 ** (-np.arange(16) / 16)
    assert compare_frequencies(half, rotary_variants(config, NAME)).fits is True


def test_the_number_of_frequencies_must_be_that_of_the_heads() -> None:
    eighth = 10000.0 ** (-np.arange(8) / 8)
    comparison = compare_frequencies(eighth, rotary_variants(config_of({}, 10000.0), NAME))
    assert (comparison.fits, comparison.evidence) == (False, "8 frequencies of theta 10000")


def test_kinds_of_attention_may_turn_differently() -> None:
    nested = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    config = {k: v for k, v in config_of({}, 1.0).items() if k != "rope_theta"} | {"rope_parameters": nested}
    for theta in (1e6, 10000.0):
        wanted = theta ** (-np.arange(32) / 32)
        assert compare_frequencies(wanted, rotary_variants(config, NAME)).fits is True


def test_pictures_turn_by_the_default_theta() -> None:
    wanted = 10000.0 ** (-np.arange(10) / 10)
    variants = rotary_variants(config_of({}, 1e6), "visual.rotary_pos_emb.inv_freq")
    assert compare_frequencies(wanted, variants).fits is True


def test_local_attention_may_have_a_theta_of_its_own() -> None:
    config = config_of({"rope_type": "linear", "factor": 8.0}, 1e6, rope_local_base_freq=10000.0)
    for wanted in (10000.0 ** (-np.arange(32) / 32), 1e6 ** (-np.arange(32) / 32) / 8):
        assert compare_frequencies(wanted, rotary_variants(config, NAME)).fits is True


def test_part_of_the_frequencies_may_stand_still() -> None:
    scaling = {"rope_type": "proportional", "partial_rotary_factor": 0.25}
    wanted = 10000.0 ** (-np.arange(32) / 32)
    wanted[8:] = 0
    assert compare_frequencies(wanted, rotary_variants(config_of(scaling, 10000.0), NAME)).fits is True


def test_a_scaling_of_tomorrow_cannot_be_checked() -> None:
    config = config_of({"rope_type": "wavelet", "factor": 2.0}, 10000.0)
    comparison = compare_frequencies(10000.0 ** (-np.arange(32) / 32), rotary_variants(config, NAME))
    assert (comparison.fits, comparison.evidence) == (None, "scaling of kind wavelet")


@pytest.mark.parametrize("settings", [{"factor": "4"}, {"factor": None}, {}, {"factor": 0}])
def test_a_scaling_without_its_numbers_cannot_be_checked(settings: dict[str, Any]) -> None:
    config = config_of({"rope_type": "yarn", **settings}, 10000.0)
    assert compare_frequencies(10000.0 ** (-np.arange(32) / 32), rotary_variants(config, NAME)).fits is None


@pytest.mark.parametrize(
    "more",
    [
        {"rope_theta": float("inf")},
        {"rope_theta": float("nan")},
        {"rope_theta": -1.0},
        {"rope_theta": "10000"},
        {"rope_theta": True},
        {"partial_rotary_factor": float("inf")},
        {"partial_rotary_factor": -3},
        {"num_attention_heads": 0},
        {"num_attention_heads": "4"},
        {"hidden_size": [256]},
        {"rope_scaling": {"rope_type": "yarn", "factor": 1e308, "original_max_position_embeddings": -5}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": -1}},
        {"rope_scaling": {"rope_type": "longrope", "short_factor": ["x"], "long_factor": [1.0]}},
        {"rope_scaling": {"rope_type": ["odd"], "factor": 2.0}},
        {"rope_scaling": [1, 2]},
    ],
)
def test_absurd_numbers_of_a_configuration_break_nothing(more: dict[str, Any]) -> None:
    config = config_of({}, 10000.0) | more
    comparison = compare_frequencies(7.0 ** (-np.arange(32) / 32), rotary_variants(config, NAME))
    assert comparison.fits is not True


@pytest.mark.parametrize("values", [[0.0] * 4, [float("nan")] * 4, [float("inf"), 1.0], [1.0], [-1.0, 0.5]])
def test_absurd_frequencies_break_nothing(values: list[float]) -> None:
    comparison = compare_frequencies(np.array(values), rotary_variants(config_of({}, 10000.0), NAME))
    assert comparison.fits is False
    assert comparison.evidence.startswith(f"{len(values)} frequencies ")


def with_frequencies(state: State, theta: float, dtype: torch.dtype = torch.float32) -> State:
    frequencies = (theta ** (-torch.arange(4, dtype=torch.float64) / 4)).to(dtype)
    return state | {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": frequencies.clone() for i in range(2)}


def test_frequencies_of_the_configuration_are_dropped_and_told(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    model = match_state(with_frequencies(state("llama"), 10000.0), base_folder("llama"), tmp_path)
    assert len(model.tensors) == 21
    told = one(model.findings, "U202")
    assert (told.subject, told.saw) == (f"{NAME} and 1 more", "theta 10000")
    assert next(d for d in model.decisions if d.source == NAME).reason == "the model computes it: theta 10000"


def test_frequencies_of_another_theta_stop_the_conversion(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    with pytest.raises(MatchError) as caught:
        match_state(with_frequencies(state("llama"), 500000.0), base_folder("llama"), tmp_path)
    saw = "saw 4 frequencies of theta 500000, expected 4 of theta 10000"
    assert str(caught.value) == (
        f"`model-0.pt` is not the model of the base `{base_folder('llama')}`: 2 tensors are not what the "
        f"configuration gives (`model.layers.0.self_attn.rotary_emb.inv_freq`: {saw}, "
        f"`model.layers.1.self_attn.rotary_emb.inv_freq`: {saw})\n\n"
        "hint: The checkpoint was trained with other rotary frequencies than the base's configuration gives, "
        "and would answer nonsense with these. Name the base that training started from, or correct "
        "rope_theta and rope_scaling in a copy of its config.json and name that copy with --base."
    )


def test_frequencies_that_cannot_be_checked_are_dropped_with_a_warning(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    config = (base_folder("llama") / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"rope_type": "default"', '"rope_type": "wavelet"'))
    (folder / "model.safetensors").write_bytes((base_folder("llama") / "model.safetensors").read_bytes())
    model = match_state(with_frequencies(state("llama"), 10000.0), folder, tmp_path)
    assert one(model.findings, "U203").saw == "scaling of kind wavelet"
    assert len(model.tensors) == 21


def test_frequencies_that_the_base_holds_are_written(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_bytes((base_folder("llama") / "config.json").read_bytes())
    save_file(with_frequencies(state("llama"), 10000.0), folder / "model.safetensors")
    assert len(match_state(with_frequencies(state("llama"), 10000.0), folder, tmp_path).tensors) == 23
    assert len(match_state(state("llama"), folder, tmp_path).tensors) == 21


def test_frequencies_that_only_an_index_lists_need_not_be_there(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    import json

    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_bytes((base_folder("llama") / "config.json").read_bytes())
    names = [*state("llama"), NAME]
    index = {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    model = match_state(state("llama"), folder, tmp_path)
    assert (len(model.tensors), codes(model.findings)) == (21, ["U204"])
    assert one(model.findings, "U204").saw == "the shapes of 22 of 22 tensors are not known"


def test_masks_of_old_models_are_dropped_if_they_are_masks(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    mask = torch.tril(torch.ones(300, 300, dtype=torch.uint8)).view(1, 1, 300, 300)
    old = state("gpt2") | {
        "transformer.h.0.attn.bias": mask,
        "transformer.h.1.attn.bias": mask.bool(),
        "transformer.h.0.attn.masked_bias": torch.tensor(-10000.0),
    }
    model = match_state(old, base_folder("gpt2"), tmp_path)
    assert len(model.tensors) == 28
    assert codes(model.findings) == ["U202", "U202", "U301"]


def test_a_mask_that_is_none_stops_the_conversion(base_folder: Folder, state: States, tmp_path: Path) -> None:
    mask = torch.tril(torch.ones(300, 300, dtype=torch.uint8)).view(1, 1, 300, 300)
    mask[0, 0, 7, 9] = 1
    with pytest.raises(MatchError) as caught:
        match_state(state("gpt2") | {"transformer.h.0.attn.bias": mask}, base_folder("gpt2"), tmp_path)
    (mismatch,) = caught.value.mismatches
    assert mismatch.saw == "causal mask that is none: element 2,109 is 1"


@pytest.mark.parametrize(("shape", "fits"), [((1, 128), True), ((128,), True), ((1, 127), True)])
def test_positions_are_recognised(
    shape: tuple[int, ...], fits: bool, base_folder: Folder, state: States, tmp_path: Path
) -> None:
    positions = torch.arange(shape[-1]).reshape(shape)
    old = state("encoder") | {"bert.embeddings.position_ids": positions}
    assert len(match_state(old, base_folder("encoder"), tmp_path).tensors) == 42
    with pytest.raises(MatchError):
        match_state(old | {"bert.embeddings.position_ids": positions + 1}, base_folder("encoder"), tmp_path)


def test_old_configurations_of_a_real_family_agree(tmp_path: Path) -> None:
    model = tiny_model("qwen3")
    frequencies = model.model.rotary_emb.inv_freq
    base = published(model, tmp_path / "base")
    old = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    assert len(match_state(old | {"model.rotary_emb.inv_freq": frequencies}, base, tmp_path).tensors) == len(
        old
    )


def test_tables_of_sines_are_dropped_with_a_warning(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    old = state("llama") | {"freqs_cis": torch.ones(8, 4, dtype=torch.complex64)}
    model = match_state(old, base_folder("llama"), tmp_path)
    assert one(model.findings, "U203").saw == "sines and cosines are not compared"


def test_frequencies_that_are_integers_are_none(base_folder: Folder, state: States, tmp_path: Path) -> None:
    with pytest.raises(MatchError) as caught:
        match_state(state("llama") | {NAME: torch.arange(4)}, base_folder("llama"), tmp_path)
    (mismatch,) = caught.value.mismatches
    assert (mismatch.kind, mismatch.saw) == ("value", "4 elements of int64")


def test_a_buffer_of_zeros_is_recognised(base_folder: Folder, state: States, tmp_path: Path) -> None:
    old = state("encoder") | {"bert.embeddings.token_type_ids": torch.zeros(1, 64, dtype=torch.int64)}
    assert len(match_state(old, base_folder("encoder"), tmp_path).tensors) == 42
