"""Loading: the model in memory is bit for bit the one that was trained, or it is refused by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tiny_models import (
    FAMILIES,
    as_matched,
    describe_folder,
    logits_of,
    same_bits,
    side_files_of,
    tiny_model,
    write_folder,
)
from unshard.errors import DamagedFileError, InferenceError, OptionError
from unshard.inference.architectures import load_config
from unshard.inference.loading import LoadedModel, load_model
from unshard.plan import SideFile

TOKENS = torch.tensor([[5, 17, 400, 33, 8, 514, 12]])


def load_folder(folder: Path, tensors: Any = None, **options: Any) -> LoadedModel:
    options = {"name": str(folder), "dtype": "base", "device": "cpu", "device_map": None, **options}
    cast = None if options["dtype"] == "base" else options["dtype"]
    matched = as_matched(describe_folder(folder) if tensors is None else tensors, dtype=cast)
    return load_model(matched, side_files_of(folder), **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_are_bit_for_bit_those_of_the_trained_model(family: str, tmp_path: Path) -> None:
    trained = tiny_model(family)
    loaded = load_folder(write_folder(trained, tmp_path)).model
    assert type(loaded) is type(trained)
    assert same_bits(logits_of(loaded, TOKENS), logits_of(trained, TOKENS))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_and_buffer_is_the_trained_models_own(family: str, tmp_path: Path) -> None:
    trained = tiny_model(family, torch.bfloat16)
    loaded = load_folder(write_folder(trained, tmp_path)).model
    expected = {**trained.state_dict(), **dict(trained.named_buffers())}
    actual = {**loaded.state_dict(), **dict(loaded.named_buffers())}
    assert actual.keys() == expected.keys()
    assert not [name for name, tensor in actual.items() if tensor.is_meta]
    parameters = dict(loaded.named_parameters())
    assert not [name for name in parameters if not same_bits(actual[name], expected[name])]
    assert not [p for p in parameters.values() if p.requires_grad]
    assert not loaded.training


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gemma2", "gpt2"])
def test_buffers_that_no_file_holds_are_computed(family: str, tmp_path: Path) -> None:
    trained = tiny_model(family)
    loaded = load_folder(write_folder(trained, tmp_path)).model
    expected = dict(trained.named_buffers())
    assert all(same_bits(buffer, expected[name]) for name, buffer in loaded.named_buffers())


def test_experts_are_loaded_from_the_names_that_hubs_use(tmp_path: Path) -> None:
    folder = write_folder(tiny_model("mixtral"), tmp_path)
    assert any(".experts.3." in name for name in describe_folder(folder))
    assert any(name.endswith("experts.gate_up_proj") for name in load_folder(folder).model.state_dict())


def test_tied_weights_are_one_tensor(tmp_path: Path) -> None:
    folder = write_folder(tiny_model("llama-tied"), tmp_path)
    assert "lm_head.weight" not in describe_folder(folder)
    model = load_folder(folder).model
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_a_side_file_that_was_made_goes_before_the_one_on_disk(tmp_path: Path) -> None:
    folder = write_folder(tiny_model("llama-tied"), tmp_path)
    tensors = describe_folder(folder)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    config = json.loads((folder / "config.json").read_text())
    content = json.dumps({**config, "tie_word_embeddings": False}).encode()
    files = [SideFile("config.json", content, None, "base, 1 key edited")]
    model = load_model(
        as_matched(tensors), files, name="untied", dtype="base", device="cpu", device_map=None
    ).model
    assert model.config.tie_word_embeddings is False
    assert model.lm_head.weight is not model.model.embed_tokens.weight


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_cast_gives_what_torch_gives(dtype: str, tmp_path: Path) -> None:
    trained = tiny_model("llama")
    folder = write_folder(trained, tmp_path)
    loaded = load_folder(folder, dtype=dtype).model
    expected = trained.to(getattr(torch, dtype)).state_dict()
    assert all(same_bits(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    assert loaded.dtype == loaded.config.dtype == getattr(torch, dtype)


def test_without_a_dtype_in_the_configuration_the_tensors_decide(tmp_path: Path) -> None:
    folder = write_folder(tiny_model("llama", torch.bfloat16), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    assert load_folder(folder).model.dtype == torch.bfloat16


def test_writing_to_a_weight_does_not_reach_the_file(tmp_path: Path) -> None:
    folder = write_folder(tiny_model("llama"), tmp_path)
    before = (folder / "model.safetensors").read_bytes()
    model = load_folder(folder).model
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_loaded_model_and_its_tokenizer_can_be_saved(tmp_path: Path) -> None:
    trained = tiny_model("mixtral")
    loaded = load_folder(write_folder(trained, tmp_path / "first"))
    assert loaded.tokenizer is not None
    loaded.model.save_pretrained(tmp_path / "second")
    loaded.tokenizer.save_pretrained(tmp_path / "second")
    again = load_folder(tmp_path / "second")
    assert same_bits(logits_of(again.model, TOKENS), logits_of(trained, TOKENS))


def test_a_missing_a_foreign_and_a_misshapen_tensor_are_all_named(tmp_path: Path) -> None:
    folder = write_folder(tiny_model("llama"), tmp_path)
    tensors = describe_folder(folder)
    tensors["model.layers.9.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"]
    tensors["model.norm.weight"] = tensors.pop("model.layers.1.self_attn.q_proj.weight")
    with pytest.raises(InferenceError) as raised:
        load_folder(folder, tensors)
    assert "1 missing: model.layers.1.self_attn.q_proj.weight" in raised.value.message
    assert "1 unexpected: model.layers.9.mlp.up_proj.weight" in raised.value.message
    assert "model.norm.weight (saw (48, 48), expected (48,))" in raised.value.message


def test_a_weight_that_is_not_a_number_is_named(tmp_path: Path) -> None:
    trained = tiny_model("llama")
    with torch.no_grad():
        trained.model.layers[1].mlp.down_proj.weight[3, 5] = float("nan")
    with pytest.raises(InferenceError) as raised:
        load_folder(write_folder(trained, tmp_path))
    assert "NaN or infinity lies in `model.layers.1.mlp.down_proj.weight`" in raised.value.message


def test_where_finite_weights_overflow_is_named(tmp_path: Path) -> None:
    trained = tiny_model("llama")
    with torch.no_grad():
        trained.model.layers[0].mlp.up_proj.weight.fill_(3e38)
    with pytest.raises(InferenceError) as raised:
        load_folder(write_folder(trained, tmp_path))
    assert "`model.layers.0.mlp.up_proj` is the first to overflow" in raised.value.message


def test_a_tokenizer_of_a_larger_vocabulary_is_refused(tmp_path: Path) -> None:
    trained = tiny_model("llama")
    trained.resize_token_embeddings(20)
    with pytest.raises(InferenceError, match="does not know a token that its tokenizer gives"):
        load_folder(write_folder(trained, tmp_path))


def test_without_a_tokenizer_the_model_is_loaded_and_a_finding_says_so(tmp_path: Path) -> None:
    loaded = load_folder(write_folder(tiny_model("llama"), tmp_path, tokenizer=False))
    assert loaded.tokenizer is None
    assert [found.code for found in loaded.findings] == ["U602"]


def test_settings_alone_are_no_tokenizer(tmp_path: Path) -> None:
    folder = write_folder(tiny_model("llama"), tmp_path)
    (folder / "tokenizer.json").unlink()
    assert (folder / "tokenizer_config.json").exists()
    assert load_folder(folder).tokenizer is None


def test_a_model_that_takes_no_text_is_loaded_untried(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    seen = transformers.ViTModel(transformers.ViTConfig(image_size=28, patch_size=14, **sizes))
    loaded = load_folder(write_folder(seen, tmp_path))
    assert [found.code for found in loaded.findings] == ["U702"]
    assert all(same_bits(value, seen.state_dict()[name]) for name, value in loaded.model.state_dict().items())


def test_a_tokenizer_that_cannot_be_used_is_a_finding(tmp_path: Path) -> None:
    folder = write_folder(tiny_model("llama"), tmp_path)
    (folder / "tokenizer.json").write_text("{")
    (found,) = load_folder(folder).findings
    assert found.code == "U602"
    assert "transformers cannot use its files" in found.saw


def test_the_models_own_end_of_text_is_kept(tmp_path: Path) -> None:
    folder = write_folder(tiny_model("llama"), tmp_path)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 4], "top_k": 7}')
    settings = load_folder(folder).model.generation_config
    assert (settings.eos_token_id, settings.top_k) == ([2, 4], 7)


def test_without_generation_settings_those_of_the_configuration_hold(tmp_path: Path) -> None:
    folder = write_folder(tiny_model("llama"), tmp_path)
    (folder / "generation_config.json").unlink()
    assert load_folder(folder).model.generation_config.eos_token_id == 2


def test_a_file_that_is_cut_short_meanwhile_is_named(tmp_path: Path) -> None:
    folder = write_folder(tiny_model("llama"), tmp_path / "whole")
    tensors = describe_folder(folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(DamagedFileError, match="changed while it was being read"):
        load_folder(folder, tensors)


@pytest.mark.parametrize("device", ["cuda:7", "nonsense"])
def test_a_device_that_is_not_there_is_an_option_error(device: str, tmp_path: Path) -> None:
    folder = write_folder(tiny_model("llama"), tmp_path)
    with pytest.raises(OptionError, match="is not a device of this machine"):
        load_folder(folder, device=device)


def test_a_device_and_a_map_exclude_each_other(tmp_path: Path) -> None:
    folder = write_folder(tiny_model("llama"), tmp_path)
    with pytest.raises(OptionError, match="exclude each other"):
        load_folder(folder, device_map="auto")


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}], ids=str)
def test_a_device_map_is_accelerates(device_map: Any, tmp_path: Path) -> None:
    trained = tiny_model("llama")
    loaded = load_folder(write_folder(trained, tmp_path), device="auto", device_map=device_map).model
    assert {tensor.device.type for tensor in loaded.state_dict().values()} == {"cpu"}
    assert same_bits(logits_of(loaded, TOKENS), logits_of(trained, TOKENS))


def _with_config(folder: Path, **edits: object) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **edits}))
    return folder


def test_an_architecture_that_transformers_lacks_is_refused(tmp_path: Path) -> None:
    folder = _with_config(write_folder(tiny_model("llama"), tmp_path), architectures=["Trainer"])
    with pytest.raises(InferenceError, match="`Trainer` is not a model of transformers"):
        load_folder(folder)


def test_a_model_type_that_transformers_lacks_is_refused(tmp_path: Path) -> None:
    folder = _with_config(write_folder(tiny_model("llama"), tmp_path), model_type="never-heard-of")
    with pytest.raises(InferenceError, match=r"not a configuration that transformers .* can use"):
        load_folder(folder)


def test_code_in_the_models_folder_is_never_run(tmp_path: Path) -> None:
    folder = _with_config(
        write_folder(tiny_model("llama"), tmp_path),
        model_type="own",
        auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
    )
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(InferenceError, match="not a configuration"):
        load_folder(folder)
    assert not (tmp_path / "ran").exists()


def test_a_kernel_from_the_hub_is_never_fetched(tmp_path: Path) -> None:
    folder = _with_config(
        write_folder(tiny_model("llama"), tmp_path), attn_implementation="kernels-community/flash-attn2"
    )
    with pytest.raises(InferenceError, match="asks for code from the hub with `attn_implementation`"):
        load_folder(folder)


def test_without_architectures_the_causal_model_of_the_type_is_taken(tmp_path: Path) -> None:
    trained = tiny_model("qwen2")
    loaded = load_folder(_with_config(write_folder(trained, tmp_path), architectures=None)).model
    assert type(loaded) is type(trained)


def test_the_class_that_fsdp_made_of_a_model_is_the_model(tmp_path: Path) -> None:
    trained = tiny_model("llama")
    folder = _with_config(write_folder(trained, tmp_path), architectures=["FSDPLlamaForCausalLM"])
    assert type(load_folder(folder).model) is type(trained)


SILENCE = """
import sys
from pathlib import Path
import transformers
from test_loading import InferenceError, describe_folder, load_folder

folder = Path(sys.argv[1])
tensors = describe_folder(folder)
load_folder(folder, tensors)
tensors.pop("model.norm.weight")
try:
    load_folder(folder, tensors)
except InferenceError:
    print("our own words", file=sys.stderr)
config = transformers.AutoConfig.from_pretrained(folder)
transformers.LlamaForCausalLM.from_pretrained(None, config=config, state_dict={})
"""


def test_transformers_says_nothing_while_we_load_and_keeps_its_voice(tmp_path: Path) -> None:
    folder = write_folder(tiny_model("llama"), tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", SILENCE, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )
    assert done.stdout == ""
    before, after = done.stderr.split("our own words")
    assert before == ""
    assert "LOAD REPORT" in after


def test_the_folder_it_was_laid_out_in_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tiny_model("llama"), tmp_path / "base")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    loaded = load_folder(folder)
    assert list((tmp_path / "temporary").iterdir()) == []
    assert loaded.model.config.name_or_path == str(folder)
    shutil.rmtree(folder)  # even then: what is mapped stays
    assert logits_of(loaded.model, TOKENS).isfinite().all()


def test_a_configuration_that_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(InferenceError, match="is not a regular file"):
        load_config(tmp_path)
