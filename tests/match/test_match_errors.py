"""Errors: everything that does not fit is named at once, with its likely cause and the next action."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from specimens import State, match_state, published, state_of, tiny_model
from unshard.errors import MatchError

Folder = Callable[[str], Path]
States = Callable[[str], State]
EMBED = "model.embed_tokens.weight"


def refused(state: State, base: Path, scratch: Path) -> MatchError:
    with pytest.raises(MatchError) as caught:
        match_state(state, base, scratch)
    return caught.value


def test_missing_and_unexpected_tensors_are_told_together(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    broken = state("llama") | {"model.extra.weight": torch.ones(3)}
    for name in ("model.norm.weight", "model.layers.0.mlp.up_proj.weight"):
        del broken[name]
    broken["model.layers.1.mlp.up_proj.weight"] = torch.ones(64, 16)
    error = refused(broken, base_folder("llama"), tmp_path)
    assert error.message == (
        f"`model-0.pt` is not the model of the base `{base_folder('llama')}`: 2 tensors are missing "
        "(`model.layers.0.mlp.up_proj.weight`: expected (64, 32), `model.norm.weight`: expected (32,)); "
        "1 tensor is unknown to it (`model.extra.weight`: saw (3,)); "
        "1 tensor is of another shape (`model.layers.1.mlp.up_proj.weight`: saw (64, 16), expected (64, 32))"
    )
    assert [(m.kind, m.name) for m in error.mismatches] == [
        ("missing", "model.layers.0.mlp.up_proj.weight"),
        ("missing", "model.norm.weight"),
        ("unexpected", "model.extra.weight"),
        ("shape", "model.layers.1.mlp.up_proj.weight"),
    ]


def test_the_sentence_shows_three_and_the_error_keeps_all(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    few = {name: tensor for name, tensor in state("llama").items() if "mlp" not in name}
    error = refused(few, base_folder("llama"), tmp_path)
    assert "6 tensors are missing" in error.message
    assert "and 3 more" in error.message
    assert len(error.mismatches) == 6


def test_flat_parameters_of_one_rank_are_recognised(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    flat = {
        name: tensor.reshape(-1)[: tensor.numel() // 2].clone() for name, tensor in state("llama").items()
    }
    error = refused(flat, base_folder("llama"), tmp_path)
    assert error.hint == (
        "21 tensors are rank-local flat parameters, not full tensors: 12,368 of 24,736 elements. The model "
        "was saved without gathering its parameters, and the rest is not in this file. Look for a full or "
        "sharded checkpoint of the same step (pytorch_model_fsdp_0, *.distcp, the files of the other "
        "ranks), or save with StateDictType.FULL_STATE_DICT."
    )


def test_empty_placeholders_are_recognised(base_folder: Folder, state: States, tmp_path: Path) -> None:
    empty = {name: torch.empty(0) for name in state("llama")}
    error = refused(empty, base_folder("llama"), tmp_path)
    assert str(error.hint).startswith(
        "21 tensors are empty placeholders (torch.Size([0])): 0 of 24,736 elements."
    )


def test_one_empty_norm_is_recognised(base_folder: Folder, state: States, tmp_path: Path) -> None:
    broken = state("llama") | {"model.norm.weight": torch.empty(0)}
    error = refused(broken, base_folder("llama"), tmp_path)
    assert str(error.hint).startswith("1 tensor is empty placeholders (torch.Size([0])): 0 of 32 elements.")


def test_whole_units_in_one_vector_are_recognised(base_folder: Folder, state: States, tmp_path: Path) -> None:
    units = {"_flat_param": torch.ones(10), "model.layers.0._flat_param": torch.ones(10)}
    error = refused(units, base_folder("llama"), tmp_path)
    assert str(error.hint).startswith(
        "`_flat_param` is a whole FSDP unit in one vector, without the names and shapes of its parameters"
    )


def test_a_base_of_another_size_is_named(tmp_path: Path, state: States) -> None:
    import transformers

    from specimens import SIZES

    wide = transformers.LlamaConfig(**{**SIZES, "hidden_size": 64, "num_hidden_layers": 3})
    base = published(transformers.LlamaForCausalLM(wide), tmp_path / "base")
    error = refused(state("llama"), base, tmp_path)
    assert error.hint == (
        "The base is of another size: the checkpoint has 2 layers of width 32 (64 inside), 96 tokens; the "
        "base has 3 layers of width 64 (64 inside), 96 tokens. Name the model that training started from "
        "with --base."
    )


def test_a_base_of_another_size_is_told_from_config_json_alone(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    text = (base_folder("llama") / "config.json").read_text()
    (tmp_path / "base" / "config.json").write_text(text.replace('"hidden_size": 32', '"hidden_size": 48'))
    error = refused(state("llama"), tmp_path / "base", tmp_path)
    assert [(m.saw, m.expected) for m in error.mismatches] == [
        ("hidden_size 32", "hidden_size 48, as config.json says")
    ]


def test_a_base_of_another_family_is_named(base_folder: Folder, state: States, tmp_path: Path) -> None:
    error = refused(state("llama"), base_folder("gpt2"), tmp_path)
    assert error.hint == (
        "The base is of another family: the checkpoint is Llama-like (Llama, Mistral, SmolLM, Yi), the "
        "base is GPT-2-like. Name the model that training started from with --base."
    )


def test_experts_that_nothing_takes_apart_are_explained(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    base = shutil.copytree(base_folder("mixtral"), tmp_path / "base")
    config = json.loads((base / "config.json").read_bytes())
    config |= {"model_type": "of_their_own", "architectures": ["OfTheirOwnForCausalLM"]}
    (base / "config.json").write_text(json.dumps(config))
    assert refused(state("mixtral"), base, tmp_path).hint == (
        "`model.layers.0.mlp.experts.gate_up_proj` holds all experts of a layer in one tensor, as "
        "transformers 5 has them in memory; the base has one tensor per expert, and nothing tells how models "
        'of type `of_their_own` are taken apart. Try pip install -U "unshard[hf]": transformers may know it; '
        "or save with save_pretrained."
    )


def test_published_experts_beside_their_base_are_a_model(base_folder: Folder, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    hub = load_file(base_folder("mixtral") / "model.safetensors")
    assert len(match_state(dict(hub), base_folder("mixtral"), tmp_path).tensors) == len(hub)


def test_a_head_for_another_task_is_explained(base_folder: Folder, state: States, tmp_path: Path) -> None:
    classifier = state("llama") | {"score.weight": torch.ones(2, 32)}
    del classifier["lm_head.weight"]
    error = refused(classifier, base_folder("llama-tied"), tmp_path)
    assert error.hint == (
        "`score.weight` is a head for another task than the base's. Name a base whose config.json "
        "describes what was trained (its architectures, and labels where it has some)."
    )


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("model.layers.0.mlp.up_proj.weight.absmax", "its quant_state is missing"),
        ("model.layers.0.mlp.up_proj.SCB", "is float32, not numbers that `.*SCB` scales"),
        ("model.layers.0.mlp.up_proj.qweight", "its scales is missing"),
        ("model.layers.0.mlp.up_proj.weight_scale_inv", "is float32, not numbers that"),
    ],
)
def test_halves_of_quantised_weights_are_refused_by_name(
    name: str, missing: str, base_folder: Folder, state: States, tmp_path: Path
) -> None:
    with pytest.raises(MatchError, match=missing):
        match_state(state("llama") | {name: torch.ones(4)}, base_folder("llama"), tmp_path)


def test_a_tensor_without_elements_in_the_model_itself_is_no_fault(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = tiny_model("llama")
    base = published(model, tmp_path / "base")
    whole = load_file(base / "model.safetensors") | {"model.nothing.weight": torch.empty(0, 4)}
    save_file(whole, base / "model.safetensors")
    assert (
        len(
            match_state(state_of(model) | {"model.nothing.weight": torch.empty(0, 4)}, base, tmp_path).tensors
        )
        == 22
    )


def test_an_empty_checkpoint_lacks_everything(base_folder: Folder, tmp_path: Path) -> None:
    assert len(refused({}, base_folder("llama"), tmp_path).mismatches) == 21
