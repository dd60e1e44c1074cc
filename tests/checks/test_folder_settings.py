"""Configuration, tokenizer, generation and engines: what disagrees is told, and what an engine refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from broken_folders import codes, copied, found, only, reconfigured, rewritten

from tiny_models import tiny_model
from unshard.checks.evidence import Evidence
from unshard.checks.serving import CHECKS
from unshard.findings import Finding
from unshard.model_folder import read_model_folder
from unshard.recipes.architectures import whole_architecture

Folder = Callable[[str], Path]
GENERATION = "generation_config.json"


@pytest.fixture
def folder(tiny_folder: Folder, tmp_path: Path) -> Path:
    return copied(tiny_folder("llama"), tmp_path / "model")


def test_a_configuration_that_is_missing_or_broken_is_told(folder: Path) -> None:
    content = (folder / "config.json").read_bytes()
    (folder / "config.json").write_bytes(b'{"a": 1, "a": 2}')
    told = only(found(folder))
    assert (told.code, told.saw) == ("U504", "is not valid JSON: the key `a` stands twice")
    (folder / "config.json").unlink()
    told = only(found(folder))
    assert (told.code, told.saw) == ("U504", "missing")
    (folder / "config.json").write_bytes(content)
    assert found(folder) == []


def test_values_that_mean_nothing_are_told(folder: Path) -> None:
    told = next(item for item in found(reconfigured(folder, hidden_size=-4)) if item.code == "U505")
    assert "`hidden_size` is -4, not a positive number" in told.saw


def test_numbers_that_are_not_json_are_told(folder: Path) -> None:
    told = only(found(reconfigured(folder, time_step_limit=[0.0, float("inf")])))
    assert (told.code, told.saw.partition(",")[0]) == ("U509", "Infinity")


@pytest.mark.parametrize(("key", "code"), [("architectures", "U506"), ("model_type", "U508")])
def test_a_configuration_that_does_not_say_what_model_it_is_is_told(
    key: str, code: str, folder: Path
) -> None:
    assert code in codes(found(reconfigured(folder, **{key: None})))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lamaForCausalLM", "llama"),
        ("FSDPLlamaForCausalLM", "llama"),
        ("eepseekV3ForCausalLM", "deepseek_v3"),
        ("LlamaForCausaLM", "llama"),
        ("LLamaForCausalLM", "llama"),
        ("PeftModelForCausalLM", "llama"),
        ("LlamaModel", "llama"),
        ("LlamaForCausalLM", "mistral"),
        ("MistralForCausalLM", "llama"),
        ("Qwen2ForCausalLM", "qwen3"),
    ],
)
def test_a_class_that_is_misspelt_or_of_another_family_is_told(name: str, kind: str, folder: Path) -> None:
    told = next(
        i for i in found(reconfigured(folder, architectures=[name], model_type=kind)) if i.code == "U507"
    )
    assert told.saw.startswith(f"`{name}` beside the model_type `{kind}`")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("DeepseekV3ForCausalLM", "deepseek_v3"),
        ("GPT2LMHeadModel", "gpt2"),
        ("Gemma3ForCausalLM", "gemma3_text"),
        ("XLMRobertaForMaskedLM", "xlm-roberta"),
        ("GPTNeoXForCausalLM", "gpt_neox"),
        ("T5EncoderModel", "t5"),
        ("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl"),
        ("OfTheirOwnForCausalLM", "of_their_own"),
        ("BertModel", "bert"),
        ("LlamaBidirectionalModel", "llama_bidirec"),
    ],
)
def test_a_class_that_fits_its_type_or_is_unknown_is_not_told(name: str, kind: str, folder: Path) -> None:
    assert "U507" not in codes(found(reconfigured(folder, architectures=[name], model_type=kind)))


def test_the_remedy_promises_a_repair_only_where_the_name_is_known(folder: Path) -> None:
    told = next(i for i in found(reconfigured(folder, architectures=["lamaForCausalLM"])) if i.code == "U507")
    assert (told.expected, "unshard mend" in str(told.remedy)) == ("`LlamaForCausalLM`", True)
    told = next(i for i in found(reconfigured(folder, architectures=["MistralModel"])) if i.code == "U507")
    assert "mend" not in str(told.remedy)


def test_no_class_of_transformers_is_taken_for_a_misspelt_one() -> None:
    from transformers.models.auto import modeling_auto

    tables = [v for k, v in vars(modeling_auto).items() if k.startswith("MODEL") and k.endswith("_NAMES")]
    pairs = [
        (name, kind)
        for table in tables
        for kind, value in table.items()
        for name in (value if isinstance(value, tuple | list) else [value])
        if name is not None
    ]
    assert len(pairs) > 1000
    assert [pair for pair in pairs if whole_architecture(*pair) is not None] == []


def test_code_that_is_not_in_the_folder_is_told(folder: Path) -> None:
    reconfigured(folder, auto_map={"AutoModel": "modeling_x.Model", "AutoConfig": "them/repo--conf.Config"})
    told = only(found(folder))
    assert (told.code, told.saw) == ("U510", "it names `modeling_x.py`, missing here")
    (folder / "modeling_x.py").touch()
    assert found(folder) == []


def test_another_dtype_than_the_tensors_have_is_told(folder: Path) -> None:
    told = only(found(reconfigured(folder, dtype="bfloat16")))
    assert (told.code, told.saw) == ("U430", "bfloat16, and most of the tensors are float32")
    assert found(reconfigured(folder, dtype="float32")) == []


def test_settings_of_training_are_told(folder: Path) -> None:
    assert codes(found(reconfigured(folder, use_cache=False))) == ["U515"]


def test_two_spellings_that_disagree_are_told(folder: Path) -> None:
    told = only(found(reconfigured(folder, rope_theta=10000.0)))
    assert (told.code, told.saw.partition(":")[0]) == ("U519", "10000.0, and 50000.0 in rope_parameters")


@pytest.mark.parametrize("key", ["eos_token_id", "pad_token_id", "bos_token_id"])
def test_an_id_without_a_row_is_told(key: str, folder: Path) -> None:
    told = next(item for item in found(reconfigured(folder, GENERATION, **{key: 515})) if item.code == "U513")
    assert (told.subject, told.saw) == (f"{key} in {GENERATION}", "515, and the embedding has 515 rows")
    assert "U513" not in codes(found(reconfigured(folder, GENERATION, **{key: 514})))


def test_more_tokens_than_rows_are_told(folder: Path) -> None:
    (folder / "added_tokens.json").write_text("{}")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 515, "content": "<new>"})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    told = only(found(folder))
    assert (told.code, told.saw) == ("U503", "516 tokens, and 515 rows")


def test_an_end_that_generation_does_not_know_is_told(folder: Path) -> None:
    told = found(reconfigured(folder, GENERATION, eos_token_id=7))
    assert codes(told) == ["U520", "U522"]
    assert told[0].saw == "7, and the tokenizer ends a text with 2, `<|end|>`"
    assert told[1].saw == "it ends a turn with `<|end|>`, 2; eos_token_id is 7: answers will not stop"
    assert found(reconfigured(folder, GENERATION, eos_token_id=[7, 2])) == []


def test_the_end_of_a_turn_may_be_another_than_that_of_a_text(folder: Path) -> None:
    settings = "tokenizer_config.json"
    reconfigured(folder, settings, eos_token="<|pad|>")
    told = only(found(folder))
    assert (told.code, told.expected) == ("U520", "0 among them")
    reconfigured(folder, GENERATION, eos_token_id=0)
    reconfigured(folder, eos_token_id=0)
    assert codes(found(folder)) == ["U522"]


def test_other_first_tokens_are_facts(folder: Path) -> None:
    told = only(found(reconfigured(folder, GENERATION, bos_token_id=3)))
    assert (told.code, told.saw) == ("U521", "3, and the tokenizer has 1, `<|start|>`")


def test_small_files_that_are_missing_are_told(folder: Path) -> None:
    (folder / GENERATION).unlink()
    assert codes(found(folder)) == ["U524"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert codes(found(folder)) == ["U602", "U524"]


def test_the_files_of_a_processor_are_missed(tiny_folder: Folder, tmp_path: Path) -> None:
    folder = copied(tiny_folder("vision-language"), tmp_path / "model")
    told = only(found(folder))
    assert (told.code, told.saw.partition(" in ")[0]) == ("U525", "`vision_config`")
    (folder / "preprocessor_config.json").write_text("{}")
    assert found(folder) == []


def test_a_chat_template_that_the_base_has_is_missed(folder: Path, tiny_folder: Folder) -> None:
    (folder / "chat_template.jinja").unlink()
    assert codes(found(folder, base=tiny_folder("llama"))) == ["U523"]


@pytest.mark.parametrize(
    ("changes", "subject", "saw"),
    [
        (
            {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
            "rope_theta",
            "10000.0",
        ),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps", "1e-05"),
        ({"hidden_act": "gelu"}, "hidden_act", "gelu"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope scaling factor", "2.0"),
    ],
)
def test_settings_that_compute_otherwise_than_the_bases_are_told(
    changes: dict[str, Any], subject: str, saw: str, folder: Path, tiny_folder: Folder
) -> None:
    base = tiny_folder("llama")
    if "rope_scaling" in changes:  # the base has it, and the folder lost it
        base, folder = reconfigured(folder, **changes), base
        told = [item for item in found(folder, base=base) if item.subject == f"`{subject}`"]
        assert [(item.code, item.saw, (item.expected or "")[:3]) for item in told] == [
            ("U517", "absent: means 1.0", saw)
        ]
        return
    first = only(found(reconfigured(folder, **changes), base=base)[:1])
    assert (first.code, first.subject, first.saw) == ("U517", f"`{subject}`", saw)


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("kind", ["llama3", "yarn", "linear"])
def test_a_scaling_that_only_the_folder_has_is_told(
    key: str, kind: str, folder: Path, tiny_folder: Folder
) -> None:
    rope = {"rope_theta": 50000.0, "rope_type": kind, "factor": 4.0}
    told = {i.subject: i for i in found(reconfigured(folder, **{key: rope}), base=tiny_folder("llama"))}
    factor, sort = told["`rope scaling factor`"], told["`rope scaling type`"]
    assert (factor.code, factor.saw, str(factor.expected)[:17]) == ("U517", "4.0", "absent: means 1.0")
    assert (sort.code, sort.saw, str(sort.expected)[:21]) == ("U517", kind, "absent: means default")


@pytest.mark.parametrize(
    ("ours", "theirs", "code"),
    [
        ({"attention_bias": True}, {"attention_bias": None}, "U517"),
        ({"attention_bias": None}, {"attention_bias": False}, None),
        ({"head_dim": None}, {"head_dim": 16}, None),
        ({"num_key_value_heads": None}, {"num_key_value_heads": 2}, "U517"),
        ({"hidden_act": None}, {}, "U517"),
        ({"time_step_limit": [0.0, 2.0]}, {"time_step_limit": [0.0, 1.0]}, "U517"),
        ({"sliding_window": 64}, {"sliding_window": None}, "U517"),
        ({"sliding_window": 64}, {"sliding_window": 32}, "U518"),
        ({"sliding_window": 16}, {"sliding_window": 32}, "U517"),
        ({"layer_types": ["full_attention"]}, {"layer_types": None}, "U518"),
        ({"eos_token_id": 3}, {}, "U517"),
        ({"vision_config": {"hidden_act": "gelu"}}, {"vision_config": {"hidden_act": "silu"}}, "U517"),
        (
            {"vision_config": {"num_attention_heads": 2}},
            {"vision_config": {"num_attention_heads": 4}},
            "U517",
        ),
        ({"vision_config": {"layer_norm_eps": 1e-5}}, {"vision_config": {}}, "U518"),
    ],
)
def test_a_setting_counts_at_every_level_and_where_one_side_does_not_say_it(
    ours: dict[str, Any],
    theirs: dict[str, Any],
    code: str | None,
    folder: Path,
    tiny_folder: Folder,
    tmp_path: Path,
) -> None:
    base = reconfigured(copied(tiny_folder("llama"), tmp_path / "base"), **theirs)
    told = found(reconfigured(folder, **ours), base=base)
    assert {item.code for item in told if item.code in ("U517", "U518")} == ({code} if code else set())


@pytest.mark.parametrize("task", ["SequenceClassification", "TokenClassification", "QuestionAnswering"])
def test_a_new_head_that_the_class_names_is_no_damage(task: str, folder: Path, tiny_folder: Folder) -> None:
    head = {"QuestionAnswering": "qa_outputs.weight"}.get(task, "score.weight")
    rewritten(folder, lambda s: {(head if n == "lm_head.weight" else n): t for n, t in s.items()})
    base = tiny_folder("llama")
    assert {"U232", "U233"} & set(codes(found(folder, base=base)))
    reconfigured(folder, architectures=[f"LlamaFor{task}"])
    assert not {"U232", "U233"} & set(codes(found(folder, base=base)))
    rewritten(folder, lambda s: {n: t for n, t in s.items() if n != "model.norm.weight"})
    assert "U232" in codes(found(folder, base=base))


def test_last_layers_that_the_configuration_leaves_out_are_no_damage(
    folder: Path, tiny_folder: Folder
) -> None:
    count = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    rewritten(folder, lambda s: {n: t for n, t in s.items() if f".layers.{count - 1}." not in n})
    base = tiny_folder("llama")
    assert "U232" in codes(found(folder, base=base))
    reconfigured(folder, num_hidden_layers=count - 1)
    told = only(found(folder, base=base))
    assert (told.code, told.subject) == ("U518", "`num_hidden_layers`")


def test_settings_that_rarely_matter_are_facts(folder: Path, tiny_folder: Folder) -> None:
    told = only(found(reconfigured(folder, max_position_embeddings=512), base=tiny_folder("llama")))
    assert (told.code, told.saw, told.expected) == ("U518", "512", "256")


def test_the_two_spellings_of_one_setting_are_the_same(folder: Path, tiny_folder: Folder) -> None:
    reconfigured(folder, rope_parameters=None)
    assert found(folder, base=tiny_folder("llama")) == []


def engines(folder: Path) -> list[Finding]:
    read = read_model_folder(folder)
    evidence = Evidence(folder, folder=read, tensors=read.tensors, config=read.json("config.json"))
    return [
        item
        for check in CHECKS
        for item in check.find(evidence)
        if "torch_dtype" not in (item.expected or "")
    ]


def test_what_transformers_5_writes_makes_other_engines_stumble(tmp_path: Path, tiny_folder: Folder) -> None:
    folder = copied(tiny_folder("llama"), tmp_path / "model")
    assert engines(folder) == []
    told = engines(reconfigured(folder, rope_theta=None))
    assert [(item.code, item.subject) for item in told] == [
        ("U640", "mistral.rs"),
        ("U641", "mlx-lm, transformers 4"),
    ]
    assert told[0].saw.endswith("missing field `rope_theta`")
    assert "rope_theta 50000.0" in told[1].saw


def test_the_value_that_engines_assume_makes_none_compute_otherwise(folder: Path) -> None:
    rope = {"rope_theta": 1e4, "rope_type": "default"}
    assert [item.code for item in engines(reconfigured(folder, rope_theta=None, rope_parameters=rope))] == [
        "U640"
    ]


def test_experts_counted_under_another_key_are_told(tiny_folder: Folder, tmp_path: Path) -> None:
    folder = copied(tiny_folder("four-layers-of-experts"), tmp_path / "model")
    assert engines(folder) == []
    told = only(engines(reconfigured(folder, num_experts=None)))
    assert (told.subject, told.saw) == ("mlx-lm", "num_local_experts, and no num_experts")


def test_what_save_pretrained_writes_gives_facts_only(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    assert {str(item.severity) for item in engines(tmp_path)} == {"info"}
