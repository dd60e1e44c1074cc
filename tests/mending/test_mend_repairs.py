"""Every repair on a folder broken from a real one: it is made, it is told, and the model is the old one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from folders_to_mend import (
    assert_loads_as,
    config_of,
    contents,
    copied,
    rename_weights,
    same,
    set_config,
    weights_of,
    wrapped,
)
from safetensors.torch import save_file

from tiny_models import FAMILIES
from unshard import Severity, UnshardError, check, convert, mend

Healthy = Callable[[str], Path]


def without(*names: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


def cut_short(*names: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).write_text("{")

    return damage


def drop_key_of_generation(folder: Path) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "use_cache": False}))


# The repair, how a folder comes to need it, and whether it needs the base.
BREAKS: Mapping[str, tuple[str, Callable[[Path], None]]] = {
    "wrapped names": ("names", lambda f: rename_weights(f, wrapped)),
    "a prefix": ("names", lambda f: rename_weights(f, lambda name: f"student.{name}")),
    "module": ("names", lambda f: rename_weights(f, lambda name: f"module.{name}")),
    "no prefix": ("names", lambda f: rename_weights(f, lambda name: name.removeprefix("model."))),
    "FSDP before the class": (
        "architectures",
        lambda f: set_config(f, architectures=["FSDPLlamaForCausalLM"]),
    ),
    "wrong vocabulary": ("vocabulary", lambda f: set_config(f, vocab_size=512)),
    "wrong dtype": ("dtype", lambda f: set_config(f, dtype="bfloat16")),
    "wrong tie": ("ties", lambda f: set_config(f, tie_word_embeddings=True)),
    "no cache": ("cache", lambda f: set_config(f, use_cache=False)),
    "no cache in generation": ("cache", drop_key_of_generation),
    "stale quantisation": (
        "quantization",
        lambda f: set_config(f, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
    ),
    "no tokenizer": ("files", without("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")),
    "no generation settings": ("files", without("generation_config.json")),
    "no chat template": ("files", without("chat_template.jinja")),
    "no configuration": ("files", without("config.json")),
    "broken settings": ("files", cut_short("generation_config.json", "tokenizer_config.json")),
}


@pytest.fixture(params=list(BREAKS))
def broken(request: pytest.FixtureRequest, llama: Path, tmp_path: Path) -> tuple[str, Path]:
    repair, damage = BREAKS[request.param]
    folder = copied(llama, tmp_path / "broken")
    damage(folder)
    return repair, folder


def test_a_broken_folder_becomes_the_model_it_was(broken: tuple[str, Path], llama: Path) -> None:
    repair, folder = broken
    done = mend(folder, base=llama, in_place=True)
    assert {each.name for each in done.plan.repairs} == {repair}
    assert not done.remains
    assert same(weights_of(llama), weights_of(folder))
    assert_loads_as(llama, folder)
    assert config_of(folder) == {**config_of(llama), **({"use_cache": True} if _has_cache(folder) else {})}


def _has_cache(folder: Path) -> bool:
    return "use_cache" in config_of(folder)


def test_mended_once_there_is_nothing_left_to_do(broken: tuple[str, Path], llama: Path) -> None:
    _, folder = broken
    mend(folder, base=llama, in_place=True)
    before = contents(folder)
    again = mend(folder, base=llama, in_place=True)
    assert not again.plan.repairs
    assert not again.plan.changes
    assert contents(folder) == before


def test_a_new_folder_is_the_same_and_the_old_one_is_untouched(
    broken: tuple[str, Path], llama: Path, tmp_path: Path
) -> None:
    _, folder = broken
    before = contents(folder)
    mend(folder, tmp_path / "out", base=llama)
    assert contents(folder) == before
    mend(folder, base=llama, in_place=True)
    assert contents(tmp_path / "out") == contents(folder)


def test_check_has_nothing_to_say_of_what_was_mended(broken: tuple[str, Path], llama: Path) -> None:
    _, folder = broken
    mend(folder, base=llama, in_place=True)
    assert [item for item in check(folder, base=llama).findings if item.severity is not Severity.INFO] == []


def in_the_names_of_meta(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights of the tiny Llama as Meta's own code names and orders them."""
    ends = {
        "model.embed_tokens": "tok_embeddings",
        "model.norm": "norm",
        "lm_head": "output",
        "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk",
        "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    found = {}
    for name, tensor in state.items():
        before = next(old for old in ends if f"{old}.weight" in name)
        heads = tensor.shape[0] // 16
        if before.endswith(("q_proj", "k_proj")):
            tensor = tensor.view(heads, 2, 8, -1).transpose(1, 2).reshape(tensor.shape)
        found[name.replace(before, ends[before]).removeprefix("model.")] = tensor.clone()
    return found


def test_names_of_another_scheme_become_those_of_the_hub(llama: Path, tmp_path: Path) -> None:
    folder = copied(llama, tmp_path / "broken")
    meta = in_the_names_of_meta(weights_of(llama))
    assert "layers.1.attention.wq.weight" in meta
    save_file(meta, folder / "model.safetensors", metadata={"format": "pt"})
    done = mend(folder, base=llama, in_place=True)
    assert {repair.name for repair in done.plan.repairs} == {"names"}
    assert same(weights_of(folder), weights_of(llama))
    assert_loads_as(llama, folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_there_is_nothing_to_mend_in_a_healthy_folder(healthy: Healthy, family: str) -> None:
    for base in (None, healthy(family)):
        plan = mend(healthy(family), base=base).plan
        assert not plan.repairs
        assert not plan.changes
        assert not plan.refusals
        assert not plan.findings


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_5_saves_only_lacks_the_older_spelling(saved: Healthy, family: str) -> None:
    assert {repair.name for repair in mend(saved(family)).plan.repairs} <= {"spelling"}


def test_the_older_spelling_is_put_beside_the_newer_one(saved: Healthy, tmp_path: Path) -> None:
    folder = copied(saved("llama"), tmp_path / "broken")
    mend(folder, in_place=True)
    assert config_of(folder) == {**config_of(saved("llama")), "rope_theta": 50000.0}
    assert_loads_as(saved("llama"), folder)


def test_a_repair_that_is_skipped_is_not_made(llama: Path, tmp_path: Path) -> None:
    folder = copied(llama, tmp_path / "broken")
    set_config(folder, use_cache=False, vocab_size=512)
    assert {r.name for r in mend(folder, base=llama, skip=["cache"]).plan.repairs} == {"vocabulary"}
    assert {r.name for r in mend(folder, base=llama, only=["cache"]).plan.repairs} == {"cache"}
    with pytest.raises(UnshardError, match="names no repair: saw caches"):
        mend(folder, only=["caches"])


def test_names_that_are_skipped_stay(llama: Path, tmp_path: Path) -> None:
    folder = copied(llama, tmp_path / "broken")
    rename_weights(folder, wrapped)
    set_config(folder, use_cache=False)
    mend(folder, base=llama, skip=["names"], in_place=True)
    assert weights_of(folder).keys() == {wrapped(name) for name in weights_of(llama)}
    assert config_of(folder)["use_cache"] is True


@pytest.mark.parametrize(
    ("cut", "model_type", "whole"),
    [
        ("eepseekV3ForCausalLM", "deepseek_v3", "DeepseekV3ForCausalLM"),
        ("hiForCausalLM", "phi", "PhiForCausalLM"),
        ("alconForCausalLM", "falcon", "FalconForCausalLM"),
        ("FSDPQwen2ForCausalLM", "qwen2", "Qwen2ForCausalLM"),
        ("lamaForCausalLM", "llama", "LlamaForCausalLM"),
        ("LlamaForCasualLM", "llama", "LlamaForCausalLM"),
        ("PeftModelForCausalLM", "llama", "LlamaForCausalLM"),
    ],
)
def test_a_class_whose_first_letters_were_cut_gets_them_back(
    llama: Path, tmp_path: Path, cut: str, model_type: str, whole: str
) -> None:
    folder = copied(llama, tmp_path / "broken")
    set_config(folder, architectures=[cut], model_type=model_type)
    plan = mend(folder, only=["architectures"]).plan
    assert [r.edits for r in plan.repairs] == [{"config.json": {"architectures": [whole]}}]


def test_a_class_that_nothing_explains_is_left(llama: Path, tmp_path: Path) -> None:
    folder = copied(llama, tmp_path / "broken")
    set_config(folder, architectures=["LlamaOfMineForCausalLM"])
    assert not mend(folder, only=["architectures"]).plan.repairs


def untie(folder: Path, change: float) -> None:
    state = weights_of(folder)
    head = state["model.embed_tokens.weight"].clone()
    head[3, 5] += change
    save_file({**state, "lm_head.weight": head}, folder / "model.safetensors", metadata={"format": "pt"})


def test_the_flag_is_off_where_the_head_has_diverged(healthy: Healthy, tmp_path: Path) -> None:
    folder = copied(healthy("llama-tied"), tmp_path / "broken")
    untie(folder, 1.0)
    done = mend(folder, in_place=True)
    assert [r.name for r in done.plan.repairs] == ["ties"]
    assert config_of(folder)["tie_word_embeddings"] is False
    assert_loads_as(folder, folder)


def test_the_flag_stays_where_the_head_is_equal_and_the_duplicate_is_not_copied_around(
    healthy: Healthy, tmp_path: Path
) -> None:
    folder = copied(healthy("llama-tied"), tmp_path / "broken")
    untie(folder, 0.0)
    assert not mend(folder).plan.changes
    rename_weights(folder, wrapped)
    done = mend(folder, in_place=True)
    assert [file.fate for file in done.plan.weights] == ["header"]
    assert_loads_as(healthy("llama-tied"), folder)


def test_the_base_tells_that_a_missing_head_is_tied(healthy: Healthy, tmp_path: Path) -> None:
    folder = copied(healthy("llama-tied"), tmp_path / "broken")
    set_config(folder, tie_word_embeddings=False)
    alone = mend(folder)
    assert [item.code for item in alone.remains] == ["U901"]
    assert "lm_head.weight" in alone.remains[0].saw
    mend(folder, base=healthy("llama-tied"), in_place=True)
    assert config_of(folder)["tie_word_embeddings"] is True
    assert_loads_as(healthy("llama-tied"), folder)


@pytest.mark.parametrize("lost", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
@pytest.mark.parametrize("with_base", [False, True])
def test_a_missing_tensor_is_refused_and_nothing_is_written(
    llama: Path, tmp_path: Path, lost: str, with_base: bool
) -> None:
    folder = copied(llama, tmp_path / "broken")
    state = weights_of(folder)
    del state[lost]
    save_file(state, folder / "model.safetensors")
    set_config(folder, use_cache=False)
    before = contents(folder)
    for out in (None, tmp_path / "out"):
        done = mend(folder, out, base=llama if with_base else None, in_place=out is None)
        assert done.target is None
        assert done.plan.is_refused
        assert lost in done.remains[0].saw
    assert contents(folder) == before
    assert not (tmp_path / "out").exists()


def test_without_configuration_and_base_nothing_is_made_up(llama: Path, tmp_path: Path) -> None:
    folder = copied(llama, tmp_path / "broken")
    (folder / "config.json").unlink()
    assert [item.code for item in mend(folder).remains] == ["U904"]


def test_a_missing_tokenizer_is_told_where_no_base_has_it(llama: Path, tmp_path: Path) -> None:
    folder = copied(llama, tmp_path / "broken")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    set_config(folder, use_cache=False)
    done = mend(folder, in_place=True)
    assert [item.code for item in done.remains] == ["U905"]
    assert config_of(folder)["use_cache"] is True


def test_a_file_that_cannot_be_read_is_refused(llama: Path, tmp_path: Path) -> None:
    folder = copied(llama, tmp_path / "broken")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-10])
    (told,) = [item for item in mend(folder, base=llama).remains if item.code == "U903"]
    assert "truncated" in told.saw


def test_settings_of_another_tokenizer_are_not_taken(llama: Path, tmp_path: Path) -> None:
    folder = copied(llama, tmp_path / "broken")
    (folder / "tokenizer_config.json").write_text("{")
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + "\n")
    done = mend(folder, base=llama, in_place=True)
    assert [item.code for item in done.remains] == ["U909"]
    assert (folder / "tokenizer_config.json").read_text() == "{"


