"""What a saved model holds: its configuration, its small files, its dtypes, torch's format."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from peft_models import SETTINGS, make_random
from tiny_models import SIZES, tiny_model, write_folder
from trainers.tiny_llama import tiny_tokenizer
from unshard.errors import MatchError, OptionError, UnsupportedLayoutError
from unshard.training.publishing.torch_format import llama_recipes_path
from unshard.training.saving import save_full


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tiny_model("llama"), tmp_path_factory.mktemp("base") / "llama")


def loaded(base: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(base)


def codes(saved: Any) -> list[str]:
    return [item.code for item in saved.findings]


def save(model: Any, path: Path, **options: Any) -> Any:
    return save_full(model, path, durable=False, **{"record": False, **options})


def test_a_model_that_was_only_trained_has_the_configuration_of_its_base_byte_for_byte(
    base: Path, tmp_path: Path
) -> None:
    model = loaded(base)
    model.config.use_cache = False
    saved = save(model, tmp_path / "out")
    assert (tmp_path / "out/config.json").read_bytes() == (base / "config.json").read_bytes()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
    assert "U150" not in codes(saved)


def test_only_the_keys_that_training_changed_are_edited(base: Path, tmp_path: Path) -> None:
    model = loaded(base)
    model.config.pad_token_id = 7
    model.config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 20000.0}
    saved = save(model, tmp_path / "out")
    before, after = (json.loads((f / "config.json").read_bytes()) for f in (base, tmp_path / "out"))
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert changed == {"pad_token_id", "rope_parameters", "rope_theta", "rope_scaling"}
    assert after["rope_theta"] == 20000.0
    assert after["rope_scaling"]["type"] == "linear"
    again = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert model.config.rope_parameters.items() <= again.rope_parameters.items()
    assert "U150" in codes(saved)


def test_older_spellings_of_a_base_are_edited_as_they_are_spelt(base: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    text = json.loads((base / "config.json").read_bytes())
    del text["rope_parameters"]
    (old / "config.json").write_text(json.dumps(text | {"rope_theta": 50000.0}))
    model = loaded(base)
    model.config.rope_parameters["rope_theta"] = 60000.0
    save(model, tmp_path / "out", base=old)
    after = json.loads((tmp_path / "out/config.json").read_bytes())
    assert after["rope_theta"] == 60000.0
    assert "rope_parameters" not in after


def test_without_a_base_the_configuration_is_written_anew(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.config.use_cache = False
    saved = save(model, tmp_path / "out", tokenizer=tiny_tokenizer())
    text = json.loads((tmp_path / "out/config.json").read_bytes())
    assert text["architectures"] == ["LlamaForCausalLM"]
    assert (text["use_cache"], text["rope_theta"], text["dtype"]) == (True, 50000.0, "float32")
    assert not [key for key in text if key.startswith("_")]
    assert "U151" in codes(saved)
    again = loaded(tmp_path / "out")
    assert all(torch.equal(again.state_dict()[name], t) for name, t in model.state_dict().items())


def test_a_base_of_another_kind_gives_no_configuration(base: Path, tmp_path: Path) -> None:
    saved = save(tiny_model("qwen2"), tmp_path / "out", base=base)
    assert json.loads((tmp_path / "out/config.json").read_bytes())["model_type"] == "qwen2"
    assert "U151" in codes(saved)


def test_the_class_of_the_model_stands_in_its_configuration(base: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    save(model, tmp_path / "out")
    text = json.loads((tmp_path / "out/config.json").read_bytes())
    assert text["architectures"] == ["LlamaForSequenceClassification"]
    assert len(text["id2label"]) == 3
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(again.score.weight, model.score.weight)


def test_a_resized_vocabulary_and_its_tokenizer_go_together(base: Path, tmp_path: Path) -> None:
    model, tokenizer = loaded(base), tiny_tokenizer()
    tokenizer.add_tokens([f"<new {number}>" for number in range(40)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.resize_token_embeddings(len(tokenizer))
    saved = save(model, tmp_path / "out", tokenizer=tokenizer)
    assert json.loads((tmp_path / "out/config.json").read_bytes())["vocab_size"] == len(tokenizer)
    assert len(transformers.AutoTokenizer.from_pretrained(tmp_path / "out")) == len(tokenizer)
    assert "U503" not in codes(saved)


def test_a_tokenizer_with_more_tokens_than_rows_is_told(base: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<new {number}>" for number in range(600)])
    assert "U503" in codes(save(loaded(base), tmp_path / "out", tokenizer=tokenizer))


@pytest.mark.parametrize("as_file", [True, False])
def test_a_configuration_may_be_given_as_data_or_as_a_file(base: Path, tmp_path: Path, as_file: bool) -> None:
    given: Any = base / "config.json" if as_file else json.loads((base / "config.json").read_bytes())
    save(tiny_model("llama"), tmp_path / "out", model_config=given)
    assert json.loads((tmp_path / "out/config.json").read_bytes()) == json.loads(
        (base / "config.json").read_bytes()
    )


def test_a_model_that_is_not_what_its_class_describes_is_saved_and_told(base: Path, tmp_path: Path) -> None:
    model = loaded(base)
    model.value_head = torch.nn.Linear(48, 1)
    saved = save(model, tmp_path / "out")
    assert "U152" in codes(saved)
    tensors = load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(tensors["value_head.weight"], model.value_head.weight)


def test_a_module_without_a_configuration_is_saved_as_tensors_alone(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    saved = save(model, tmp_path / "out")
    tensors = load_file(tmp_path / "out/model.safetensors")
    assert tensors.keys() == model.state_dict().keys()
    assert all(torch.equal(tensors[name], t) for name, t in model.state_dict().items())
    assert "U601" in codes(saved)


@pytest.mark.parametrize(
    ("dtype", "head", "norm"),
    [
        ("keep", torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        ({r"lm_head": "float16", r"\.weight$": "bfloat16"}, torch.float16, torch.bfloat16),
        ({r"layers\.0\.": torch.float64}, torch.float32, torch.float32),
    ],
)
def test_every_tensor_has_the_dtype_that_was_asked_for(
    base: Path, tmp_path: Path, dtype: Any, head: torch.dtype, norm: torch.dtype
) -> None:
    model = loaded(base)
    save(model, tmp_path / "out", dtype=dtype)
    tensors = load_file(tmp_path / "out/model.safetensors")
    assert (tensors["lm_head.weight"].dtype, tensors["model.norm.weight"].dtype) == (head, norm)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensors[name], tensor.to(tensors[name].dtype))
    main = json.loads((tmp_path / "out/config.json").read_bytes())["dtype"]
    counts = {
        str(t.dtype): sum(o.numel() for o in tensors.values() if o.dtype == t.dtype) for t in tensors.values()
    }
    assert main == max(counts, key=counts.__getitem__).removeprefix("torch.")


@pytest.mark.parametrize("dtype", ["bfloat16", {"": "bfloat16"}])
def test_integers_and_buffers_keep_their_dtype(tmp_path: Path, dtype: Any) -> None:
    model = torch.nn.BatchNorm1d(4)
    save(model, tmp_path / "out", dtype=dtype)
    dtypes = {name: t.dtype for name, t in load_file(tmp_path / "out/model.safetensors").items()}
    assert dtypes["weight"] == torch.bfloat16
    assert dtypes["running_mean"] == torch.float32
    assert dtypes["num_batches_tracked"] == torch.int64


@pytest.mark.parametrize(
    "options",
    [
        {"format": "gguf"},
        {"adapter": "lose"},
        {"dtype": "int8"},
        {"dtype": "float8_e4m3fn"},
        {"dtype": 16},
        {"dtype": {"(": "bfloat16"}},
        {"dtype": {3: "bfloat16"}},
        {"dtype": {"no_such_name": "bfloat16"}},
        {"prompts": "one text, not a sequence of them"},
        {"serve_dtypes": "bfloat16"},
        {"dtype": {"lm_head": "keep"}},
        {"max_shard_size": "much"},
        {"max_shard_size": 0},
        {"max_shard_size": True},
        {"format": "pt", "adapter": "both"},
        {"tokenizer": 3},
        {"tokenizer": "nowhere"},
        {"model_config": 3},
    ],
)
def test_options_that_mean_nothing_are_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(OptionError):
        save(tiny_model("llama"), tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("told", "recorded"),
    [
        ({}, None),
        ({"config": {"lr": 1.0, "seed": 17}}, 17),
        ({"config": {"train": {"seed": 19}}}, 19),
        ({"config": {"seed": 17}, "seed": 23}, 23),
    ],
)
def test_a_seed_is_recorded_where_somebody_gave_it(
    tmp_path: Path, told: dict[str, Any], recorded: int | None
) -> None:
    saved = save(tiny_model("llama"), tmp_path / "out", record=True, fingerprint=False, **told)
    assert saved.record is not None
    assert saved.record.seed == recorded


def test_what_the_model_was_trained_on_is_told_without_passwords(tmp_path: Path) -> None:
    data = "https://me:word@host/set"
    saved = save(tiny_model("llama"), tmp_path / "out", record=True, fingerprint=False, data=data)
    assert saved.record is not None
    assert saved.record.data == "https://***@host/set"
    assert "me:word" not in (tmp_path / "out" / "README.md").read_text()


def test_a_file_of_torch_needs_its_format(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match='format="pt"'):
        save(torch.nn.Linear(2, 2), tmp_path / "model.pt")


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_a_state_dict_has_every_name_that_fsdp_gathers(tmp_path: Path, family: str) -> None:
    model = tiny_model(family)
    path = llama_recipes_path(tmp_path, "fine-tuned", "org/tiny", 2)
    save(model, path, format="pt")
    assert path == tmp_path / "fine-tuned-org/tiny/org--tiny-2.pt"
    state, truth = torch.load(path, weights_only=True), model.state_dict()
    assert list(state) == list(truth)
    assert all(torch.equal(state[name], tensor) for name, tensor in truth.items())
    apart = {tensor.data_ptr() for tensor in state.values()}
    assert len(apart) == len(state)  # as files of FSDP have them: a storage for every name


OF_PEFT = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"


def adapted() -> Any:
    model = peft.get_peft_model(
        tiny_model("llama"), peft.LoraConfig(**SETTINGS, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    make_random(model)
    return model


@pytest.mark.filterwarnings(OF_PEFT)
def test_saving_an_adapter_leaves_the_model_in_training_as_it_is(tmp_path: Path) -> None:
    model = adapted()
    before = copy.deepcopy(model.state_dict())
    save(model, tmp_path / "out", adapter="both")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.peft_config["default"].inference_mode is False
    merged = loaded(tmp_path / "out")
    inside = peft.PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path / "out/adapter"))
    tokens = torch.arange(16)[None]
    assert torch.equal(inside(tokens).logits, model(tokens).logits)
    torch.testing.assert_close(merged(tokens).logits, model(tokens).logits)


@pytest.mark.filterwarnings(OF_PEFT)
def test_the_active_one_of_several_adapters_is_saved(tmp_path: Path) -> None:
    model = adapted()
    model.add_adapter("second", peft.LoraConfig(r=2, lora_alpha=64, target_modules=["k_proj"]))
    make_random(model)
    model.set_adapter("second")
    saved = save(model, tmp_path / "out", adapter="keep")
    assert "U153" in codes(saved)
    model.save_pretrained(tmp_path / "theirs", selected_adapters=["second"])
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        ours, theirs = tmp_path / "out" / name, tmp_path / "theirs/second" / name
        if name.endswith("json"):
            assert json.loads(ours.read_bytes()) == json.loads(theirs.read_bytes())
        else:
            a, b = load_file(ours), load_file(theirs)
            assert a.keys() == b.keys()
            assert all(torch.equal(a[key], b[key]) for key in b)


def merged_meanwhile(model: Any) -> None:
    model.merge_adapter()


def scaled(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(0.5)


def doubled(model: Any) -> None:
    model.add_adapter("second", peft.LoraConfig(**SETTINGS, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "second"])


@pytest.mark.filterwarnings(OF_PEFT)
@pytest.mark.parametrize(
    ("change", "hint"),
    [(merged_meanwhile, "unmerge_adapter"), (scaled, "unscale_layer"), (doubled, "set_adapter")],
)
def test_adapters_whose_merge_would_be_another_model_are_refused(
    tmp_path: Path, change: Any, hint: str
) -> None:
    model = adapted()
    change(model)
    with pytest.raises(UnsupportedLayoutError) as caught:
        save(model, tmp_path / "out")
    assert hint in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


def test_there_is_nothing_to_keep_without_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="adapter"):
        save(tiny_model("llama"), tmp_path / "out", adapter="keep")


def test_layers_that_were_taken_out_are_told(base: Path, tmp_path: Path) -> None:
    model = loaded(base)
    del model.model.layers[1]
    try:
        told = codes(save(model, tmp_path / "out"))
    except MatchError:
        return
    assert "U152" in told
    assert SIZES["num_hidden_layers"] == 2


def test_the_model_card_tells_of_the_training(base: Path, tmp_path: Path) -> None:
    save(loaded(base), tmp_path / "out", record=True, config={"learning_rate": 3e-5}, step=12)
    text = (tmp_path / "out/README.md").read_text()
    assert "learning_rate: 3e-05" in text
    assert "| Step | `12` |" in text


def test_code_of_a_base_is_copied_with_it_and_told(base: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    text = json.loads((base / "config.json").read_bytes())
    text["auto_map"] = {"AutoModelForCausalLM": "modeling_own.LlamaForCausalLM"}
    (own / "config.json").write_text(json.dumps(text))
    (own / "modeling_own.py").write_text("raise RuntimeError('never run')\n")
    saved = save(tiny_model("llama"), tmp_path / "out", base=own)
    assert (tmp_path / "out/modeling_own.py").read_bytes() == (own / "modeling_own.py").read_bytes()
    assert json.loads((tmp_path / "out/config.json").read_bytes())["auto_map"] == text["auto_map"]
    assert "U605" in codes(saved)
