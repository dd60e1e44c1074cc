"""An adapter of which files tell more than is there is refused; what else lies beside it is told."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
from safetensors.torch import load_file, save_file

from command_line import Unshard
from peft_models import Scene, make_random, matched_in, write_scene
from tiny_models import tiny_model
from unshard.errors import MatchError
from unshard.match import Choices
from unshard.match.kept_adapter import keep_adapter
from unshard.readers import open_checkpoint

LISTED = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return write_scene(tmp_path_factory.mktemp("complete"), "llama", target_modules=LISTED, use_dora=True)


def changed(made: Scene, folder: Path, without: tuple[str, ...] = (), **settings: Any) -> Path:
    """Return a copy of the published adapter without some tensors, and with other settings."""
    folder.mkdir()
    config = json.loads((made.adapter / "adapter_config.json").read_bytes())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **settings}))
    state = load_file(made.adapter / "adapter_model.safetensors")
    kept = {name: tensor for name, tensor in state.items() if not any(word in name for word in without)}
    assert len(kept) < len(state) or not without
    save_file(kept, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("without", ["magnitude", "layers.1.mlp.down_proj.lora_magnitude"])
def test_dora_without_magnitudes_is_not_merged_as_lora(made: Scene, tmp_path: Path, without: str) -> None:
    place = changed(made, tmp_path / "adapter", (without,))
    with pytest.raises(MatchError, match="magnitudes beside it, as `use_dora`") as caught:
        matched_in(place, made.base)
    assert caught.value.code == "U253"
    with pytest.raises(MatchError, match="magnitudes"):
        keep_adapter(open_checkpoint(place), None, Choices(adapter="keep"))


def test_a_listed_module_of_which_no_layer_has_an_adapter_is_missing(made: Scene, tmp_path: Path) -> None:
    place = changed(made, tmp_path / "adapter", (".v_proj.", ".down_proj."))
    with pytest.raises(MatchError) as caught:
        matched_in(place, made.base)
    assert caught.value.code == "U253"
    assert {each.name for each in caught.value.mismatches} == {
        "model.layers.0.self_attn.v_proj",
        "model.layers.0.mlp.down_proj",
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": [*LISTED, "c_attn", "query_key_value"]},  # no module has these names
        {"target_modules": [*LISTED, "o_proj"], "layers_to_transform": [0, 1]},
        {"target_modules": [*LISTED, "o_proj"], "exclude_modules": ["o_proj"]},
        {"target_modules": r".*\.(q|v|o)_proj|.*down_proj"},
        {"target_modules": "all-linear"},
    ],
)
def test_lists_that_something_else_explains_are_merged(
    made: Scene, tmp_path: Path, settings: dict[str, Any]
) -> None:
    model = matched_in(changed(made, tmp_path / "adapter", **settings), made.base)
    assert "U251" in {told.code for told in model.findings}


def test_experts_are_one_module_in_memory_and_are_not_missed(tmp_path: Path) -> None:
    made = write_scene(tmp_path, "mixtral", target_modules=["q_proj"])
    assert any(name.endswith("experts.0.w1.weight") for name in made.merged)
    place = changed(made, tmp_path / "listed", target_modules=["q_proj", "w1"])
    assert "U251" in {told.code for told in matched_in(place, made.base).findings}


def test_an_adapter_in_a_folder_of_its_name_is_told_and_can_be_taken(
    made: Scene, tmp_path: Path, unshard: Unshard
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"])
        wrapped = peft.get_peft_model(tiny_model("llama"), config)
        wrapped.add_adapter("second one", config)
        make_random(wrapped)
        wrapped.save_pretrained(tmp_path / "run/adapter")
    second = tmp_path / "run/adapter/second one"
    for place in (tmp_path / "run/adapter", tmp_path / "run"):
        (told,) = [f for f in open_checkpoint(place).findings if f.code == "U262"]
        assert told.saw == "the adapter at its top was taken; `second one/` holds another one"
        assert told.remedy == f"To have that one: unshard convert '{second}' OUT --base BASE"
    assert "U262" not in {f.code for f in open_checkpoint(second).findings}
    said = unshard("convert", tmp_path / "run", tmp_path / "out", "--base", made.base)
    assert "U262" in said.words


def test_an_alpha_that_no_file_tells_can_be_named_to_check_as_to_convert(
    made: Scene, tmp_path: Path, unshard: Unshard
) -> None:
    shutil.copy(made.full / "model.pt", tmp_path)
    said = unshard("check", tmp_path, "--base", made.base)
    assert "U252" in said.words
    said = unshard("check", tmp_path, "--base", made.base, "--lora-alpha", "8")
    assert said.code == 0
    assert "U252" not in said.words
    assert "alpha 8 (--lora-alpha)" in said.words
