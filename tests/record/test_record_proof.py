"""Models held against records: verify and convert find what training did not hold, inspect and check tell."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from record_scenes import flip_bit, record_of, rewrite, tensors_of, write_with_record
from safetensors.torch import load_file

from command_line import Said, Unshard
from unshard.record.description import BaseOfTraining, TrainingConfig
from unshard.record.writing import record_to_bytes

NAME = "unshard.record.json"
ROW = "model.layers.1.mlp.up_proj.weight"
Folders = Callable[[str], Path]


@pytest.fixture
def recorded(tiny_folder: Folders, tmp_path: Path) -> Path:
    """A model folder with the record of its weights."""
    return write_with_record(tiny_folder("llama"), tmp_path / "model", torch.float16)


def record_level(said: Said) -> Any:
    (level,) = [level for level in said.json["levels"] if level["name"] == "record"]
    return level


def test_verify_says_that_tensors_are_what_training_held(recorded: Path, unshard: Unshard) -> None:
    said = unshard("verify", recorded, "--no-forward", "--json")
    assert said.code == 0
    level = record_level(said)
    assert level["verdict"] == "sound"
    assert level["evidence"] == ["21 of 21 tensors are exactly what training held (42 boxes, float32)"]


@pytest.mark.parametrize(("element", "part"), [(0, "rows 0 to 40 of 80"), (79 * 48, "rows 40 to 80 of 80")])
def test_verify_names_the_box_with_a_flipped_bit(
    recorded: Path, unshard: Unshard, element: int, part: str
) -> None:
    flip_bit(recorded, ROW, element)
    said = unshard("verify", recorded, "--no-forward", "--json")
    assert said.code == 3
    (found,) = record_level(said)["findings"]
    assert (found["code"], found["subject"]) == ("U721", ROW)
    assert found["saw"] == f"other float32 bits in {part}"


def test_verify_finds_a_tensor_replaced_by_one_of_equal_shape(recorded: Path, unshard: Unshard) -> None:
    state = load_file(recorded / "model.safetensors")
    other = ROW.replace("layers.1", "layers.0")
    rewrite(recorded, {ROW: state[other], other: state[ROW]})
    said = unshard("verify", recorded, "--no-forward", "--json")
    assert said.code == 3
    found = record_level(said)["findings"]
    assert {item["subject"] for item in found} == {ROW, other}
    assert "and 1 more of 2 boxes" in found[0]["saw"]


def test_verify_finds_missing_tensors_and_other_shapes(recorded: Path, unshard: Unshard) -> None:
    state = load_file(recorded / "model.safetensors")
    tensors = tensors_of({**state, ROW: torch.zeros(3, 3), "absent": torch.zeros(2)})
    (recorded / NAME).write_bytes(record_to_bytes(record_of(tensors)))
    said = unshard("verify", recorded, "--no-forward", "--json")
    assert said.code == 3
    found = record_level(said)["findings"]
    assert [(item["code"], item["subject"], item["saw"]) for item in found] == [
        ("U721", "`absent`", "1 of 22 tensors of training missing"),
        ("U721", ROW, "shape [80, 48]"),
    ]


def test_a_dtype_without_digests_is_told_and_is_no_difference(
    tiny_folder: Folders, tmp_path: Path, unshard: Unshard
) -> None:
    folder = write_with_record(tiny_folder("llama"), tmp_path / "model")
    rewrite(folder, {ROW: load_file(folder / "model.safetensors")[ROW].to(torch.bfloat16)})
    said = unshard("verify", folder, "--no-forward", "--json")
    level = record_level(said)
    assert level["verdict"] == "sound"
    assert level["evidence"] == ["20 of 21 tensors are exactly what training held (40 boxes, float32)"]
    (found,) = level["findings"]
    assert (found["code"], found["subject"]) == ("U722", f"`{ROW}`")
    assert found["expected"] == "digests in that dtype; there are some in float32"


def test_a_record_without_digests_proves_nothing_and_still_tells_what_is_missing(
    recorded: Path, unshard: Unshard
) -> None:
    state = load_file(recorded / "model.safetensors")
    bare = {name: dataclasses.replace(told, digests={}) for name, told in tensors_of(state).items()}
    (recorded / NAME).write_bytes(record_to_bytes(record_of(bare)))
    said = unshard("verify", recorded, "--no-forward", "--json")
    assert (said.code, record_level(said)["verdict"]) == (0, "not checked")
    absent = tensors_of({"absent": torch.zeros(2)})
    (recorded / NAME).write_bytes(record_to_bytes(record_of({**bare, **absent})))
    said = unshard("verify", recorded, "--no-forward", "--json")
    assert (said.code, record_level(said)["verdict"]) == (3, "differs")


def test_a_damaged_record_is_told_by_verify_and_check(recorded: Path, unshard: Unshard) -> None:
    content = (recorded / NAME).read_bytes()
    (recorded / NAME).write_bytes(content[: len(content) // 2])
    said = unshard("verify", recorded, "--no-forward", "--json")
    assert record_level(said)["verdict"] == "not checked"
    assert [item["code"] for item in record_level(said)["findings"]] == ["U724"]
    assert "U724" in [item["code"] for item in unshard("check", recorded, "--json").json["findings"]]


def test_a_sound_record_is_no_finding_of_check(recorded: Path, unshard: Unshard) -> None:
    codes = [item["code"] for item in unshard("check", recorded, "--json").json["findings"]]
    assert not {code for code in codes if code.startswith("U72") or code == "U627"}


def test_check_tells_a_record_of_another_model(
    recorded: Path, tiny_folder: Folders, tmp_path: Path, unshard: Unshard
) -> None:
    other = write_with_record(tiny_folder("qwen2"), tmp_path / "qwen")
    shutil.copy(other / NAME, recorded / NAME)
    (found,) = [f for f in unshard("check", recorded, "--json").json["findings"] if f["code"] == "U723"]
    assert "are not here" in found["saw"]


def test_inspect_tells_of_the_record(recorded: Path, unshard: Unshard) -> None:
    record = unshard("inspect", recorded, "--json").json["record"]
    assert record.pop("path") == str(recorded / NAME)
    assert record == {
        "created": "2026-11-24T12:00:00+00:00",
        "step": 400,
        "ranks": 2,
        "kind": "fsdp2",
        "tensors": 21,
        "dtypes": ["float32", "float16"],
        "has_fingerprint": True,
    }
    line = "step 400, 2 ranks (fsdp2), digests of 21 tensors in float32, float16, fingerprint"
    assert line in unshard("inspect", recorded).words
    (recorded / NAME).unlink()
    assert unshard("inspect", recorded, "--json").json["record"] is None


def test_verify_holds_a_single_file_against_the_record_beside_it(recorded: Path, unshard: Unshard) -> None:
    state = load_file(recorded / "model.safetensors")
    ties = {"lm_head.weight": "model.embed_tokens.weight"}
    model = dataclasses.replace(record_of({}).model, ties=ties)
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    told = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
    path = recorded.parent / "model.pt"
    torch.save(state, path)
    path.with_name(f"model.pt.{NAME}").write_bytes(record_to_bytes(record_of(tensors_of(told), model=model)))
    said = unshard("verify", path, "--no-forward", "--json")
    assert record_level(said)["evidence"][0].startswith("21 of 21 tensors")
    state["lm_head.weight"][0, 0] += 1
    torch.save(state, path)
    said = unshard("verify", path, "--no-forward", "--json")
    assert said.code == 3
    assert [item["subject"] for item in record_level(said)["findings"]] == ["lm_head.weight"]


def test_a_record_in_the_folder_of_a_file_counts_where_its_names_and_shapes_fit(
    recorded: Path, unshard: Unshard
) -> None:
    state = load_file(recorded / "model.safetensors")
    folder = recorded.parent / "alone"
    folder.mkdir()
    shutil.move(recorded / NAME, folder / NAME)
    torch.save(state, folder / "model.pt")
    assert (
        record_level(unshard("verify", folder / "model.pt", "--no-forward", "--json"))["verdict"] == "sound"
    )
    torch.save({f"_orig_mod.{name}": tensor for name, tensor in state.items()}, folder / "model.pt")
    assert "cannot be verified by itself" in unshard("verify", folder / "model.pt", "--no-forward").words


@pytest.fixture
def run(tiny_folder: Folders, tmp_path: Path) -> Path:
    """A run with the state dict of a tiny Llama, trained from `base`, and its record."""
    base = shutil.copytree(tiny_folder("llama"), tmp_path / "base")
    state = {name: tensor + 0.5 for name, tensor in load_file(base / "model.safetensors").items()}
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save(state, folder / "model-4.pt")
    write_record(folder, state, torch.bfloat16)
    return folder


def write_record(folder: Path, state: dict[str, torch.Tensor], *dtypes: torch.dtype) -> None:
    training = TrainingConfig("mapping", {"pure_bf16": True, "lr": 1e-5}, ("unshard.training_config.json",))
    base = BaseOfTraining(str(folder.parent / "base"), None)
    record = record_of(tensors_of(state, dtypes), training=training, base=base)
    (folder / NAME).write_bytes(record_to_bytes(record))
    (folder / "unshard.training_config.json").write_text('{"lr": 1e-05}')


def test_convert_finds_the_base_by_the_record_and_proves_the_result_with_it(
    run: Path, unshard: Unshard
) -> None:
    out = run.parent / "out"
    said = unshard("convert", run, out, "--json")
    assert said.code == 0
    assert (out / NAME).read_bytes() == (run / NAME).read_bytes()
    assert (out / "unshard.training_config.json").read_text() == '{"lr": 1e-05}'
    manifest = json.loads((out / "unshard.manifest.json").read_text())
    assert manifest["base"]["found"] == "the record of training, unshard.record.json"
    assert manifest["proof"]["record"] == {
        "verdict": "sound",
        "evidence": ["21 of 21 tensors are exactly what training held (42 boxes, float32)"],
    }
    origins = {file["name"]: file["origin"] for file in manifest["side_files"]}
    assert origins[NAME] == "the record of training, unchanged"
    assert unshard("verify", out, "--no-forward").code == 0
    flip_bit(out, ROW, 7)
    assert "U721" in unshard("verify", out, "--no-forward").words


def test_casts_are_proven_by_digests_of_the_dtype_that_is_served(run: Path, unshard: Unshard) -> None:
    said = unshard("convert", run, run.parent / "out", "--dtype", "bfloat16", "--json")
    assert said.code == 0
    manifest = json.loads((run.parent / "out" / "unshard.manifest.json").read_text())
    assert "(42 boxes, bfloat16)" in manifest["proof"]["record"]["evidence"][0]


def test_convert_refuses_tensors_that_training_did_not_hold(run: Path, unshard: Unshard) -> None:
    state = torch.load(run / "model-4.pt")
    state[ROW][3, 5] += 1
    torch.save(state, run / "model-4.pt")
    said = unshard("convert", run, run.parent / "out")
    assert said.code == 3
    assert f"is not what it should be, so it was not kept: {ROW}" in said.words
    assert "If the record is that of another training or step, remove it." in said.words
    assert not (run.parent / "out").exists()


def test_a_record_of_another_model_is_told_and_left_behind(run: Path, unshard: Unshard) -> None:
    state = torch.load(run / "model-4.pt")
    write_record(run, {**state, ROW: torch.zeros(2)})
    said = unshard("convert", run, run.parent / "out", "--json")
    assert said.code == 0
    assert "U723" in [item["code"] for item in said.json["findings"]]
    assert not (run.parent / "out" / NAME).exists()
    codes = [item["code"] for item in unshard("check", run, "--json").json["findings"]]
    assert "U723" in codes


def test_what_was_rounded_and_is_widened_again_leaves_the_record_behind(run: Path, unshard: Unshard) -> None:
    narrow, wide = run.parent / "narrow", run.parent / "wide"
    state = {name: tensor + 2**-12 for name, tensor in torch.load(run / "model-4.pt").items()}
    torch.save(state, run / "model-4.pt")
    write_record(run, state, torch.bfloat16)
    assert unshard("convert", run, narrow, "--dtype", "bfloat16").code == 0
    said = unshard("convert", narrow, wide, "--dtype", "float32", "--json")
    assert said.code == 0
    assert "U726" in [item["code"] for item in said.json["findings"]]
    assert not (wide / NAME).exists()


def test_a_model_without_a_configuration_is_not_run(run: Path, unshard: Unshard) -> None:
    out = run.parent / "out"
    assert unshard("convert", run, out).code == 0
    (out / "config.json").unlink()
    levels = {level["name"]: level for level in unshard("verify", out, "--json").json["levels"]}
    assert levels["forward"]["verdict"] == "not checked"
    assert "there is no config.json" in levels["forward"]["evidence"][0]


def test_the_record_of_a_base_is_not_that_of_what_was_trained_from_it(run: Path, unshard: Unshard) -> None:
    base = run.parent / "base"
    shutil.move(run / NAME, base / NAME)
    (run / "unshard.training_config.json").rename(base / "unshard.training_config.json")
    said = unshard("convert", run, run.parent / "out", "--base", base, "--json")
    assert said.code == 0
    assert not list((run.parent / "out").glob("unshard.record*"))
    assert not list((run.parent / "out").glob("unshard.training*"))


def test_training_parameters_are_those_of_the_record_where_no_other_file_has_some(
    run: Path, unshard: Unshard
) -> None:
    said = unshard("inspect", run, "--json").json
    assert said["training"]["values"] == {"lr": "1e-05", "pure_bf16": "True"}
    assert said["precision"] == {"pure_bf16": "True"}
    (run / "train_params.yaml").write_text("model_name: nowhere\n")
    assert unshard("inspect", run, "--json").json["training"]["values"] == {"model_name": "nowhere"}


def test_the_revision_of_the_base_is_the_one_that_the_record_names(
    run: Path, monkeypatch: pytest.MonkeyPatch, unshard: Unshard
) -> None:
    cache = run.parent / "cache"
    repository = cache / "models--org--model"
    for commit in ("a" * 40, "c" * 40):
        shutil.copytree(run.parent / "base", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c" * 40)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    state = torch.load(run / "model-4.pt")
    (run / NAME).write_bytes(record_to_bytes(record_of(tensors_of(state))))
    (repository / "snapshots" / ("a" * 40) / "LICENSE").write_text("that of the revision")
    assert unshard("convert", run, run.parent / "out").code == 0
    assert (run.parent / "out" / "LICENSE").read_text() == "that of the revision"


def test_a_training_configuration_that_is_a_link_elsewhere_is_not_carried_on(
    run: Path, unshard: Unshard
) -> None:
    (run.parent / "private").write_text("private")
    (run / "unshard.training_config.json").unlink()
    (run / "unshard.training_config.json").symlink_to(run.parent / "private")
    assert unshard("convert", run, run.parent / "out").code == 0
    assert not (run.parent / "out" / "unshard.training_config.json").exists()