def test_mixed_dtypes_and_rank_0_tensors_keep_their_bytes(llama: Path, tmp_path: Path) -> None:
    folder = copied(llama, tmp_path / "broken")
    state = weights_of(folder)
    state["model.norm.weight"] = state["model.norm.weight"].to(torch.float64)
    state = {wrapped(name): tensor for name, tensor in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    mend(folder, in_place=True)
    assert same(weights_of(folder), {name: state[wrapped(name)] for name in weights_of(llama)})


@pytest.mark.parametrize("key", ["model_type", "architectures", "vocab_size", "tie_word_embeddings", "dtype"])
@pytest.mark.parametrize("value", [[], {}, 1.5, -1, ["a", 1], "x"], ids=repr)
def test_a_configuration_that_means_nothing_is_told_or_mended_and_never_a_crash(
    llama: Path, tmp_path: Path, key: str, value: object
) -> None:
    folder = copied(llama, tmp_path / "broken")
    set_config(folder, **{key: value})
    done = mend(folder, base=llama, in_place=True)
    assert done.plan.is_refused or done.plan.repairs or not done.plan.changes
    if done.plan.is_refused:
        assert config_of(folder)[key] == value


def test_of_two_models_in_a_folder_a_conversion_takes_one(llama: Path, tmp_path: Path) -> None:
    folder = copied(llama, tmp_path / "broken")
    state = weights_of(folder)
    both = {
        f"{side}.{name}": tensor.clone() for side in ("policy", "critic") for name, tensor in state.items()
    }
    save_file(both, folder / "model.safetensors", metadata={"format": "pt"})
    (told,) = mend(folder, base=llama).plan.refusals
    assert "unshard convert FOLDER OUT --base BASE --select critic" in str(told.remedy)
    convert(folder, tmp_path / "out", select="policy", base=str(llama))
    assert same(weights_of(tmp_path / "out"), state)
