"""A checkpoint with fused experts, from inspection to logits: every job works on it as on any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import unshard
from tiny_experts import tiny_experts
from tiny_models import logits_of, same_bits
from trainers.tiny_llama import tiny_tokenizer
from unshard.errors import DamagedFileError
from unshard.manifest import read_manifest

TOKENS = torch.tensor([[5, 17, 40, 33, 8, 90, 12]])


@pytest.fixture(scope="module")
def trained() -> Any:
    return tiny_experts("mixtral", vocab_size=515)


@pytest.fixture(scope="module")
def base(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    trained.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "model.pt"
    torch.save(trained.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def converted(run: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "model"
    unshard.convert(run, out, base=base, prove=True)
    return out


def test_the_checkpoint_and_what_it_becomes_give_the_logits_of_training(
    trained: Any, run: Path, base: Path, converted: Path
) -> None:
    wanted = logits_of(trained, TOKENS)
    for path, named in ((run, base), (converted, None)):
        model, _ = unshard.load(path, base=named, device="cpu")
        assert same_bits(logits_of(model, TOKENS), wanted)


def test_the_folder_is_the_one_a_hub_would_hold(base: Path, converted: Path) -> None:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (converted, base))
    assert ours.keys() == theirs.keys()
    assert all(same_bits(tensor, theirs[name]) for name, tensor in ours.items())


def test_the_folder_is_verified_against_the_checkpoint(run: Path, converted: Path) -> None:
    proof = unshard.verify(converted, against=run, forward=False)
    assert proof.sound
    assert proof.levels[0].verdict == "sound"


def test_one_expert_for_another_is_found(run: Path, base: Path, converted: Path, tmp_path: Path) -> None:
    tensors = load_file(converted / "model.safetensors")
    name = "model.layers.1.block_sparse_moe.experts.{}.w1.weight"
    tensors[name.format(0)], tensors[name.format(1)] = tensors[name.format(1)], tensors[name.format(0)]
    (tmp_path / "config.json").write_bytes((converted / "config.json").read_bytes())
    save_file(tensors, tmp_path / "model.safetensors")
    proof = unshard.verify(tmp_path, against=run, forward=False)
    assert not proof.sound
    assert {finding.subject for finding in proof.findings} == {name.format(0), name.format(1)}


def test_damage_inside_one_expert_is_found(run: Path, base: Path, tmp_path: Path) -> None:
    damaged = bytearray(run.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "model.pt").write_bytes(damaged)
    with pytest.raises(DamagedFileError, match="disagree with their checksums"):
        unshard.convert(tmp_path / "model.pt", tmp_path / "out", base=base)
    assert not (tmp_path / "out").exists()


def test_one_file_is_written_and_verified_without_a_configuration(
    run: Path, base: Path, converted: Path, tmp_path: Path
) -> None:
    unshard.convert(run, tmp_path / "model.pt", base=base, to="pt")
    written = torch.load(tmp_path / "model.pt", weights_only=True)
    assert written.keys() == load_file(converted / "model.safetensors").keys()
    assert unshard.verify(tmp_path / "model.pt", against=run).sound


def test_the_manifest_says_what_every_expert_was_part_of(converted: Path) -> None:
    manifest = read_manifest(converted / "unshard.manifest.json")
    assert manifest is not None
    expert = manifest.tensors["model.layers.0.block_sparse_moe.experts.2.w3.weight"]
    assert expert.source == "model.layers.0.mlp.experts.gate_up_proj"
    assert "U207" in {finding["code"] for finding in manifest.findings}


def test_the_manifest_lists_all_that_was_put_together(
    run: Path, base: Path, converted: Path, tmp_path: Path
) -> None:
    fused = tmp_path / "fused"
    fused.mkdir()
    save_file(torch.load(run, weights_only=True), fused / "model.safetensors")
    (fused / "config.json").write_bytes((base / "config.json").read_bytes())
    unshard.convert(converted, tmp_path / "out", base=fused)
    manifest = read_manifest(tmp_path / "out" / "unshard.manifest.json")
    assert manifest is not None
    down = manifest.tensors["model.layers.0.mlp.experts.down_proj"]
    assert down.source == tuple(f"model.layers.0.block_sparse_moe.experts.{e}.w2.weight" for e in range(4))
    assert unshard.verify(tmp_path / "out", against=converted, forward=False).sound


def test_inspection_foretells_the_size_of_the_result(run: Path, base: Path, converted: Path) -> None:
    told = unshard.inspect(run, base=base)
    assert told.output_bytes == (converted / "model.safetensors").stat().st_size


def test_a_dry_run_tells_where_every_expert_goes(run: Path, base: Path, tmp_path: Path) -> None:
    decisions = unshard.plan_conversion(run, tmp_path / "out", base=base).plan.decisions
    parts = [d.target for d in decisions if d.source == "model.layers.0.mlp.experts.gate_up_proj"]
    assert len(parts) == len(set(parts)) == 8
