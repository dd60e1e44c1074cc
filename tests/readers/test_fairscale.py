"""fairscale's shards: the conformance suite, and files that do not belong together.

The writer here does what `_get_shard` and `local_metadata_dict` of fairscale 0.4.13 do, whose own files
of small models are read bit for bit, too.
"""

from __future__ import annotations

import shutil
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from awkward import awkward_tensors, read_values, true_values
from reader_suite import ReaderSuite, opened

from unshard.conversion import convert
from unshard.errors import (
    IncompleteCheckpointError,
    InputError,
    UnsafeFileError,
    UnsupportedLayoutError,
)
from unshard.readers import open_checkpoint

RANKS = 3
Tensors = Mapping[str, torch.Tensor]


def shard_of(flat: torch.Tensor, rank: int, ranks: int) -> tuple[torch.Tensor, int]:
    """Return what `_get_shard` gives a rank, and its padding."""
    chunks = list(flat.chunk(ranks))
    while len(chunks) < ranks:
        chunks.append(chunks[0].new_empty(0))
    padding = chunks[0].numel() - chunks[rank].numel()
    return torch.nn.functional.pad(chunks[rank].clone(), [0, padding]), padding


def states_of(
    modules: Mapping[str, Tensors],
    buffers: Tensors,
    *,
    ranks: int = RANKS,
    shared: Mapping[str, Sequence[tuple[str, str]]] | None = None,
    own: bool = False,
) -> list[dict[str, Any]]:
    """Return what every rank saves of wrapped modules, each with a flat parameter for every dtype."""
    states = []
    for rank in range(ranks):
        model: dict[str, Any] = OrderedDict()
        metadata = []
        for path, parameters in modules.items():
            before = f"{path}." if path else ""
            params = {}
            for i, dtype in enumerate(dict.fromkeys(t.dtype for t in parameters.values())):
                group = {name: tensor for name, tensor in parameters.items() if tensor.dtype == dtype}
                flat = torch.cat([tensor.detach().reshape(-1) for tensor in group.values()])
                model[f"{before}flat_param_{i}"], padding = shard_of(flat, rank, ranks)
                params[f"flat_param_{i}"] = {
                    "names": list(group),
                    "shapes": [tensor.shape for tensor in group.values()],
                    "numels": [tensor.numel() for tensor in group.values()],
                    "padding": padding,
                }
            metadata.append(
                {
                    "fsdp_path": path,
                    "params": params,
                    "no_broadcast_optim_state": own,
                    "shared_param_info": list((shared or {}).get(path, ())),
                }
            )
        model |= {name: tensor.clone() for name, tensor in buffers.items()}
        states.append(
            {
                "cfg": {"task": "language_modeling"},
                "model": model,
                "last_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{}]},
                "shard_metadata": {"param_metadata": metadata, "buffer_names": list(buffers)},
            }
        )
    return states


def save(states: Sequence[object], folder: Path, stem: str = "checkpoint_last") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for rank, state in enumerate(states):
        torch.save(state, folder / f"{stem}-shard{rank}.pt")
    return folder


class TestFairscale(ReaderSuite):
    """Everything that has elements in flat parameters of two modules, all else as buffers."""

    @classmethod
    def tensors(cls) -> Tensors:
        # A flat parameter keeps neither views nor attributes; the pair is kept once and named twice.
        return {name: tensor.detach().clone() for name, tensor in awkward_tensors().items()}

    @classmethod
    def write(cls, tensors: Tensors, folder: Path) -> Path:
        flat = {n: t for n, t in tensors.items() if t.numel() and "." in n and n != "tied.head"}
        buffers = {n: t for n, t in tensors.items() if n not in flat and n != "tied.head"}
        inner = {n.removeprefix("view."): t for n, t in flat.items() if n.startswith("view.")}
        outer = {n: t for n, t in flat.items() if not n.startswith("view.")}
        shared = {"": [("tied.embedding", "tied.head")]}
        return save(states_of({"": outer, "view": inner}, buffers, shared=shared), folder)


