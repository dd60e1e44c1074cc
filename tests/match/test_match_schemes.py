"""Tensors under names of another scheme become what Hugging Face's files have, and nothing is guessed."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from schemes_truth import TABLES, numbered
from unshard.base import Base
from unshard.base.head_counts import HeadCounts
from unshard.checkpoint import Checkpoint
from unshard.errors import BaseModelError, UnsupportedLayoutError
from unshard.match.restored import Choices, Restored
from unshard.match.scheme_steps import walk
from unshard.match.scheme_translation import translation_of
from unshard.match.schemes import undo_scheme
from unshard.readers import open_checkpoint
from unshard.recipes.schemes import SCHEMES, Reading
from unshard.recipes.schemes.rows import Family
from unshard.tensors import DescribedTensor

State = Mapping[str, torch.Tensor]


def stored(folder: Path, state: State) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    return open_checkpoint([folder])


def undone(checkpoint: Checkpoint, base: Base | None) -> Restored:
    names = {name: (name,) for name in checkpoint.tensors}
    return undo_scheme(Restored(checkpoint.tensors, names), checkpoint, base, Choices())


def base_with(folder: Path, **config: object) -> Base:
    return Base(folder, "base", "--base", b"{}", config, None, None)


def base_of_case(case: dict[str, Any], folder: Path, **more: object) -> Base:
    """Return a base whose configuration has the head counts and the type that a case needs."""
    queries, keys, experts = case["heads"]
    family = family_of(case)
    counts = {"num_attention_heads": queries, "num_key_value_heads": keys, "num_experts": experts}
    types = {"model_type": family.model_types[0]} if family.model_types else {}
    return base_with(folder, **counts, **types, **more)


def family_of(case: dict[str, Any]) -> Family:
    """Return the first family of a case's scheme and title: that of the newest names."""
    families = (f for s in SCHEMES if s.name == case["scheme"] for f in s.families)
    return next(family for family in families if family.title == case["family"])


def state_of(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: numbered(name, shape) for name, shape in case["theirs"].items()}


def crc(tensor: DescribedTensor) -> str:
    return f"{zlib.crc32(tensor.numpy().tobytes()):08x}"


# torchtune calls a score what other models call words: only a base that needs `score.weight` tells.
DECIDED = {name: case for name, case in TABLES.items() if "reward" not in name}


@pytest.mark.parametrize("case", DECIDED.values(), ids=list(DECIDED))
def test_tensors_become_what_the_projects_own_converter_makes_of_them(
    case: dict[str, Any], tmp_path: Path
) -> None:
    restored = undone(stored(tmp_path, state_of(case)), base_of_case(case, tmp_path))
    found = {name: [list(tensor.shape), crc(tensor)] for name, tensor in restored.tensors.items()}
    assert found == case["ours"]
    assert "U208" in {told.code for told in restored.findings}
    named = {origin for origins in restored.origins.values() for origin in origins}
    assert named | restored.dropped.keys() == case["theirs"].keys()


@pytest.mark.parametrize("case", TABLES.values(), ids=list(TABLES))
def test_a_recipe_read_backwards_gives_the_scheme_and_forwards_again_the_same_bits(
    case: dict[str, Any], tmp_path: Path
) -> None:
    heads = HeadCounts(case["heads"][0], case["heads"][1], None, case["heads"][2], "the case")
    family = family_of(case)
    ours = {name: numbered(name, shape) for name, (shape, _) in case["ours"].items()}
    there = walked(stored(tmp_path, ours).tensors, family.reversed, heads)
    assert there.keys() != ours.keys()
    again = walked(there, family, heads)
    assert again.keys() == ours.keys()
    assert all(torch.equal(torch.from_numpy(again[name].numpy()), ours[name]) for name in ours)


def walked(
    tensors: Mapping[str, DescribedTensor], family: Family, heads: HeadCounts
) -> dict[str, DescribedTensor]:
    reading = Reading(SCHEMES[0], family, {name: name for name in tensors}, ())
    translation = translation_of(reading)
    assert not translation.kept
    made: dict[str, DescribedTensor] = {}
    for job in translation.jobs:
        columns = [[tensors[name] for name in column] for column in job.sources]
        result = walk(columns, job.row.steps, heads).columns
        names = job.targets([len(column) for column in result])
        made |= {n: t for ns, ts in zip(names, result, strict=True) for n, t in zip(ns, ts, strict=True)}
    return made


