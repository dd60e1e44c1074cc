"""Dtypes: as the base, tensor by tensor; only floating parameters are ever cast; all of it is told."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from specimens import (
    State,
    base_of,
    bytes_of,
    casts,
    checkpoint_of,
    codes,
    match_state,
    matched,
    one,
    published,
    state_of,
    tiny_model,
)
from unshard.errors import MatchError, OptionError

Folder = Callable[[str], Path]
States = Callable[[str], State]
NORM = "model.norm.weight"


@pytest.fixture(scope="session")
def half_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in bfloat16 whose last norm is float32."""
    folder = published(tiny_model("llama", torch.bfloat16), tmp_path_factory.mktemp("half"))
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {NORM: weights[NORM].float()}, folder / "model.safetensors")
    return folder


def config_only(folder: Path, base: Path, **changes: object) -> Path:
    """Write a folder that holds nothing but a configuration; None removes a key."""
    folder.mkdir()
    config = json.loads((base / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def test_every_tensor_gets_the_dtype_of_the_base(half_base: Path, state: States, tmp_path: Path) -> None:
    model = match_state(state("llama"), half_base, tmp_path)
    assert {str(t.dtype) for n, t in model.tensors.items() if n != NORM} == {"bfloat16"}
    assert str(model.tensors[NORM].dtype) == "float32"
    told = one(model.findings, "U401")
    assert (told.subject, told.saw) == ("20 of 21 tensors", "float32 becomes bfloat16")
    assert next(d for d in model.decisions if d.source == "lm_head.weight").reason == (
        "cast from float32 to bfloat16"
    )


def test_a_cast_gives_torchs_bits(half_base: Path, state: States, tmp_path: Path) -> None:
    model = match_state(state("llama"), half_base, tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    assert (
        bytes_of(model.tensors[name]) == state("llama")[name].bfloat16().view(torch.uint8).numpy().tobytes()
    )


def test_keep_leaves_everything_and_config_json_follows(
    half_base: Path, state: States, tmp_path: Path
) -> None:
    model = match_state(state("llama"), half_base, tmp_path, "keep")
    assert casts(model) == []
    assert model.config_edits == {"dtype": "float32"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_named_dtype_is_that_of_all_parameters_and_of_config_json(
    dtype: str, base_folder: Folder, state: States, tmp_path: Path
) -> None:
    model = match_state(state("llama"), base_folder("llama"), tmp_path, dtype)
    assert {str(tensor.dtype) for tensor in model.tensors.values()} == {dtype}
    assert model.config_edits == {"dtype": dtype}


def test_the_old_spelling_of_the_key_is_kept(base_folder: Folder, state: States, tmp_path: Path) -> None:
    base = config_only(tmp_path / "base", base_folder("llama"), dtype=None, torch_dtype="float32")
    assert match_state(state("llama"), base, tmp_path, "float16").config_edits == {"torch_dtype": "float16"}


@pytest.mark.parametrize(
    ("version", "key"),
    [("4.31.0", "torch_dtype"), ("4.56.1", "dtype"), ("5.0", "dtype"), (None, "torch_dtype")],
)
def test_a_missing_key_is_spelled_as_its_writer_would(
    version: str | None, key: str, base_folder: Folder, state: States, tmp_path: Path
) -> None:
    base = config_only(tmp_path / "base", base_folder("llama"), dtype=None, transformers_version=version)
    assert match_state(state("llama"), base, tmp_path, "float16").config_edits == {key: "float16"}
    assert match_state(state("llama"), base, tmp_path, "float32").config_edits == {}


def test_without_weights_of_the_base_its_configuration_tells(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    base = config_only(tmp_path / "base", base_folder("llama"), dtype="bfloat16")
    model = match_state(state("llama"), base, tmp_path)
    assert {str(tensor.dtype) for tensor in model.tensors.values()} == {"bfloat16"}


def test_without_any_word_on_dtypes_nothing_is_cast(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    base = config_only(tmp_path / "base", base_folder("llama"), dtype=None)
    half = {name: tensor.bfloat16() for name, tensor in state("llama").items()}
    model = match_state(half, base, tmp_path)
    assert casts(model) == []
    assert model.config_edits == {"dtype": "bfloat16"}


def test_integers_and_buffers_are_never_cast(base_folder: Folder, state: States, tmp_path: Path) -> None:
    counted = state("llama") | {
        "model.steps": torch.tensor(3),
        "model.mask": torch.ones(3, dtype=torch.bool),
        "model.layers.0.mlp.gate.e_score_correction_bias": torch.ones(4),
    }
    base = config_only(tmp_path / "base", base_folder("llama"))
    assert set(counted) - set(casts(match_state(counted, base, tmp_path, "float16"))) == {
        "model.steps",
        "model.mask",
        "model.layers.0.mlp.gate.e_score_correction_bias",
    }


def test_nested_configurations_name_the_dtype_of_their_tensors(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    parts = json.loads((base_folder("gemma3") / "config.json").read_text())
    nested = {key: parts[key] | {"torch_dtype": "float32"} for key in ("text_config", "vision_config")}
    base = config_only(tmp_path / "base", base_folder("gemma3"), **nested)
    save_file(load_file(base_folder("gemma3") / "model.safetensors"), base / "model.safetensors")
    assert match_state(state("gemma3"), base, tmp_path, "bfloat16").config_edits == {
        "dtype": "bfloat16",
        "text_config.torch_dtype": "bfloat16",
        "vision_config.torch_dtype": "bfloat16",
    }


def test_a_dtype_that_means_nothing_is_refused(base_folder: Folder, state: States, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="saw int8, expected base, keep, float32, bfloat16, float16"):
        match_state(state("llama"), base_folder("llama"), tmp_path, "int8")


def test_float8_is_kept_and_never_cast(base_folder: Folder, state: States, tmp_path: Path) -> None:
    small = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in state("llama").items()}
    base = config_only(tmp_path / "base", base_folder("llama"))
    assert casts(match_state(small, base, tmp_path, "keep")) == []
    with pytest.raises(MatchError) as caught:
        match_state(small, base_folder("llama"), tmp_path)
    assert {(m.kind, m.saw, m.expected) for m in caught.value.mismatches} == {
        ("dtype", "float8_e4m3fn", "float32")
    }
    assert "numbers of float8 mean nothing without their scales" in str(caught.value)


def test_integers_where_the_base_has_floats_are_refused(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    wrong = state("llama")
    wrong[NORM] = torch.ones(32, dtype=torch.int64)
    with pytest.raises(MatchError) as caught:
        match_state(wrong, base_folder("llama"), tmp_path)
    assert [(m.kind, m.name) for m in caught.value.mismatches] == [("dtype", NORM)]


def test_training_state_of_a_quantised_base_becomes_a_plain_model(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    base = config_only(tmp_path / "base", base_folder("llama"), quantization_config={"quant_method": "fp8"})
    up = "model.layers.0.mlp.up_proj.weight"
    weights = state("llama")
    scaled = weights | {up: weights[up].to(torch.float8_e4m3fn), f"{up}_scale_inv": torch.ones(1, 1)}
    save_file(scaled, base / "model.safetensors")
    model = match_state(state("llama"), base, tmp_path)
    assert str(model.tensors[up].dtype) == "float32"
    assert model.config_edits == {"quantization_config": None}


def test_a_quantised_model_stays_whole_beside_its_own_base(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    base = config_only(tmp_path / "base", base_folder("llama"), quantization_config={"quant_method": "fp8"})
    up = "model.layers.0.mlp.up_proj.weight"
    weights = state("llama")
    scaled = weights | {up: weights[up].to(torch.float8_e4m3fn), f"{up}_scale_inv": torch.ones(1, 1)}
    save_file(scaled, base / "model.safetensors")
    model = match_state(scaled, base, tmp_path)
    assert (set(model.tensors), casts(model), model.config_edits) == (set(scaled), [], {})
    plain = match_state(scaled, base, tmp_path, "float16")
    assert (set(plain.tensors), plain.config_edits["quantization_config"]) == (set(weights), None)


@pytest.mark.parametrize(
    "packed",
    [
        {"weight": torch.zeros(4, 1, dtype=torch.uint8), "weight.absmax": torch.ones(2)},
        {
            "qweight": torch.zeros(4, 8, dtype=torch.int32),
            "qzeros": torch.zeros(1, 8),
            "scales": torch.ones(1, 8),
        },
        {"weight_packed": torch.zeros(4, 8, dtype=torch.int32), "weight_scale": torch.ones(4)},
    ],
    ids=["bitsandbytes", "gptq", "compressed-tensors"],
)
def test_a_packed_base_tells_the_names_of_a_plain_model(
    packed: State, base_folder: Folder, state: States, tmp_path: Path
) -> None:
    settings = {"quant_method": "any"}
    base = config_only(
        tmp_path / "base", base_folder("llama"), quantization_config=settings, dtype="bfloat16"
    )
    stem = "model.layers.0.mlp.up_proj."
    weights = {name: tensor for name, tensor in state("llama").items() if not name.startswith(stem)}
    save_file(weights | {stem + name: tensor for name, tensor in packed.items()}, base / "model.safetensors")
    model = match_state(state("llama"), base, tmp_path)
    assert set(model.tensors) == set(state("llama"))
    assert str(model.tensors[f"{stem}weight"].dtype) == "bfloat16"
    assert model.config_edits == {"dtype": "float32", "quantization_config": None}


def test_a_quantised_model_with_only_its_configuration_stays_whole(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    settings = {"quant_method": "fp8"}
    base = config_only(
        tmp_path / "base", base_folder("llama"), quantization_config=settings, dtype="bfloat16"
    )
    up = "model.layers.0.mlp.up_proj.weight"
    weights = state("llama")
    scaled = weights | {up: weights[up].to(torch.float8_e4m3fn), f"{up}_scale_inv": torch.ones(1, 1)}
    model = match_state(scaled, base, tmp_path)
    assert casts(model) == []
    assert "quantization_config" not in model.config_edits


@pytest.mark.parametrize(
    ("training", "dtype", "told"),
    [
        ({"pure_bf16": "True"}, torch.float32, ["U404"]),
        ({"pure_bf16": "True"}, torch.bfloat16, []),
        ({"use_fp16": "True"}, torch.bfloat16, ["U404"]),
        ({"use_fp16": "True"}, torch.float16, []),
        ({"use_fp16": "True", "mixed_precision": "True"}, torch.float32, []),
        ({"pure_bf16": "False", "mixed_precision": "True"}, torch.float32, []),
    ],
)
def test_a_precision_of_training_that_the_tensors_contradict_is_told(
    training: dict[str, str], dtype: torch.dtype, told: list[str], tmp_path: Path
) -> None:
    state = state_of(tiny_model("llama", dtype))
    base = published(tiny_model("llama", dtype), tmp_path / "base")
    checkpoint = checkpoint_of(state, tmp_path / "run", training=training)
    assert codes(matched(checkpoint, base_of(base, checkpoint)).findings) == told
