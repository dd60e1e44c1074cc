"""Models in training that are filled from checkpoints: wholly, in part, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import save

from peft_models import write_scene
from trainers import tiny_llama, tiny_moe
from trainers.loading_runs import load_models, quiet
from trainers.ranks import run_ranks

Told = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Return what both ranks saw, by what they did."""
    folder = tmp_path_factory.mktemp("models")
    tiny_llama.write_base(folder / "base", tied=False)
    tiny_llama.write_base(folder / "tied-base", tied=True)
    tiny_moe.write_base("mixtral", folder / "mixtral")
    write_scene(folder / "peft", "llama")
    tied = tiny_llama.tiny_llama(1, tied=True, dtype=torch.float32).state_dict()
    torch.save({**tied, "lm_head.weight": tied["lm_head.weight"] + 1}, folder / "diverged.pt")
    torch.save({"conv.weight": torch.ones(3, 3)}, folder / "other.pt")
    write_damaged(folder / "damaged")
    run_ranks(2, load_models, folder, timeout_seconds=200)
    cases = [path for path in folder.iterdir() if path.name.startswith("_")]
    return {
        path.name[1:]: [json.loads((path / f"{rank}.json").read_text()) for rank in range(2)]
        for path in cases
    }


def write_damaged(folder: Path) -> None:
    """Write a checkpoint of DCP whose blob of `model.norm.weight` is no file of torch."""
    state = tiny_llama.tiny_llama(1, tied=False, dtype=torch.float32).state_dict()
    with quiet():
        metadata = save(dict(state), checkpoint_id=folder, no_dist=True)
    place = next(v for k, v in metadata.storage_data.items() if k.fqn == "model.norm.weight")
    with (folder / place.relative_path).open("r+b") as stream:
        stream.seek(place.offset)
        stream.write(b"\0" * place.length)


def test_published_experts_are_put_together_in_the_ranks_memory(told: Told) -> None:
    for facts in told["published_experts"]:
        assert facts["wrong"] == []
        assert facts["tensors"] == facts["of"]


def test_a_unit_that_was_still_gathered_computes_with_what_was_loaded(told: Told) -> None:
    for facts in told["still_gathered"]:
        assert len(facts["same"]) == 7
        assert all(facts["same"].values()), facts["same"]


def test_parameters_on_the_meta_device_are_refused_with_the_next_action(told: Told) -> None:
    for facts in told["meta_device"]:
        assert facts["bare"].startswith("OptionError: `model` has parameters without memory")
        assert "to_empty" in facts["bare"]


def test_buffers_that_nothing_filled_are_told_until_they_are_computed(told: Told) -> None:
    for facts in told["meta_device"]:
        assert facts["wrong"] == []
        assert facts["told"] == [["model.rotary_emb.inv_freq and 1 more"], []]


@pytest.mark.parametrize(
    ("case", "kind", "words"),
    [
        ("wider", "shape", "resize_token_embeddings(515)"),
        ("narrower", "shape", "resize_token_embeddings(515)"),
        ("deeper", "missing", "9 tensors are missing in it"),
        ("shallower", "unexpected", "9 tensors are without a place in the model"),
        ("diverged", "unexpected", "with which the module ties it"),
    ],
)
def test_what_does_not_fit_is_refused_on_all_ranks_and_changes_nothing(
    case: str, kind: str, words: str, told: Told
) -> None:
    first, second = (facts[case] for facts in told["what_does_not_fit"])
    assert first == second
    assert first["kind"] == "MatchError"
    assert first["untouched"]
    assert {each[0] for each in first["mismatches"]} == {kind}
    assert words in first["says"]
    assert "--base" not in first["says"]


def test_an_optimizer_without_a_saved_state_is_refused(told: Told) -> None:
    for facts in told["what_does_not_fit"]:
        refusal = facts["no optimizer"]
        assert refusal["kind"] == "TrainingStateError"
        assert refusal["untouched"]
        assert "Load without optimizer=" in refusal["says"]


def test_in_part_means_that_the_rest_stays_as_it_was(told: Told) -> None:
    for facts in told["in_part"]:
        assert facts["wrong"] == []
        assert facts["changed"] == []
        assert facts["kept"] == 9
        assert facts["tensors"] == [21, 12]
        assert facts["codes"] == [["U160", "U163"], ["U161", "U163"]]


def test_ranks_that_see_other_checkpoints_fail_together(told: Told) -> None:
    for facts in told["other_checkpoints"]:
        assert facts["other"]["kind"] == "InputError"
        assert "is another checkpoint on another rank" in facts["other"]["says"]
        assert facts["nowhere"]["kind"] == "PathNotFoundError"
        assert "rank 1 of 2" in facts["nowhere"]["says"]
        assert all(each["untouched"] for each in facts.values())


def test_a_checkpoint_that_has_nothing_of_the_model_is_refused_in_part_too(told: Told) -> None:
    for facts in told["other_checkpoints"]:
        assert facts["fits nothing"]["kind"] == "MatchError"


def test_a_damaged_blob_fails_on_all_ranks_and_says_that_the_model_is_spoiled(told: Told) -> None:
    first, second = told["damaged"]
    assert first == second
    assert first["kind"] in ("DamagedFileError", "UnsafeFileError")
    assert "Part of the model has been overwritten" in first["says"]


def test_a_model_with_an_adapter_gets_what_the_checkpoint_has_of_it(told: Told) -> None:
    for facts in told["adapters"]:
        assert facts["wrong"] == {"full": [], "adapter": [], "base": []}
        assert facts["told"] == {"full": [], "adapter": ["U160"], "base": ["U166"]}


def test_an_adapter_is_merged_into_a_plain_model_only_with_the_weights_it_belongs_to(told: Told) -> None:
    for facts in told["adapters"]:
        assert facts["alone"]["kind"] == "BaseModelError"
        assert "load_full(model, path, base=...)" in facts["alone"]["says"]
        assert 0 <= facts["furthest"] < 1e-6  # sums of few products in float32, in another order