MODULES: dict[str, Tensors] = {
    "": {"embed.weight": torch.arange(33.0).reshape(11, 3), "norm.weight": torch.arange(3.0)},
    "layers.0": {"a.weight": torch.arange(35.0).reshape(5, 7), "a.bias": torch.arange(5.0)},
}
BUFFERS = {"layers.0.scale": torch.tensor(2.5)}
TRUTH = {
    **MODULES[""],
    **{f"layers.0.{name}": tensor for name, tensor in MODULES["layers.0"].items()},
    **BUFFERS,
}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return save(states_of(MODULES, BUFFERS), tmp_path / "run")


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 64])
def test_any_number_of_ranks_is_put_together(ranks: int, tmp_path: Path) -> None:
    folder = save(states_of(MODULES, BUFFERS, ranks=ranks), tmp_path / "run")
    assert read_values(opened(folder).tensors) == true_values(TRUTH)


def test_the_run_is_told_and_needs_no_base(shards: Path, tmp_path: Path) -> None:
    checkpoint = opened(shards)
    assert (checkpoint.layout.name, checkpoint.layout.writer) == ("fairscale", "metaseq")
    assert checkpoint.unshaped is None
    assert "optimizer" in {extra.kind for extra in checkpoint.extras}
    convert(shards, tmp_path / "out.pt", to="pt", dtype="keep", durable=False)
    assert true_values(torch.load(tmp_path / "out.pt", weights_only=True)) == true_values(TRUTH)


def test_buffers_of_other_ranks_are_replicas(shards: Path) -> None:
    replicas = opened(shards).replicas
    assert [replica.name for replica in replicas] == ["layers.0.scale"] * 2


@pytest.mark.parametrize("rank", range(RANKS))
def test_a_missing_rank_is_named(rank: int, shards: Path) -> None:
    (shards / f"checkpoint_last-shard{rank}.pt").unlink()
    with pytest.raises(IncompleteCheckpointError, match=f"no files of rank {rank}") as caught:
        opened(shards)
    assert {gap.code for gap in caught.value.gaps} == {"U110", "U112"}
    assert {gap.subject for gap in caught.value.gaps if gap.code == "U112"} == {
        "flat_param_0",
        "layers.0.flat_param_0",
    }


def test_names_that_were_exchanged_are_seen_by_the_padding(shards: Path) -> None:
    last, first = shards / "checkpoint_last-shard2.pt", shards / "checkpoint_last-shard0.pt"
    content = last.read_bytes()
    last.write_bytes(first.read_bytes())
    first.write_bytes(content)
    with pytest.raises(UnsafeFileError, match="cannot be of one save"):
        opened(shards)


def test_a_shard_of_another_number_of_ranks_is_refused(shards: Path) -> None:
    torch.save(states_of(MODULES, BUFFERS, ranks=2)[1], shards / "checkpoint_last-shard1.pt")
    with pytest.raises(UnsafeFileError, match="cannot be of one save"):
        opened(shards)


def test_a_shard_of_another_model_is_refused(shards: Path) -> None:
    other = {"": MODULES[""], "layers.1": MODULES["layers.0"]}
    torch.save(states_of(other, BUFFERS)[1], shards / "checkpoint_last-shard1.pt")
    with pytest.raises(UnsafeFileError, match="contradict one another about their parameters"):
        opened(shards)


def test_several_steps_lie_side_by_side(tmp_path: Path) -> None:
    save(states_of(MODULES, BUFFERS), tmp_path, "checkpoint_100")
    save(states_of({**MODULES, "": {"more": torch.ones(4)}}, BUFFERS), tmp_path, "checkpoint_200")
    assert "more" in opened(tmp_path).tensors
    assert "more" not in open_checkpoint(tmp_path, step=100, select=None).tensors