def llama(tmp_path: Path) -> Checkpoint:
    return stored(tmp_path, state_of(TABLES["Meta Llama"]))


def test_head_counts_that_were_used_are_told(tmp_path: Path) -> None:
    (told,) = undone(
        llama(tmp_path), base_with(tmp_path, num_attention_heads=6, num_key_value_heads=2)
    ).findings
    assert "6 heads, 2 of keys, 4 rows each (config.json of base)" in told.saw
    assert told.remedy is not None
    assert "--deep" in told.remedy


def test_what_was_done_to_a_tensor_is_told_with_it(tmp_path: Path) -> None:
    fused = TABLES["torchtitan Llama 3 12 eb518a1 fused"]
    reasons = undone(stored(tmp_path / "fused", state_of(fused)), base_of_case(fused, tmp_path)).reasons
    reordered = "one of 3 parts of it, rows of every head reordered"
    assert reasons == {
        "model.layers.0.self_attn.q_proj.weight": reordered,
        "model.layers.0.self_attn.k_proj.weight": reordered,
        "model.layers.0.self_attn.v_proj.weight": "one of 3 parts of it",
    }
    phi = TABLES["torchtune Phi3"]
    reasons = undone(stored(tmp_path / "phi", state_of(phi)), base_of_case(phi, tmp_path)).reasons
    assert reasons["model.layers.0.self_attn.qkv_proj.weight"] == "put together with 2 more"
    olmo = TABLES["OLMo-core FlexOlmo"]
    reasons = undone(stored(tmp_path / "olmo", state_of(olmo)), base_of_case(olmo, tmp_path)).reasons
    expected = "one of 2 parts of it, two dimensions exchanged"
    assert reasons["model.layers.0.mlp.experts.1.up_proj.weight"] == expected


def test_without_a_base_names_are_kept_and_what_is_missing_is_named(tmp_path: Path) -> None:
    checkpoint = llama(tmp_path)
    restored = undone(checkpoint, None)
    assert restored.tensors.keys() == checkpoint.tensors.keys()
    (told,) = restored.findings
    assert told.code == "U209"
    assert "the number of attention heads" in told.saw
    assert told.remedy is not None
    assert "--base" in told.remedy


def test_a_base_without_head_counts_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedLayoutError, match="nothing tells the number of attention heads") as caught:
        undone(llama(tmp_path), base_with(tmp_path, model_type="llama"))
    assert "--base" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("params.json", json.dumps({"dim": 24, "n_heads": 6, "n_kv_heads": 2})),
        ("model_config.yaml", "name: x\nn_head: 6\nn_query_groups: 2\n"),
    ],
)
def test_head_counts_beside_the_checkpoint_serve_where_there_is_no_base(
    name: str, text: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    restored = undone(llama(tmp_path), None)
    assert restored.tensors.keys() == TABLES["Meta Llama"]["ours"].keys()
    assert name in restored.findings[0].saw


@pytest.mark.parametrize("text", ["[1, 2]", "{", '{"n_heads": "many"}', '{"n_heads": true}', "[" * 100_000])
def test_a_file_beside_the_checkpoint_that_means_nothing_tells_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text(text)
    assert undone(llama(tmp_path), None).findings[0].code == "U209"


def test_a_base_and_a_file_that_count_other_heads_are_refused(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text('{"n_heads": 3, "n_kv_heads": 1}')
    with pytest.raises(BaseModelError, match=r"6 heads, 2 of keys.*3 heads, 1 of keys"):
        undone(llama(tmp_path), base_with(tmp_path, num_attention_heads=6, num_key_value_heads=2))


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"num_attention_heads": 5}, "24 rows are not 5 heads"),
        ({"num_attention_heads": 24, "num_key_value_heads": 8}, "not 24 heads of an even number of rows"),
        ({"num_attention_heads": 6, "num_key_value_heads": 1}, "heads of 4 and 8 rows"),
        ({"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8}, "heads of 4 rows"),
    ],
)
def test_head_counts_that_do_not_fit_the_rows_are_refused(
    config: dict[str, object], match: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedLayoutError, match=match):
        undone(llama(tmp_path), base_with(tmp_path, **config))


