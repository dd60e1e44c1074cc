"""Records of models on real ranks: what each rank hashes is what a converted folder holds, bit for bit."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

from command_line import Unshard
from trainers.ranks import run_ranks
from trainers.run import Wrapping
from trainers.tiny_llama import tiny_llama, write_base
from trainers.tiny_moe import tiny_moe
from trainers.tiny_moe import write_base as write_moe_base
from trainers.wrapping import wrapped

SCENES: dict[str, tuple[str, Wrapping]] = {
    "fsdp1-flat": ("llama", Wrapping(fsdp=1, use_orig_params=False)),
    "fsdp1-tied": ("llama-tied", Wrapping(fsdp=1, use_orig_params=True)),
    "fsdp2": ("llama", Wrapping(fsdp=2)),
    "fsdp2-tied": ("llama-tied", Wrapping(fsdp=2)),
    "fsdp2-copied-head": ("llama-copied-head", Wrapping(fsdp=2)),
    "fsdp1-experts": ("mixtral", Wrapping(fsdp=1, use_orig_params=False)),
    "fsdp2-experts": ("qwen3-moe", Wrapping(fsdp=2)),
    "one-rank-of-two": ("llama", Wrapping(fsdp=0)),
}


@dataclasses.dataclass
class TrainConfig:
    lr: float = 1e-5
    hub_token: str = "hf_" + "aBcD1234" * 4


def model_of(kind: str) -> Any:
    if kind.startswith("llama"):
        model = tiny_llama(7, tied=kind != "llama", dtype=torch.float32)
        if kind == "llama-copied-head":  # tied by its configuration, and two parameters all the same
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        return model
    return tiny_moe(kind, 7, dtype=torch.float32)


def leave_scenes(root: str) -> None:
    """Leave a DCP checkpoint with a record for every scene."""
    for name, (kind, wrapping) in SCENES.items():
        leave(Path(root), name, kind, wrapping)


def leave(root: Path, name: str, kind: str, wrapping: Wrapping) -> None:
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    from unshard.training.record_alone import record

    model = wrapped(model_of(kind), wrapping)
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=root / name)
    made = record(
        model,
        root / name,
        config=TrainConfig(),
        base=root / f"base-{kind.replace('copied-head', 'tied')}",
        step=4,
        data="noise",
        fingerprint=name == "fsdp2",
        durable=False,
    )
    (root / f"{name}-rank-{dist.get_rank()}").write_text(repr(made))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and a DCP checkpoint with its record for every scene."""
    root = tmp_path_factory.mktemp("recorded")
    write_base(root / "base-llama", tied=False)
    write_base(root / "base-llama-tied", tied=True)
    for kind in ("mixtral", "qwen3-moe"):
        write_moe_base(kind, root / f"base-{kind}")
    run_ranks(2, leave_scenes, str(root), timeout_seconds=120)
    return root


def record_in(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "unshard.record.json").read_text())
    return found


@pytest.mark.parametrize("name", SCENES)
def test_a_converted_folder_is_proven_to_hold_what_ranks_held(
    scenes: Path, tmp_path: Path, unshard: Unshard, name: str
) -> None:
    said = unshard("convert", scenes / name, tmp_path / "out", "--json")
    assert said.code == 0, said.words
    proof = json.loads((tmp_path / "out" / "unshard.manifest.json").read_text())["proof"]["record"]
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert proof["verdict"] == "sound"
    assert proof["evidence"][0].startswith(
        f"{len(state)} of {len(state)} tensors are exactly what training held"
    )
    assert "bfloat16)" in proof["evidence"][0]
    assert state.keys() == record_in(scenes / name)["tensors"].keys()
    said = unshard("convert", scenes / name, tmp_path / "kept", "--dtype", "keep", "--json")
    assert said.code == 0
    proof = json.loads((tmp_path / "kept" / "unshard.manifest.json").read_text())["proof"]["record"]
    assert "float32)" in proof["evidence"][0]


@pytest.mark.parametrize("name", SCENES)
def test_every_rank_has_the_same_record(scenes: Path, name: str) -> None:
    first, second = ((scenes / f"{name}-rank-{rank}").read_text() for rank in (0, 1))
    assert first == second


def boxes_of(record: Mapping[str, Any], dtype: str) -> dict[str, int]:
    return {name: len(tensor["digests"][dtype]) for name, tensor in record["tensors"].items()}


def test_ranks_hash_the_boxes_that_they_own(scenes: Path) -> None:
    assert set(boxes_of(record_in(scenes / "fsdp2"), "bfloat16").values()) == {2}
    flat = boxes_of(record_in(scenes / "fsdp1-flat"), "bfloat16")
    assert sorted(set(flat.values())) > [1]  # a unit is cut in one tensor, in the middle of a row
    assert min(flat.values()) == 1


def test_the_record_tells_the_run(scenes: Path) -> None:
    record = record_in(scenes / "fsdp1-flat")
    assert (record["step"], record["data"]) == (4, "noise")
    assert record["training"] == {
        "kind": "dataclass",
        "values": {"lr": 1e-5},
        "files": ["unshard.training_config.json"],
    }
    assert record["base"]["reference"] == str(scenes / "base-llama")
    assert record["model"]["class_name"] == "transformers.models.llama.modeling_llama.LlamaForCausalLM"
    assert record["model"]["config"]["hidden_size"] == 48
    assert record["model"]["parameters"] == record["model"]["trainable"]
    assert record["distribution"]["kind"] == "fsdp1"
    assert record["distribution"]["world_size"] == 2
    assert record["environment"]["packages"]["torch"] == torch.__version__
    assert record["fingerprint"] is None
    assert record_in(scenes / "fsdp2")["fingerprint"]["vocabulary"] == 515
    assert (scenes / "fsdp1-flat" / "unshard.training_config.json").read_text() == '{"lr": 1e-05}\n'


def test_tied_parameters_are_recorded_once(scenes: Path) -> None:
    for name in ("fsdp1-tied", "fsdp2-tied"):
        record = record_in(scenes / name)
        assert "lm_head.weight" not in record["tensors"]
        assert record["model"]["ties"] == {"lm_head.weight": "model.embed_tokens.weight"}


def test_a_flipped_bit_in_what_training_left_is_found_by_the_record(
    scenes: Path, tmp_path: Path, unshard: Unshard
) -> None:
    assert unshard("convert", scenes / "fsdp1-experts", tmp_path / "out").code == 0
    path = tmp_path / "out" / "model.safetensors"
    state = load_file(path)
    name = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    state[name].view(torch.int16)[5, 7] ^= 1
    save_file(state, path, metadata={"format": "pt"})
    said = unshard("verify", tmp_path / "out", "--no-forward", "--json")
    assert said.code == 3
    (level,) = [level for level in said.json["levels"] if level["name"] == "record"]
    assert [found["subject"] for found in level["findings"]] == [name]


def test_a_record_of_another_step_is_refused(scenes: Path, tmp_path: Path, unshard: Unshard) -> None:
    run = shutil.copytree(scenes / "fsdp2", tmp_path / "run")
    record = record_in(run)
    digests = record["tensors"]["model.norm.weight"]["digests"]["bfloat16"]
    digests[0]["sha256"], digests[1]["sha256"] = digests[1]["sha256"], digests[0]["sha256"]
    (run / "unshard.record.json").write_text(json.dumps(record))
    said = unshard("convert", run, tmp_path / "out")
    assert said.code == 3
    assert "model.norm.weight" in said.words
