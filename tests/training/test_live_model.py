"""A model in training is described by its ranks as what it is without wrappers, every element once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from live_models import FOUR, leave_scenes
from trainers.ranks import run_ranks
from unshard.record.description import Distribution, Precision


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of what 4 ranks said and gave of models wrapped in every way."""
    folder = tmp_path_factory.mktemp("live")
    run_ranks(4, leave_scenes, str(folder), list(FOUR), timeout_seconds=120)
    return folder


def said(scenes: Path, name: str) -> list[dict[str, Any]]:
    return [torch.load(scenes / f"{name}.{rank}.pt", weights_only=False) for rank in range(4)]


def truth_of(scenes: Path, name: str) -> dict[str, torch.Tensor]:
    return dict(torch.load(scenes / f"{name}.truth.pt"))


def assembled(ranks: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return the tensors that the ranks give together."""
    whole, filled = {}, {}
    for name, (shape, dtype) in ranks[0]["tensors"].items():
        whole[name] = torch.zeros(shape, dtype=getattr(torch, dtype))
        filled[name] = torch.zeros(shape, dtype=torch.int64)
    for rank in ranks:
        for name, start, stop, raw in rank["given"]:
            at = tuple(map(slice, start, stop))
            box = whole[name][at]
            box.copy_(torch.frombuffer(bytearray(raw), dtype=box.dtype).view(box.shape))
            filled[name][at] += 1
    assert all(bool((count == 1).all()) for count in filled.values())
    return whole


@pytest.mark.parametrize("name", [name for name in FOUR if name != "copies-differ"])
def test_what_the_ranks_give_together_is_the_model_bit_for_bit(scenes: Path, name: str) -> None:
    ranks, truth = said(scenes, name), truth_of(scenes, name)
    whole = assembled(ranks)
    assert list(whole) == [key for key in truth if key != "head.weight"]
    assert ranks[0]["ties"] == {"head.weight": "embed.weight"}
    for key, tensor in whole.items():
        assert tensor.dtype == truth[key].dtype
        assert bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist()) == bytes(
            truth[key].contiguous().reshape(-1).view(torch.uint8).tolist()
        ), key


@pytest.mark.parametrize("name", FOUR)
def test_all_ranks_say_the_same(scenes: Path, name: str) -> None:
    ranks = said(scenes, name)
    for key in ("tensors", "pieces", "ties", "buffers", "codes"):
        assert [each[key] for each in ranks] == [ranks[0][key]] * 4


TOLD_OF = ("alone", "copies-differ", "fsdp1-copies-differ", "hsdp-copies-differ")
COPIED = ("ddp", "fsdp1-no_shard-eval-true", "fsdp1-hybrid_shard-forward-false", "hsdp", "tp", "replicated")


@pytest.mark.parametrize("name", COPIED)
def test_what_several_ranks_hold_is_given_by_all_of_them_as_much_by_each(scenes: Path, name: str) -> None:
    given = [sum(len(raw) for _, _, _, raw in rank["given"]) for rank in said(scenes, name)]
    assert max(given) < 1.1 * min(given)


def test_fsdp_ranks_give_what_is_on_them_and_nothing_else(scenes: Path) -> None:
    given = [sum(len(raw) for _, _, _, raw in rank["given"]) for rank in said(scenes, "fsdp1-mesh")]
    assert max(given) < 1.1 * min(given)


def test_copies_that_differ_are_taken_from_the_first_rank_and_told(scenes: Path) -> None:
    ranks = said(scenes, "copies-differ")
    assert ranks[0]["codes"] == ["U131", "U132", "U133"]
    whole, truth = assembled(ranks), truth_of(scenes, "copies-differ")
    assert torch.equal(whole["big.weight"], truth["big.weight"])
    assert torch.equal(whole["scale"], truth["scale"])
    assert {name for name, *_ in ranks[2]["given"]}.isdisjoint({"big.weight", "scale"})


@pytest.mark.parametrize("name", [name for name in FOUR if name not in TOLD_OF])
def test_nothing_is_told_of_models_that_are_wrapped_well(scenes: Path, name: str) -> None:
    assert said(scenes, name)[0]["codes"] == []


@pytest.mark.parametrize("name", ["fsdp1-copies-differ", "hsdp-copies-differ"])
def test_replicas_of_fsdp_that_differ_are_told_of_and_never_mixed(scenes: Path, name: str) -> None:
    ranks = said(scenes, name)
    assert ranks[0]["codes"] == ["U133"]
    assert torch.equal(assembled(ranks)["big.weight"], truth_of(scenes, name)["big.weight"])


def test_a_model_that_no_wrapper_spreads_is_told_of(scenes: Path) -> None:
    assert said(scenes, "alone")[0]["codes"] == ["U131"]


def test_only_persistent_buffers_are_there_and_are_known_as_such(scenes: Path) -> None:
    for name in ("alone", "fsdp1-half", "fsdp2"):
        buffers = said(scenes, name)[0]["buffers"]
        assert buffers == ["counters", "empty", "mask", "scale", "turned"]


DISTRIBUTIONS = {
    "alone": Distribution("none", 4, "gloo"),
    "ddp-compiled": Distribution("ddp", 4, "gloo", compiled=True),
    "fsdp1-half-orig": Distribution(
        "fsdp1",
        4,
        "gloo",
        strategy="NO_SHARD",
        wrapped=("Odd", "Block", "Linear"),
        use_orig_params=True,
        precision=Precision("bfloat16", "bfloat16", "bfloat16"),
    ),
    "fsdp1-offloaded": Distribution(
        "fsdp1",
        4,
        "gloo",
        strategy="FULL_SHARD",
        wrapped=("Odd", "Block", "Linear"),
        use_orig_params=False,
        cpu_offload=True,
    ),
    "fsdp1-hybrid_shard-forward-true": Distribution(
        "fsdp1",
        4,
        "gloo",
        strategy="HYBRID_SHARD",
        wrapped=("Odd", "Block", "Linear"),
        mesh={"out": 2, "in": 2},
        use_orig_params=True,
    ),
    "fsdp2-gathered": Distribution(
        "fsdp2", 4, "gloo", "reshard_after_forward=False", ("Odd", "Block"), {"out": 4}
    ),
    "fsdp2-some": Distribution("fsdp2", 4, "gloo", "reshard_after_forward=2", ("Odd", "Block"), {"out": 4}),
    "fsdp2-half": Distribution(
        "fsdp2",
        4,
        "gloo",
        "reshard_after_forward=None",
        ("Odd", "Block"),
        {"out": 4},
        precision=Precision("bfloat16", "float32"),
    ),
    "fsdp2-checkpointed": Distribution(
        "fsdp2",
        4,
        "gloo",
        "reshard_after_forward=None",
        ("Odd", "Block"),
        {"out": 4},
        compiled=True,
        checkpointed=("Block",),
    ),
    "fsdp2-tp": Distribution(
        "fsdp2", 4, "gloo", "reshard_after_forward=None", ("Odd", "Block"), {"fsdp": 2, "tp": 2}
    ),
    "tp": Distribution("fsdp2", 4, "gloo", mesh={"tp": 2}),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_wrappers_tell_how_the_model_is_spread(scenes: Path, name: str) -> None:
    assert [rank["distribution"] for rank in said(scenes, name)] == [DISTRIBUTIONS[name]] * 4