@pytest.mark.parametrize(
    "config", [{"num_attention_heads": 6, "num_key_value_heads": 4}, {"num_attention_heads": 1 << 20}]
)
def test_head_counts_that_mean_nothing_are_refused(config: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="means nothing"):
        undone(llama(tmp_path), base_with(tmp_path, **config))


def test_names_that_several_models_have_are_decided_by_the_type_of_the_base_or_refused(
    tmp_path: Path,
) -> None:
    checkpoint = stored(tmp_path, state_of(TABLES["torchtune Phi3"]))
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2}
    fused = undone(checkpoint, base_with(tmp_path, model_type="phi3", **heads))
    assert "model.layers.0.self_attn.qkv_proj.weight" in fused.tensors
    plain = undone(checkpoint, base_with(tmp_path, model_type="mistral", **heads))
    assert "model.layers.0.self_attn.q_proj.weight" in plain.tensors
    with pytest.raises(UnsupportedLayoutError, match="nothing tells which of these models it is"):
        undone(checkpoint, base_with(tmp_path, model_type="unheard_of", **heads))


def test_falcon_shares_one_head_of_keys_where_its_configuration_says_so_in_words(tmp_path: Path) -> None:
    case = TABLES["LitGPT before 2024-12-26 Falcon 7B"]
    base = base_with(tmp_path, model_type="falcon", num_attention_heads=6, multi_query=True)
    restored = undone(stored(tmp_path, state_of(case)), base)
    assert {name: [list(t.shape), crc(t)] for name, t in restored.tensors.items()} == case["ours"]


def test_norms_that_hold_other_numbers_are_not_translated(tmp_path: Path) -> None:
    state = state_of(TABLES["OLMo-core Qwen3"])
    state["blocks.0.post_attention_norm.weight"] = torch.ones(24)
    state["blocks.0.post_feed_forward_norm.weight"] = torch.ones(24)
    base = base_with(tmp_path, model_type="gemma3_text", num_attention_heads=6, num_key_value_heads=2)
    with pytest.raises(UnsupportedLayoutError, match="larger by one"):
        undone(stored(tmp_path, state), base)


def test_a_bias_that_the_model_has_no_place_for_is_dropped_with_a_warning(tmp_path: Path) -> None:
    case = TABLES["torchtitan Qwen3 18 b5bcd76"]
    state = state_of(case) | {"layers.0.moe.expert_bias_E": torch.ones(2)}
    restored = undone(stored(tmp_path, state), base_of_case(case, tmp_path, head_dim=4))
    assert restored.tensors.keys() == case["ours"].keys()
    assert list(restored.dropped) == ["layers.0.moe.expert_bias_E"]
    assert {told.code for told in restored.findings} == {"U208", "U210"}


def without(name: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda state: state.pop(name)


@pytest.mark.parametrize(
    ("case", "break_it", "left"),
    [
        ("LitGPT Mixtral", without("transformer.h.0.mlp.experts.0.fc_1.weight"), "experts.1.w1.weight"),
        ("torchtune Phi3", without("layers.0.attn.k_proj.weight"), "layers.0.attn.q_proj.weight"),
    ],
)
def test_tensors_that_lack_others_of_their_row_are_not_made_into_anything_else(
    case: str, break_it: Callable[[dict[str, torch.Tensor]], object], left: str, tmp_path: Path
) -> None:
    state = state_of(TABLES[case])
    break_it(state)
    restored = undone(stored(tmp_path, state), base_of_case(TABLES[case], tmp_path))
    assert any(name.endswith(left) for name in restored.tensors)
    assert {origin for found in restored.origins.values() for origin in found} == state.keys()


def test_two_names_of_one_tensor_are_refused(tmp_path: Path) -> None:
    case = TABLES["torchtitan Llama 3 12 b5bcd76"]
    state = state_of(case)
    state["output.weight"] = state["lm_head.weight"].clone()
    with pytest.raises(UnsupportedLayoutError, match=r"it would be a second `lm_head.weight`"):
        undone(stored(tmp_path, state), base_of_case(case, tmp_path))


def test_plain_names_are_left_alone(tmp_path: Path) -> None:
    state = {name: numbered(name, shape) for name, (shape, _) in TABLES["Meta Llama"]["ours"].items()}
    checkpoint = stored(tmp_path, state)
    assert undone(checkpoint, None).tensors is checkpoint.tensors
