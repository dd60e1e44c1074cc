"""Reading a model folder: whatever lies in it is described, and nothing in it can hurt."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tiny_models import tiny_model, write_folder
from unshard.errors import InputError
from unshard.model_folder import ModelFolder, read_model_folder

Folder = Callable[[str], Path]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tiny_model("llama"), tmp_path_factory.mktemp("healthy"))


@pytest.fixture
def folder(healthy: Path, tmp_path: Path) -> Path:
    target = tmp_path / "model"
    target.mkdir()
    for path in healthy.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def problem(read: ModelFolder, name: str) -> str:
    (found,) = [found for found in read.unreadable if found.name == name]
    return found.problem


def test_a_healthy_folder_is_read_whole(folder: Path) -> None:
    read = read_model_folder(folder)
    assert [file.name for file in read.weights] == ["model.safetensors"]
    assert read.tensors.keys() == load_file(folder / "model.safetensors").keys()
    assert read.weights[0].size == (folder / "model.safetensors").stat().st_size
    assert read.weights[0].metadata["format"] == "pt"
    assert read.names == tuple(sorted(path.name for path in folder.iterdir()))
    assert read.json("config.json") == json.loads((folder / "config.json").read_bytes())
    assert read.json_files["config.json"].content == (folder / "config.json").read_bytes()
    assert "tokenizer.json" not in read.json_files
    assert read.unreadable == ()
    assert not read.is_growing
    assert read.index is None


def test_the_tokenizer_is_counted_and_its_added_tokens_are_named(folder: Path) -> None:
    vocabulary = json.loads((folder / "tokenizer.json").read_bytes())
    added = {entry["content"]: entry["id"] for entry in vocabulary["added_tokens"]}
    read = read_model_folder(folder)
    assert read.tokens == max(*vocabulary["model"]["vocab"].values(), *added.values()) + 1
    assert read.added_tokens == added
    (folder / "added_tokens.json").write_text('{"<new>": 600, "<bad>": "x"}')
    assert read_model_folder(folder).added_tokens == {**added, "<new>": 600}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", "{{ one }}"),
        ("chat_template.json", '{"chat_template": "{{ one }}"}'),
        ("tokenizer_config.json", '{"chat_template": "{{ one }}"}'),
        ("tokenizer_config.json", '{"chat_template": [{"name": "default", "template": "{{ one }}"}]}'),
    ],
)
def test_the_chat_template_is_found_wherever_it_stands(name: str, content: str, folder: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / name).write_text(content)
    assert read_model_folder(folder).chat_template == "{{ one }}"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"{", "is not valid JSON"),
        (b'\xef\xbb\xbf{"a": 1}', "begins with a byte order mark"),
        ('{"a": 1}'.encode("utf-16"), "is not UTF-8"),
        (b'{"a": 1, "a": 2}', "the key `a` stands twice"),
        (b'{"a": ' * 70 + b"1" + b"}" * 70, "is nested more than 64 levels deep"),
        (b"[" * 100_000, "is nested too deeply"),
    ],
)
def test_a_configuration_that_readers_disagree_about_is_unreadable(
    content: bytes, expected: str, folder: Path
) -> None:
    (folder / "config.json").write_bytes(content)
    read = read_model_folder(folder)
    assert expected in problem(read, "config.json")
    assert read.json("config.json") is None


def test_numbers_that_only_python_knows_are_read(folder: Path) -> None:
    (folder / "config.json").write_text('{"time_step_limit": [0.0, Infinity], "x": NaN}')
    assert read_model_folder(folder).json("config.json") is not None


def test_a_json_file_of_gigabytes_is_not_opened(folder: Path) -> None:
    os.truncate(folder / "config.json", 1 << 33)
    assert "too large" in problem(read_model_folder(folder), "config.json")


def test_links_out_of_the_folder_and_pipes_are_not_opened(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"secret": 1}')
    (folder / "link.json").symlink_to(secret)
    (folder / "circle.json").symlink_to("circle.json")
    os.mkfifo(folder / "generation.json")
    read = read_model_folder(folder)
    assert "leads out" in problem(read, "link.json")
    assert not {"link.json", "circle.json", "generation.json"} & {*read.names, *read.json_files}


def test_links_of_a_hub_cache_into_its_blobs_are_followed(folder: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "1", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in folder.iterdir():
        (blobs / f"hash-{path.name}").write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/hash-{path.name}")
    read = read_model_folder(snapshot)
    assert read.unreadable == ()
    assert read.tensors.keys() == read_model_folder(folder).tensors.keys()


def test_a_file_that_is_cut_short_is_told_with_its_numbers(folder: Path) -> None:
    path = folder / "model.safetensors"
    size = path.stat().st_size
    os.truncate(path, size - 7)
    read = read_model_folder(folder)
    assert read.weights == ()
    assert f"declares tensor data through byte {size:,}" in problem(read, path.name)
    assert f"saw {size - 7:,} bytes" in problem(read, path.name)


def test_a_header_that_gives_a_name_twice_is_told(folder: Path) -> None:
    header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},' * 2
    header = header.replace(b',{"a"', b',"a"')[:-1] + b"}"
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"x")
    assert "given twice" in problem(read_model_folder(folder), "model.safetensors")


def test_a_pointer_of_git_lfs_is_called_by_its_name(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "git-lfs" in problem(read_model_folder(folder), "model.safetensors")


def test_weights_of_torch_are_read_where_there_are_no_safetensors(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    torch.save(state, folder / "pytorch_model.bin")
    torch.save(state, folder / "extra.pt")
    assert read_model_folder(folder).other_weights == ("extra.pt", "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    read = read_model_folder(folder)
    assert [file.name for file in read.weights] == ["pytorch_model.bin"]
    assert read.tensors.keys() == state.keys()
    assert read.other_weights == ("extra.pt",)


def test_the_file_of_the_whole_model_comes_before_parts_of_one(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model-00001-of-00001.safetensors").write_bytes(whole)
    (folder / "consolidated.safetensors").write_bytes(whole)
    (folder / "adapter_model.safetensors").write_bytes(whole)
    read = read_model_folder(folder)
    assert [file.name for file in read.weights] == ["model.safetensors", "model-00001-of-00001.safetensors"]
    assert read.other_weights == ("adapter_model.safetensors", "consolidated.safetensors")


@pytest.mark.parametrize("name", ["model.safetensors.incomplete", ".tmp12", "x.part", ".unshard-model-1"])
def test_a_folder_that_is_being_written_says_so(name: str, folder: Path) -> None:
    (folder / name).write_bytes(b"")
    assert read_model_folder(folder).is_growing


def test_a_download_into_the_folder_counts_as_writing(folder: Path) -> None:
    (folder / ".cache/huggingface/download").mkdir(parents=True)
    (folder / ".cache/huggingface/download/x.incomplete").touch()
    assert read_model_folder(folder).is_growing


def test_files_below_are_named_but_not_those_of_other_checkpoints(folder: Path) -> None:
    for name in ("original/params.json", "checkpoint-10/config.json", ".git/config"):
        (folder / name).parent.mkdir()
        (folder / name).write_text("{}")
    names = read_model_folder(folder).names
    assert "original/params.json" in names
    assert not {"checkpoint-10/config.json", ".git/config"} & {*names}


def test_names_with_control_characters_and_of_no_encoding_are_read(folder: Path) -> None:
    (folder / "a\x1b[31m.json").write_text("{")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.json")).write_text("[]")
    read = read_model_folder(folder)
    assert "a\x1b[31m.json" in read.names
    assert problem(read, "a\x1b[31m.json").startswith("is not valid")


@pytest.mark.parametrize("make", [Path.touch, lambda path: None], ids=["a file", "nothing"])
def test_what_is_no_folder_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(InputError):
        read_model_folder(tmp_path / "x")


def test_an_empty_folder_is_described(tmp_path: Path) -> None:
    read = read_model_folder(tmp_path)
    assert (read.names, read.weights, read.tokens, dict(read.tensors)) == ((), (), None, {})
