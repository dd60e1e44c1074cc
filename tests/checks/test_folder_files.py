"""Files of weights and what lies beside them: each defect is told with its numbers, and then is not."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from broken_folders import WEIGHTS, codes, copied, found, only, reindexed, rewritten, split
from safetensors.torch import load_file, save_file

from unshard.checks.evidence import Evidence
from unshard.checks.weight_files import CHECKS
from unshard.model_folder import read_model_folder

Folder = Callable[[str], Path]
INDEX = "model.safetensors.index.json"
SECOND = "model-00002-of-00002.safetensors"
NORM = "model.norm.weight"


@pytest.fixture
def folder(tiny_folder: Folder, tmp_path: Path) -> Path:
    return copied(tiny_folder("llama"), tmp_path / "model")


@pytest.fixture
def parts(folder: Path) -> Path:
    return split(folder)


def test_a_folder_of_one_file_and_one_of_several_are_sound(folder: Path) -> None:
    assert found(folder) == []
    assert found(split(folder)) == []


def test_a_file_that_is_cut_short_is_told(parts: Path) -> None:
    size = (parts / SECOND).stat().st_size
    content = (parts / SECOND).read_bytes()
    os.truncate(parts / SECOND, size - 100)
    told = only(found(parts))
    assert (told.code, told.subject) == ("U610", f"`{SECOND}`")
    assert f"through byte {size:,}, saw {size - 100:,} bytes" in told.saw
    (parts / SECOND).write_bytes(content)
    assert found(parts) == []


def test_a_pointer_of_git_lfs_is_told_with_the_command(folder: Path) -> None:
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n")
    told = only(found(folder))
    assert (told.code, told.remedy) == ("U610", "Run in the folder: git lfs pull")


def test_a_folder_without_weights_is_told(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.safetensors")
    told = only(found(folder))
    assert (told.code, told.saw) == ("U622", "only `adapter_model.safetensors`")


def test_a_file_that_the_index_names_and_is_not_there_is_told(parts: Path) -> None:
    lost = list(load_file(parts / SECOND))
    (parts / SECOND).unlink()
    told = next(item for item in found(parts) if item.code == "U611")
    assert told.saw.startswith(f"`{SECOND}` missing, with {len(lost)} tensors: ")


def test_tensors_that_the_index_names_and_no_file_has_are_told(parts: Path) -> None:
    reindexed(parts, lambda listed: listed | {"model.extra.weight": SECOND})
    told = only(found(parts))
    assert (told.code, told.saw) == ("U611", "1 tensor in no file: `model.extra.weight`")


@pytest.mark.parametrize("where", ["../outside", "/etc/passwd", ""])
def test_an_index_that_leads_out_of_the_folder_names_what_is_not_there(where: str, parts: Path) -> None:
    reindexed(parts, lambda listed: dict.fromkeys(listed, where))
    assert "U611" in codes(found(parts))


@pytest.mark.parametrize("text", ['{"weight_map": 3}', '{"weight_map": {"a": 1}}', "{}"])
def test_an_index_without_a_map_is_told(text: str, parts: Path) -> None:
    (parts / INDEX).write_text(text)
    told = only(found(parts))
    assert (told.code, told.saw) == ("U611", "no weight_map")


def test_tensors_in_another_file_than_the_index_says_are_told(parts: Path) -> None:
    first = "model-00001-of-00002.safetensors"
    reindexed(parts, lambda listed: {n: first for n in listed if n != NORM})
    moved, unlisted = found(parts)
    count = len(load_file(parts / SECOND).keys() - {NORM})
    assert (moved.code, unlisted.code) == ("U612", "U612")
    assert moved.saw.startswith(f"{count} tensors in another file than it says")
    assert unlisted.saw == f"1 tensor not listed: `{NORM}`"


def test_a_tensor_in_two_files_is_told(parts: Path) -> None:
    name, tensor = next(iter(load_file(parts / SECOND).items()))
    save_file({name: tensor}, parts / "stray.safetensors", metadata={"format": "pt"})
    told = only(found(parts))
    assert (told.code, told.subject) == ("U613", f"`{name}`")
    assert told.saw == f"in `{SECOND}` and in `stray.safetensors`"


def test_several_files_without_an_index_are_told(parts: Path) -> None:
    (parts / INDEX).unlink()
    told = only(found(parts))
    assert (told.code, told.saw.partition(":")[0]) == ("U614", "2 files of weights")


def test_another_size_than_the_index_gives_is_told(parts: Path) -> None:
    index = json.loads((parts / INDEX).read_text())
    right = index["metadata"]["total_size"]
    (parts / INDEX).write_text(json.dumps(index | {"metadata": {"total_size": right + 2}}))
    told = only(found(parts))
    assert (told.code, told.saw, told.expected) == ("U615", f"total_size {right + 2}", str(right))


def test_one_file_that_hides_the_parts_is_told(parts: Path) -> None:
    state = load_file(parts / SECOND)
    save_file(state, parts / WEIGHTS, metadata={"format": "pt"})
    hidden = len(load_file(parts / "model-00001-of-00002.safetensors"))
    told = next(item for item in found(parts) if item.code == "U616")
    assert f"{hidden} tensors of the others never" in told.saw


def test_pickles_of_torch_are_told(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    assert codes(found(folder)) == ["U618"]


def test_a_giant_file_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unshard.checks.weight_files._GIANT_BYTES", 1000)
    told = only(found(folder))
    assert (told.code, told.subject) == ("U617", f"`{WEIGHTS}`")


def test_the_name_that_flips_engines_to_another_format_is_told(folder: Path) -> None:
    (folder / "consolidated.00.safetensors").write_bytes((folder / WEIGHTS).read_bytes())
    told = only(found(folder))
    assert (told.code, told.subject) == ("U619", "`consolidated.00.safetensors`")
    (folder / "params.json").write_text("{}")
    assert found(folder) == []


def test_state_of_training_is_told(folder: Path) -> None:
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "trainer_state.json"):
        (folder / name).write_text("{}")
    told = only(found(folder))
    assert (told.code, told.subject) == ("U620", "`optimizer.pt`, `scheduler.pt`, `training_args.bin`")


def test_a_header_without_its_format_is_told(folder: Path) -> None:
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS)
    assert codes(found(folder)) == ["U623"]


def test_tensors_at_odd_offsets_are_told(folder: Path) -> None:
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]},
        "__metadata__": {"format": "pt"},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + b"12345")
    told = next(item for item in found(folder) if item.code == "U624")
    assert told.saw == "1 tensor at offsets their dtype does not divide: `b`"


def test_weights_that_only_their_owner_may_read_are_told(folder: Path) -> None:
    def private() -> list[str]:
        read = read_model_folder(folder)
        evidence = Evidence(folder, folder=read)
        return [item.subject for check in CHECKS for item in check.find(evidence) if item.code == "U625"]

    (folder / WEIGHTS).chmod(0o600)
    assert private() == [f"`{WEIGHTS}`"]
    (folder / WEIGHTS).chmod(0o644)
    assert private() == []


def test_a_folder_that_is_being_written_is_told(folder: Path) -> None:
    (folder / "x.incomplete").touch()
    assert codes(found(folder)) == ["U626"]


def test_a_small_file_that_is_broken_is_told(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": 2')
    told = only(found(folder))
    assert (told.code, told.subject) == ("U627", "`generation_config.json`")


def test_links_out_of_the_folder_are_told(folder: Path, tmp_path: Path) -> None:
    (folder / WEIGHTS).rename(tmp_path / "elsewhere.safetensors")
    (folder / WEIGHTS).symlink_to(tmp_path / "elsewhere.safetensors")
    told = only(found(folder))
    assert (told.code, told.subject) == ("U628", f"`{WEIGHTS}`")


def test_names_with_control_characters_are_shown_harmlessly(folder: Path) -> None:
    (folder / "a\x1b[31m<script>\n.json").write_text("{")
    told = only(found(folder))
    assert told.subject == "`a\\x1b[31m<script>\\n.json`"


def test_an_empty_folder_gives_no_more_than_what_it_lacks(tmp_path: Path) -> None:
    assert codes(found(tmp_path)) == ["U622", "U504"]


def test_rewriting_the_weights_changes_nothing(folder: Path) -> None:
    assert found(rewritten(folder, dict)) == []


def test_an_index_of_one_file_is_sound(folder: Path) -> None:
    weight_map = dict.fromkeys(load_file(folder / WEIGHTS), WEIGHTS)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert found(folder) == []


@pytest.mark.parametrize("text", ["[]", "{", ""])
def test_an_index_that_cannot_be_read_is_told_beside_one_file_as_well(text: str, folder: Path) -> None:
    (folder / INDEX).write_text(text)
    told = only(found(folder))
    assert (told.code, told.subject) == ("U611", INDEX)
