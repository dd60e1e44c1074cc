"""What cannot be described is refused on every rank alike, by name; odd tensors are described as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from live_models import closing
from live_refusals import REFUSED, leave_refusals, odd_model
from trainers.ranks import run_ranks
from unshard.errors import printable
from unshard.training.live.local_parts import checksum_of
from unshard.training.live.model import describe_live_model
from unshard.training.live.module_tree import bare_module
from unshard.training.live.number_check import check_numbers
from unshard.training.live.source import read_elements
from unshard.training.ranks.process_group import LoneRank


@pytest.fixture(scope="session")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what each of two ranks said."""
    folder = tmp_path_factory.mktemp("refusals")
    run_ranks(2, leave_refusals, str(folder), timeout_seconds=120)
    return [json.loads(Path(folder, f"said.{rank}.json").read_text()) for rank in (0, 1)]


EXPECTED = {
    "names": "rank 1 of 2 differs from rank 0; on rank 1 `b.weight` is absent (on rank 0: float32 [3, 2])",
    "shapes": "`b.weight` is float32 [4, 2] (on rank 0: float32 [3, 2]), `b.bias` is float32 [4]",
    "dtypes": "`weight` is float64 [2, 2] (on rank 0: float32 [2, 2])",
    "ties": "`b.weight` is another name of `a.weight` (on rank 0: float32 [2, 2])",
    "order": "`b.weight` is where `a.weight` should be (on rank 0: later)",
    "meta": "`b.weight`, `b.bias`: each is on the meta device and has no values",
    "partial": "`weight` is placed as `P(sum)`",
    "class": "`a.weight`, `b.weight`: each is a tensor of the class live_refusals.Params4bit",
    "quantised": "`q`: each is stored as torch.strided, torch.qint8, `sparse`: each is stored as torch.spars",
    "lazy": "`weight`, `bias`: each is not initialised yet",
    "partitioned": "`weight` is partitioned by DeepSpeed's ZeRO-3",
    "gaps": "`a.weight` was a view with gaps or repetitions when FSDP1 flattened it",
    "doubled": "`weight` is the name of two tensors, wrappers aside",
    "fairscale": "`the model` is wrapped by fairscale's FSDP",
}


@pytest.mark.parametrize("name", REFUSED)
def test_every_rank_refuses_in_the_same_words_and_names_the_tensors(
    refusals: list[dict[str, Any]], name: str
) -> None:
    first, second = (each[name] for each in refusals)
    assert first == second
    assert EXPECTED[name] in first
    assert "hint: " in first
    assert printable(first) == first


def test_ranks_that_do_not_hold_the_whole_model_together_are_told_what_is_missing(
    refusals: list[dict[str, Any]],
) -> None:
    assert "rows 3 to 5 of 5 on no rank" in refusals[0]["alone"]
    assert "rows 0 to 3 of 5 on no rank" in refusals[1]["alone"]


@pytest.mark.parametrize("name", ["numbers-copies", "numbers-flat"])
def test_numbers_that_are_not_finite_are_counted_once_and_masks_are_left_alone(
    refusals: list[dict[str, Any]], name: str
) -> None:
    assert refusals[0][name] == refusals[1][name]
    (told,) = refusals[0][name]
    assert (told["code"], told["subject"]) == ("U130", "a.weight, c.bias")
    assert told["saw"] == "1 NaN and 2 infinite in 2 tensors"


def test_state_that_is_no_tensor_is_told_of(refusals: list[dict[str, Any]]) -> None:
    assert refusals[0]["extra"] == [["U134", "_extra_state"]]


def test_only_what_is_selected_is_described(refusals: list[dict[str, Any]]) -> None:
    assert refusals[0]["selected"] == ["module.weight", "module.bias"]


def test_odd_tensors_are_described_as_the_state_dict_has_them() -> None:
    model = odd_model()
    truth = model.state_dict()
    with closing(describe_live_model(model, LoneRank())) as live:
        assert list(live.checkpoint) == [name for name in truth if name != "again"]
        assert live.ties == {"again": "repeated"}
        for name, tensor in live.checkpoint.tensors.items():
            assert (tensor.shape, tensor.dtype.name) == (
                tuple(truth[name].shape),
                str(truth[name].dtype).removeprefix("torch."),
            )
            plain = truth[name].resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
            into = bytearray(tensor.nbytes)
            tensor.read(0, plain.numel(), memoryview(into))
            assert bytes(into) == bytes(plain.view(-1).view(torch.uint8).tolist())
        assert not check_numbers(live, LoneRank())


def test_any_range_of_memory_in_any_order_is_read_as_its_row_major_elements() -> None:
    turned = torch.arange(120.0).view(2, 3, 4, 5).permute(3, 1, 0, 2)
    flat = turned.contiguous().view(-1)
    for start in range(0, 120, 7):
        for stop in range(start, 121, 11):
            into = bytearray(2 * (stop - start))
            read_elements(turned, start, stop, memoryview(into), torch.bfloat16)
            assert bytes(into) == bytes(flat[start:stop].bfloat16().view(torch.uint8).tolist())


def test_checksums_differ_where_any_bit_does_and_not_by_the_order_of_memory() -> None:
    elements = torch.randn(3, 1001, 701)
    first = checksum_of(elements)
    assert checksum_of(elements.transpose(0, 2).contiguous().transpose(0, 2)) == first
    assert checksum_of(torch.cat((torch.zeros(1), elements.view(-1)))[1:].view(3, 1001, 701)) == first
    for at in ((0, 0, 0), (1, 500, 3), (2, 1000, 700)):
        changed = elements.clone()
        changed.view(torch.int32)[at] ^= 1
        assert checksum_of(changed) != first
    assert checksum_of(torch.tensor([float("nan")])) == checksum_of(torch.tensor([float("nan")]))
    assert checksum_of(torch.tensor(True)) != checksum_of(torch.tensor(False))


def test_a_name_is_a_wrappers_only_where_the_module_is_one() -> None:
    model = odd_model()
    assert bare_module(model) is model
    assert bare_module(torch.nn.DataParallel(torch.compile(model, backend="eager"))) is model
