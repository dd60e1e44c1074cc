"""The commands on checkpoints that real trainers left, as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from command_line import Said, Unshard, files_below
from trainers.catalogue import TrainedCheckpoint
from unshard.dtypes import DTYPES


def converted(unshard: Unshard, run: TrainedCheckpoint, out: Path, *words: object) -> Said:
    said = unshard("convert", run.path, out, "--base", run.base, *words)
    assert said.code == 0, said.err
    return said


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return bool(torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)))


def test_inspect_tells_what_a_person_asks(unshard: Unshard, recipes_run: TrainedCheckpoint) -> None:
    said = unshard("inspect", recipes_run.path)
    assert said.code == 0
    for fact in ("llama-recipes", "FSDP1", "Llama-like", "1 is shown; also there: 0", "--step", "CRC-32"):
        assert fact in said.words
    assert "unshard convert" in said.out
    assert said.err == ""


def test_inspect_as_json_has_every_tensor(unshard: Unshard, recipes_run: TrainedCheckpoint) -> None:
    found = unshard("inspect", recipes_run.path, "--json").json
    truth = load_file(recipes_run.truth)
    shapes = {name: tuple(tensor["shape"]) for name, tensor in found["tensors"].items()}
    assert shapes == {name: tuple(tensor.shape) for name, tensor in truth.items()}
    assert found["parameters"] == sum(t.numel() for t in truth.values())
    assert found["layout"]["writer"] == "llama-recipes"


def test_inspect_reads_no_byte_of_a_tensor(
    unshard: Unshard, recipes_run: TrainedCheckpoint, tmp_path: Path
) -> None:
    """Every byte of every tensor is changed, and the answer is the same but for the path."""
    source = next(iter(sorted(recipes_run.path.rglob("*-1.pt"))))
    before = unshard("inspect", source, "--json").json
    damaged = tmp_path / source.name
    content = bytearray(source.read_bytes())
    import unshard as package

    checkpoint = package.open(source)
    for checksum in checkpoint.checksums:
        content[checksum.start : checksum.stop] = bytes(
            255 - b for b in content[checksum.start : checksum.stop]
        )
    damaged.write_bytes(content)
    after = unshard("inspect", damaged, "--json").json
    assert after["tensors"] == before["tensors"]


def test_convert_writes_the_truth_in_the_bases_dtype(
    unshard: Unshard, recipes_run: TrainedCheckpoint, tmp_path: Path
) -> None:
    converted(unshard, recipes_run, tmp_path / "out")
    truth, found = load_file(recipes_run.truth), tensors_of(tmp_path / "out")
    assert recipes_run.base is not None
    with safe_open(recipes_run.base / "model.safetensors", "pt") as base:
        for name in base.keys():  # noqa: SIM118 - not a mapping
            wanted = truth[name].to(base.get_tensor(name).dtype)
            assert same_bits(found[name], wanted), name
        assert found.keys() == set(base.keys())


def test_convert_keeps_every_bit_when_told_to(
    unshard: Unshard, recipes_run: TrainedCheckpoint, tmp_path: Path
) -> None:
    converted(unshard, recipes_run, tmp_path / "out", "--dtype", "keep")
    truth, found = load_file(recipes_run.truth), tensors_of(tmp_path / "out")
    assert found.keys() == truth.keys()
    assert all(same_bits(found[name], truth[name]) for name in truth)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_convert_casts_as_torch_casts(
    unshard: Unshard, recipes_run: TrainedCheckpoint, tmp_path: Path, dtype: str
) -> None:
    converted(unshard, recipes_run, tmp_path / "out", "--dtype", dtype)
    truth, found = load_file(recipes_run.truth), tensors_of(tmp_path / "out")
    assert all(same_bits(found[name], truth[name].to(getattr(torch, dtype))) for name in truth)
    assert DTYPES[dtype].name in (tmp_path / "out" / "config.json").read_text()


def test_step_picks_an_older_epoch(unshard: Unshard, recipes_run: TrainedCheckpoint, tmp_path: Path) -> None:
    converted(unshard, recipes_run, tmp_path / "out", "--dtype", "keep", "--step", 0)
    truth, found = load_file(recipes_run.truths[0]), tensors_of(tmp_path / "out")
    assert all(same_bits(found[name], truth[name]) for name in truth)


def test_a_tied_head_is_dropped_and_the_tie_is_on(
    unshard: Unshard, tied_recipes_run: TrainedCheckpoint, tmp_path: Path
) -> None:
    said = converted(unshard, tied_recipes_run, tmp_path / "out")
    assert "lm_head.weight" not in tensors_of(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True
    assert "U301" in said.out


def test_small_files_have_an_index_that_names_them(
    unshard: Unshard, recipes_run: TrainedCheckpoint, tmp_path: Path
) -> None:
    converted(unshard, recipes_run, tmp_path / "out", "--dtype", "keep", "--max-shard-size", "200kB")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 1
    assert sorted(set(index["weight_map"].values())) == files
    truth = load_file(recipes_run.truth)
    assert all(same_bits(tensors_of(tmp_path / "out")[name], truth[name]) for name in truth)


def test_pt_is_a_plain_state_dict(unshard: Unshard, recipes_run: TrainedCheckpoint, tmp_path: Path) -> None:
    said = converted(unshard, recipes_run, tmp_path / "model.pt", "--to", "pt", "--dtype", "keep")
    truth = load_file(recipes_run.truth)
    for mmap in (False, True):
        found = torch.load(tmp_path / "model.pt", weights_only=True, mmap=mmap)
        assert found.keys() == truth.keys()
        assert all(same_bits(found[name], truth[name]) for name in truth)
    assert files_below(tmp_path) == ["model.pt", "model.pt.unshard.manifest.json"]
    assert "torch.load" in said.out


def test_pt_can_be_a_folder(unshard: Unshard, recipes_run: TrainedCheckpoint, tmp_path: Path) -> None:
    converted(unshard, recipes_run, tmp_path / "out", "--to", "pt")
    assert {"pytorch_model.bin", "config.json", "unshard.manifest.json"} <= set(files_below(tmp_path / "out"))
    assert unshard("verify", tmp_path / "out", "--against", recipes_run.path, "--no-forward").code == 0


def test_without_a_base_the_weights_are_written_and_the_rest_is_named(
    unshard: Unshard, recipes_run: TrainedCheckpoint, tmp_path: Path
) -> None:
    file = next(iter(sorted(recipes_run.path.rglob("*-1.pt"))))
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "weights.pt").write_bytes(file.read_bytes())
    said = unshard("convert", alone / "weights.pt", tmp_path / "out")
    assert said.code == 0
    assert "U601" in said.out
    assert "number of attention heads" in said.words
    assert files_below(tmp_path / "out") == ["model.safetensors", "unshard.manifest.json"]
    truth = load_file(recipes_run.truth)
    assert all(same_bits(tensors_of(tmp_path / "out")[name], truth[name]) for name in truth)


def test_a_dry_run_tells_everything_and_writes_nothing(
    unshard: Unshard, recipes_run: TrainedCheckpoint, tmp_path: Path
) -> None:
    said = unshard("convert", recipes_run.path, tmp_path / "out", "--base", recipes_run.base, "--dry-run")
    assert said.code == 0
    for word in ("model.safetensors", "config.json", "disk", "memory", "nothing was written"):
        assert word in said.words
    plan = unshard(
        "convert", recipes_run.path, tmp_path / "out", "--base", recipes_run.base, "--dry-run", "--json"
    ).json
    truth = load_file(recipes_run.truth)
    assert [decision["source"] for decision in plan["decisions"]] == list(torch_order(recipes_run))
    assert len(plan["decisions"]) == len(truth)
    assert files_below(tmp_path) == []


def torch_order(run: TrainedCheckpoint) -> list[str]:
    newest = min(run.path.rglob("*-1.pt"))
    return list(torch.load(newest, weights_only=True))


def test_the_planned_size_is_the_written_size(
    unshard: Unshard, recipes_run: TrainedCheckpoint, tmp_path: Path
) -> None:
    words = ("convert", recipes_run.path, tmp_path / "out", "--base", recipes_run.base)
    plan = unshard(*words, "--dry-run", "--json").json
    assert unshard(*words).code == 0
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    sizes.pop("unshard.manifest.json")
    assert sizes == {f["name"]: f["size"] for f in (*plan["files"], *plan["side_files"])}
    assert sum(sizes.values()) == plan["output_bytes"]


def test_one_worker_and_four_write_the_same_bytes(
    unshard: Unshard, recipes_run: TrainedCheckpoint, tmp_path: Path
) -> None:
    for workers in (1, 4):
        converted(unshard, recipes_run, tmp_path / str(workers), "--workers", workers)
    one, four = (tmp_path / str(n) / "model.safetensors" for n in (1, 4))
    assert one.read_bytes() == four.read_bytes()


def test_convert_again_needs_overwrite(
    unshard: Unshard, recipes_run: TrainedCheckpoint, tmp_path: Path
) -> None:
    converted(unshard, recipes_run, tmp_path / "out", "--dtype", "keep")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    refused = unshard("convert", recipes_run.path, tmp_path / "out", "--base", recipes_run.base)
    assert refused.code == 1
    assert "already exists" in refused.err
    assert "--overwrite" in refused.err
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    converted(unshard, recipes_run, tmp_path / "out", "--overwrite")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != before
    assert files_below(tmp_path) == files_below_names(tmp_path / "out")


def files_below_names(out: Path) -> list[str]:
    return sorted([out.name, *(f"{out.name}/{path.name}" for path in out.iterdir())])


def test_verify_proves_what_convert_wrote(
    unshard: Unshard, recipes_run: TrainedCheckpoint, tmp_path: Path
) -> None:
    converted(unshard, recipes_run, tmp_path / "out")
    said = unshard("verify", tmp_path / "out", "--against", recipes_run.path, "--base", recipes_run.base)
    assert said.code == 0, said.words
    assert "verified" in said.out
    levels = {
        level["name"]: level["verdict"]
        for level in unshard("verify", tmp_path / "out", "--json").json["levels"]
    }
    assert levels == {"bytes": "sound", "structure": "sound", "forward": "sound"}


def test_verify_works_on_a_folder_that_transformers_wrote(
    unshard: Unshard, recipes_run: TrainedCheckpoint
) -> None:
    said = unshard("verify", recipes_run.base)
    assert said.code == 0, said.words


def test_verify_finds_a_single_flipped_bit(
    unshard: Unshard, recipes_run: TrainedCheckpoint, tmp_path: Path
) -> None:
    converted(unshard, recipes_run, tmp_path / "out", "--dtype", "keep")
    path = tmp_path / "out" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    by_digest = unshard("verify", tmp_path / "out", "--no-forward")
    assert by_digest.code == 3
    assert "U703" in by_digest.out
    by_source = unshard("verify", tmp_path / "out", "--against", recipes_run.path, "--no-forward", "--json")
    assert by_source.code == 3
    (level,) = (level for level in by_source.json["levels"] if level["name"] == "bytes")
    assert level["verdict"] == "differs"
    assert any("1 elements differ" in (f["expected"] or "") for f in level["findings"])


def test_verify_against_another_step_differs(
    unshard: Unshard, recipes_run: TrainedCheckpoint, tmp_path: Path
) -> None:
    converted(unshard, recipes_run, tmp_path / "out", "--dtype", "keep", "--step", 0)
    newest = min(recipes_run.path.rglob("*-1.pt"))
    assert unshard("verify", tmp_path / "out", "--against", newest, "--no-forward").code == 3


def test_prove_runs_a_forward_pass_before_the_result_appears(
    unshard: Unshard, recipes_run: TrainedCheckpoint, tmp_path: Path
) -> None:
    said = converted(unshard, recipes_run, tmp_path / "out", "--prove", "--json").json
    assert [level["name"] for level in said["proof"]] == ["bytes", "structure", "forward"]
    assert said["proof"][-1]["verdict"] == "sound"


def test_a_model_that_gives_no_numbers_is_not_kept(
    unshard: Unshard, recipes_run: TrainedCheckpoint, tmp_path: Path
) -> None:
    state = torch.load(min(recipes_run.path.rglob("*-1.pt")), weights_only=True)
    state["model.norm.weight"] = torch.full_like(state["model.norm.weight"], np.nan)
    torch.save(state, tmp_path / "nan.pt")
    said = unshard("convert", tmp_path / "nan.pt", tmp_path / "out", "--base", recipes_run.base, "--prove")
    assert said.code == 3
    assert "model.norm.weight" in said.err
    assert files_below(tmp_path) == ["nan.pt"]


def test_run_answers_from_the_checkpoint_and_from_the_folder_alike(
    unshard: Unshard, recipes_run: TrainedCheckpoint, tmp_path: Path
) -> None:
    converted(unshard, recipes_run, tmp_path / "out")
    words = ("--prompt", "Hello", "--max-new-tokens", 8, "--quiet")
    folder = unshard("run", tmp_path / "out", *words)
    checkpoint = unshard("run", recipes_run.path, "--base", recipes_run.base, *words)
    assert folder.code == checkpoint.code == 0, checkpoint.err
    assert folder.out == checkpoint.out
    answers = unshard("run", tmp_path / "out", *words, "--prompt", "Bye", "--json").out.splitlines()
    assert [json.loads(line)["prompt"] for line in answers] == ["Hello", "Bye"]


def test_the_manifest_names_no_folder_of_this_machine(
    unshard: Unshard, recipes_run: TrainedCheckpoint, tmp_path: Path
) -> None:
    converted(unshard, recipes_run, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "unshard.manifest.json").read_text())
    findings = manifest.pop("findings")
    assert findings
    assert str(tmp_path.parent) not in json.dumps(manifest)
    tensors = tensors_of(tmp_path / "out")
    assert manifest["tensors"].keys() == tensors.keys()