def test_tensor_parallel_parts_are_refused_by_name(tmp_path: Path) -> None:
    for part in (0, 1):
        save(states_of(MODULES, BUFFERS), tmp_path, f"checkpoint_last-model_part-{part}")
    with pytest.raises(UnsupportedLayoutError, match="model in tensor-parallel parts"):
        opened(tmp_path)


def test_a_single_part_is_read(tmp_path: Path) -> None:
    save(states_of(MODULES, BUFFERS), tmp_path, "checkpoint_last-model_part-0")
    assert read_values(opened(tmp_path).tensors) == true_values(TRUTH)


def test_parameters_of_one_rank_each_are_refused_by_name(tmp_path: Path) -> None:
    save(states_of(MODULES, BUFFERS, own=True), tmp_path)
    with pytest.raises(UnsupportedLayoutError, match="every rank has for itself"):
        opened(tmp_path)


def test_other_files_of_such_names_are_refused(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(2)}}, tmp_path / "model-shard0.pt")
    with pytest.raises(UnsupportedLayoutError, match="does not say what its parameters are"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ["a.weight"]}, "lists of different lengths"),
        ({"names": ["a.weight", "a.weight"]}, "one name twice"),
        ({"names": ["a.weight", 3]}, "`names` cannot be"),
        ({"names": ["a.weight", "a\x07"]}, "`names` cannot be"),
        ({"names": None}, "`names` cannot be"),
        ({"shapes": [torch.Size([5, 7]), [5]]}, "`shapes` cannot be"),
        ({"shapes": [torch.Size([5, 7]), (-5,)]}, "`shapes` cannot be"),
        ({"shapes": [torch.Size([5, 7]), (1 << 40, 1 << 40)]}, "`shapes` cannot be"),
        ({"numels": [35, 6]}, "`numels` cannot be"),
        ({"numels": [35, True]}, "`numels` cannot be"),
        ({"padding": -1}, "`padding` cannot be"),
        ({"padding": 1}, "cannot be of one save"),
        ({"padding": 100}, "cannot be of one save"),
        ({"shapes": [torch.Size([5, 7]), (1 << 61,)], "numels": [35, 1 << 61]}, "lacks parts of 1 flat"),
    ],
)
def test_metadata_that_cannot_be_are_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    states = states_of({"m": MODULES["layers.0"]}, {}, ranks=1)
    states[0]["shard_metadata"]["param_metadata"][0]["params"]["flat_param_0"] |= change
    save(states, tmp_path)
    with pytest.raises(InputError, match=message):
        opened(tmp_path)


def test_metadata_of_other_kinds_are_refused(tmp_path: Path) -> None:
    for number, metadata in enumerate((3, [3], [{"fsdp_path": 3}], [{"fsdp_path": "", "params": 3}])):
        states = states_of({"m": MODULES["layers.0"]}, {}, ranks=1)
        states[0]["shard_metadata"]["param_metadata"] = metadata
        with pytest.raises(InputError):
            opened(save(states, tmp_path / str(number)))


def test_a_name_in_two_modules_is_refused(tmp_path: Path) -> None:
    states = states_of({"m": {"n.w": torch.ones(2)}, "m.n": {"w": torch.ones(2)}}, {}, ranks=1)
    with pytest.raises(UnsafeFileError, match=r"`m\.n\.w` in two places"):
        opened(save(states, tmp_path))


def test_ranks_on_several_nodes_are_united(shards: Path, tmp_path: Path) -> None:
    for rank in range(RANKS):
        node = tmp_path / f"node{rank}" / "run"
        node.mkdir(parents=True)
        shutil.move(shards / f"checkpoint_last-shard{rank}.pt", node)
    nodes = [tmp_path / f"node{rank}" for rank in range(RANKS)]
    assert read_values(open_checkpoint(nodes).tensors) == true_values(TRUTH)
