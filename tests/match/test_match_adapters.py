"""Adapters of real PEFT become the weights that PEFT merges them to: beside their base, or alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peft_models import Scene, furthest, matched_in, values_of, write_scene
from unshard.base import find_base
from unshard.match import Choices
from unshard.match.adapters import check_adapter
from unshard.match.kept_adapter import KeptAdapter, keep_adapter
from unshard.readers import open_checkpoint
from unshard.recipes.adapters import WEIGHTS
from unshard.tensors import CastTensor

ATTENTION = ["q_proj", "v_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
# What is on which model, and how.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("llama", {"target_modules": ["q_proj", "down_proj"]}),
    "rank-stabilised": ("llama", {"target_modules": "all-linear", "use_rslora": True}),
    "dora": ("llama", {"target_modules": ["q_proj", "down_proj"], "use_dora": True}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "embedding-dora": ("llama", {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}),
    "trained-whole": (
        "llama",
        {"target_modules": ATTENTION, "modules_to_save": ["lm_head", "norm", "embed_tokens"]},
    ),
    "tokens": ("llama", {"target_modules": ATTENTION, "trainable_token_indices": [5, 1, 9]}),
    "tied-tokens": ("llama-tied", {"target_modules": ATTENTION, "trainable_token_indices": [5, 1, 9]}),
    "biases": ("qwen2", {"target_modules": ATTENTION, "bias": "all"}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "conv1d-dora": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
    "experts": ("mixtral", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
    "patterns": (
        "llama",
        {
            "target_modules": ATTENTION,
            "rank_pattern": {"v_proj": 2, r"layers.1.*q_proj": 6},
            "alpha_pattern": {"layers.0.self_attn.q_proj": 32},
        },
    ),
    "vision-language": ("vision-language", {"target_modules": ATTENTION}),
}


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Scene]:
    """Return what a run of one kind left; made once."""
    made: dict[str, Scene] = {}

    def make(kind: str) -> Scene:
        if kind not in made:
            family, settings = KINDS[kind]
            made[kind] = write_scene(tmp_path_factory.mktemp(kind), family, **settings)
        return made[kind]

    return make


# PEFT sums up to 6 products and the weight in float32, and DoRA divides by a norm of up to 192 squares: each
# operation is off by at most 2**-24 of sums that are at most 16 times the largest weight.
_FLOAT32 = 16 * 8 * 2.0**-24


@pytest.mark.parametrize("place", ["full", "adapter"])
@pytest.mark.parametrize("kind", KINDS)
def test_merging_gives_what_peft_merges(scene: Callable[[str], Scene], kind: str, place: str) -> None:
    made = scene(kind)
    model = matched_in(getattr(made, place), made.base)
    assert furthest(model.tensors, made.merged) < _FLOAT32
    untouched = [n for n, t in model.tensors.items() if not isinstance(t, CastTensor) and t.runs(0, 1)]
    changed = [n for n in model.tensors if not torch.equal(values_of(model.tensors[n]), made.merged[n])]
    assert untouched  # what has no adapter is copied as it is, bit for bit
    assert not set(changed) & set(untouched)


def test_rows_that_were_trained_of_tied_weights_are_those_of_both(tmp_path: Path) -> None:
    rows = {"embed_tokens": [3, 5, 9]}
    made = write_scene(tmp_path, "llama-tied", target_modules=["q_proj"], trainable_token_indices=rows)
    model = matched_in(made.full, made.base)
    assert "lm_head.weight" not in model.tensors  # both are the same still, and written once
    name = "model.embed_tokens.weight"
    assert torch.equal(values_of(model.tensors[name]), made.merged[name])


def kept_in(path: Path, base: Path) -> KeptAdapter:
    checkpoint = open_checkpoint(path)
    found, _ = find_base(checkpoint, reference=str(base), download=False, model_class=False)
    return keep_adapter(checkpoint, found, Choices(adapter="keep"))


@pytest.mark.parametrize("place", ["full", "adapter"])
@pytest.mark.parametrize("kind", KINDS)
def test_keeping_gives_what_peft_publishes(scene: Callable[[str], Scene], kind: str, place: str) -> None:
    made = scene(kind)
    ours, theirs = kept_in(getattr(made, place), made.base).model.tensors, load_file(made.adapter / WEIGHTS)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(values_of(ours[name]), theirs[name]) for name in ours)


def test_an_embedding_that_was_resized_is_kept_with_the_adapter(
    scene: Callable[[str], Scene], tmp_path: Path
) -> None:
    made = scene("lora")
    state = torch.load(made.full / "model.pt", weights_only=True)
    resized = [f"base_model.model.{name}.weight" for name in ("lm_head", "model.embed_tokens")]
    torch.save({n: torch.ones(600, 48) if n in resized else t for n, t in state.items()}, tmp_path / "a.pt")
    (tmp_path / "adapter_config.json").write_bytes((made.full / "adapter_config.json").read_bytes())
    assert {*resized} <= kept_in(tmp_path, made.base).model.tensors.keys()


def test_a_made_configuration_lists_only_the_modules_that_have_an_adapter(tmp_path: Path) -> None:
    made = write_scene(tmp_path, "llama", target_modules=["q_proj", "v_proj"], layers_to_transform=[1])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.pt").write_bytes((made.full / "model.pt").read_bytes())
    kept = keep_adapter(open_checkpoint(tmp_path / "run"), None, Choices(lora_alpha=8))
    config = json.loads(kept.config)
    assert config["target_modules"] == [f"model.layers.1.self_attn.{name}" for name in ("q_proj", "v_proj")]


def test_in_bfloat16_every_element_is_nearer_to_the_exact_sum_than_what_peft_gives(tmp_path: Path) -> None:
    made = write_scene(tmp_path, "llama", dtype=torch.bfloat16, target_modules=["q_proj"])
    state = torch.load(made.full / "model.pt", weights_only=True)
    ours = matched_in(made.full, made.base).tensors
    name, at = "model.layers.0.self_attn.q_proj.weight", "base_model.model.model.layers.0.self_attn.q_proj."
    a, b = (state[f"{at}lora_{factor}.default.weight"].double() for factor in "AB")
    exact = state[f"{at}base_layer.weight"].double() + 2.0 * b @ a
    mine, theirs = values_of(ours[name]), made.merged[name]
    assert mine.dtype == torch.bfloat16
    assert torch.equal(mine, exact.float().bfloat16())
    assert ((mine.double() - exact).abs() <= (theirs.double() - exact).abs()).all()


@pytest.mark.parametrize(("policy", "dtype"), [("keep", torch.bfloat16), ("float32", torch.float32)])
def test_the_dtype_policy_decides_what_a_merged_weight_becomes(
    tmp_path: Path, policy: str, dtype: torch.dtype
) -> None:
    made = write_scene(tmp_path, "llama", dtype=torch.bfloat16, target_modules=["q_proj"])
    for base in (made.base, None):
        model = matched_in(made.full, base, dtype=policy)
        merged = next(t for n, t in model.tensors.items() if n.endswith("q_proj.weight"))
        assert values_of(merged).dtype == dtype


def test_rows_of_tokens_are_replaced_bit_for_bit(scene: Callable[[str], Scene]) -> None:
    made = scene("tokens")
    state = torch.load(made.full / "model.pt", weights_only=True)
    embedding = values_of(matched_in(made.full, made.base).tensors["model.embed_tokens.weight"])
    rows = state["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta.default"]
    assert torch.equal(embedding[[5, 1, 9]], rows)


def test_alpha_may_be_named_where_no_file_tells_it(scene: Callable[[str], Scene], tmp_path: Path) -> None:
    made = scene("lora")
    (tmp_path / "model.pt").write_bytes((made.full / "model.pt").read_bytes())
    model = matched_in(tmp_path, made.base, alpha=8)
    assert furthest(model.tensors, made.merged) < _FLOAT32
    (told,) = [f for f in model.findings if f.code == "U251"]
    assert told.saw == "LoRA of rank 4 on 4 modules, alpha 8 (--lora-alpha), scale 2"
    assert furthest(matched_in(tmp_path, made.base, alpha=16).tensors, made.merged) > 0.01


def test_a_square_conv1d_without_a_configuration_stands_as_its_siblings(
    scene: Callable[[str], Scene], tmp_path: Path
) -> None:
    made = scene("conv1d")
    (tmp_path / "model.pt").write_bytes((made.full / "model.pt").read_bytes())
    assert furthest(matched_in(tmp_path, made.base, alpha=8).tensors, made.merged) < _FLOAT32


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("lora_train_meta.json", '{"r": 4, "lora_alpha": 8}', "lora_train_meta.json"),
        ("train_params.yaml", "model_name: x\nlora_alpha: '8'\n", "lora_alpha in train_params.yaml"),
        (
            "config.yaml",
            "policy:\n  model_name: x\n  peft:\n    lora_alpha: 8\n",
            "policy.peft.lora_alpha in config.yaml",
        ),
    ],
)
def test_alpha_is_read_where_trainers_leave_it(
    scene: Callable[[str], Scene], tmp_path: Path, file: str, text: str, told: str
) -> None:
    made = scene("lora")
    (tmp_path / "model.pt").write_bytes((made.full / "model.pt").read_bytes())
    (tmp_path / file).write_text(text)
    model = matched_in(tmp_path, made.base)
    assert furthest(model.tensors, made.merged) < _FLOAT32
    assert f"alpha 8 ({told}), scale 2" in next(f.saw for f in model.findings if f.code == "U251")


def test_the_configuration_of_the_run_is_found_above_its_steps(
    scene: Callable[[str], Scene], tmp_path: Path
) -> None:
    made = scene("lora")
    (tmp_path / "checkpoint-20").mkdir()
    (tmp_path / "checkpoint-20" / "model.pt").write_bytes((made.full / "model.pt").read_bytes())
    (tmp_path / "adapter_config.json").write_bytes((made.full / "adapter_config.json").read_bytes())
    assert furthest(matched_in(tmp_path, made.base).tensors, made.merged) < _FLOAT32


def test_what_is_named_goes_before_files_and_the_contradiction_is_told(
    scene: Callable[[str], Scene], tmp_path: Path
) -> None:
    made = scene("lora")
    (tmp_path / "model.pt").write_bytes((made.full / "model.pt").read_bytes())
    (tmp_path / "lora_train_meta.json").write_text('{"r": 4, "lora_alpha": 0}')
    model = matched_in(tmp_path, made.base, alpha=8)
    assert furthest(model.tensors, made.merged) < _FLOAT32
    (told,) = [f for f in model.findings if f.code == "U259"]
    assert (told.saw, told.expected) == ("8", "0, as lora_train_meta.json says")


def test_a_head_that_was_tied_keeps_its_weights_where_only_the_embedding_was_trained(tmp_path: Path) -> None:
    made = write_scene(tmp_path, "llama-tied", target_modules=["embed_tokens"])
    before = torch.load(made.full / "model.pt", weights_only=True)["base_model.model.lm_head.weight"]
    for place in (made.full, made.adapter):
        model = matched_in(place, made.base)
        assert torch.equal(values_of(model.tensors["lm_head.weight"]), before)
        assert not torch.equal(values_of(model.tensors["model.embed_tokens.weight"]), before)
        assert model.config_edits["tie_word_embeddings"] is False
    assert "U263" in [f.code for f in model.findings]


def test_the_default_one_of_several_adapters_is_taken(tmp_path: Path) -> None:
    made = write_scene(tmp_path, "llama", adapters=2, target_modules=["q_proj"])
    model = matched_in(made.full, made.base)
    assert furthest(model.tensors, made.merged) < _FLOAT32
    (told,) = [f for f in model.findings if f.code == "U262"]
    assert told.saw == "was taken; 4 tensors beside it are of `other1`"
    assert told.remedy is not None
    assert "selected_adapters=['other1']" in told.remedy
    dropped = [d for d in model.decisions if d.target is None]
    assert len(dropped) == 4
    assert {d.reason for d in dropped} == {"of another adapter than `default`"}


def test_every_tensor_of_the_checkpoint_has_a_decision(scene: Callable[[str], Scene]) -> None:
    made = scene("trained-whole")
    checkpoint = open_checkpoint(made.full)
    decisions = {d.source: d for d in matched_in(made.full, made.base).decisions}
    assert decisions.keys() == checkpoint.tensors.keys()
    at = "base_model.model.model.layers.0.self_attn.q_proj."
    merged = decisions[f"{at}lora_A.default.weight"]
    assert merged.target == "model.layers.0.self_attn.q_proj.weight"
    assert merged.reason == "merged: scale 2 (alpha 8 / rank 4)"
    assert decisions["base_model.model.lm_head.original_module.weight"].target is None


def test_torchtune_names_its_factors_beside_the_weight(scene: Callable[[str], Scene], tmp_path: Path) -> None:
    made = scene("lora")
    state = torch.load(made.full / "model.pt", weights_only=True)
    renamed = {
        name.removeprefix("base_model.model.")
        .replace(".base_layer.", ".")
        .replace("lora_A.default", "lora_a")
        .replace("lora_B.default", "lora_b"): tensor
        for name, tensor in state.items()
    }
    torch.save(renamed, tmp_path / "model.pt")
    assert furthest(matched_in(tmp_path, made.base, alpha=8).tensors, made.merged) < _FLOAT32


@pytest.mark.parametrize("place", ["full", "adapter"])
def test_headers_alone_tell_what_an_adapter_is(scene: Callable[[str], Scene], place: str) -> None:
    told = check_adapter(open_checkpoint(getattr(scene("rank-stabilised"), place)))
    assert [found.code for found in told] == ["U250"]
    assert told[0].saw == (
        "rank-stabilised LoRA of rank 4 on 14 modules, alpha 8 (adapter_config.json), scale 4"
    )
    assert check_adapter(open_checkpoint(scene("lora").base)) == ()


def test_a_base_that_is_published_with_adapters_keeps_them(
    scene: Callable[[str], Scene], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    made = scene("lora")
    state = torch.load(made.full / "model.pt", weights_only=True)
    plain = {name.removeprefix("base_model.model."): tensor for name, tensor in state.items()}
    save_file(plain, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "phi4_multimodal"}))
    run = tmp_path / "run"
    run.mkdir()
    torch.save(plain, run / "model.pt")
    assert matched_in(run, tmp_path).tensors.keys() == plain.keys()
