"""Hugging Face folders: the conformance suite, and indexes that do not agree with their files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from awkward import awkward_tensors, plain_tensors, read_values, true_values
from reader_suite import FolderSuite, ReaderSuite, opened
from safetensors.torch import save_file

from unshard.checkpoint import Checkpoint
from unshard.errors import IncompleteCheckpointError, InputError, UnsafeFileError
from unshard.readers import open_checkpoint


class SafetensorsSuite(ReaderSuite):
    @classmethod
    def tensors(cls) -> Mapping[str, torch.Tensor]:
        return plain_tensors()  # it has neither views nor shared storages

    def is_unverifiable(self, checkpoint: Checkpoint) -> bool:
        return not tuple(checkpoint.checksums)  # the format has none


class TestOneSafetensorsFile(SafetensorsSuite):
    @classmethod
    def write(cls, tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
        folder.mkdir()
        save_file(dict(tensors), folder / "model.safetensors", {"format": "pt"})
        return folder

    def test_metadata_is_told(self, written: tuple[Path, Any]) -> None:
        assert [(e.name, e.value) for e in opened(written[0]).extras] == [("metadata format", "pt")]


class TestManySafetensorsFiles(SafetensorsSuite, FolderSuite):
    @classmethod
    def write(cls, tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
        folder.mkdir()
        return write_parts(tensors, folder, "model", "safetensors", lambda part, path: save_file(part, path))


class TestOneTorchFile(ReaderSuite):
    @classmethod
    def write(cls, tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
        folder.mkdir()
        torch.save(dict(tensors), folder / "pytorch_model.bin")
        return folder


class TestManyTorchFiles(FolderSuite):
    @classmethod
    def tensors(cls) -> Mapping[str, torch.Tensor]:
        return {name: tensor for name, tensor in awkward_tensors().items() if "tied" not in name}

    @classmethod
    def write(cls, tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
        folder.mkdir()
        return write_parts(tensors, folder, "pytorch_model", "bin", torch.save)


def write_parts(tensors: Mapping[str, torch.Tensor], folder: Path, stem: str, ending: str, save: Any) -> Path:
    """Write a model into three files and an index."""
    weight_map: dict[str, str] = {}
    for i in range(3):
        part = dict(list(tensors.items())[i::3])
        name = f"{stem}-{i + 1:05d}-of-00003.{ending}"
        save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))
    return folder


PARTS = {"a": torch.ones(2), "b": torch.zeros(3), "c": torch.ones(4), "d": torch.ones(1)}


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    return write_parts(PARTS, tmp_path, "model", "safetensors", save_file)


def change_index(folder: Path, **changes: str | None) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = {k: v for k, v in (index["weight_map"] | changes).items() if v is not None}
    path.write_text(json.dumps(index))


def test_a_missing_file_is_named_with_all_that_it_held(parts: Path) -> None:
    (parts / "model-00001-of-00003.safetensors").unlink()
    with pytest.raises(
        IncompleteCheckpointError, match=r"lacks `model-00001-of-00003.safetensors`, which hold"
    ) as caught:
        opened(parts)
    assert "2 tensors (`a`, `d`): saw 2 of the 3 files" in str(caught.value)


def test_files_without_an_index_are_read_when_all_are_there(parts: Path) -> None:
    (parts / "model.safetensors.index.json").unlink()
    assert read_values(opened(parts).tensors) == true_values(
        {name: PARTS[name] for name in ("a", "d", "b", "c")}
    )
    (parts / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(IncompleteCheckpointError, match="model-00002-of-00003"):
        opened(parts)


def test_a_tensor_that_is_not_where_the_index_says_is_refused(parts: Path) -> None:
    change_index(parts, a="model-00002-of-00003.safetensors")
    with pytest.raises(UnsafeFileError, match=r"`a` not in model-00002-of-00003\.safetensors"):
        opened(parts)


def test_a_tensor_that_no_file_has_is_refused(parts: Path) -> None:
    change_index(parts, ghost="model-00002-of-00003.safetensors")
    with pytest.raises(UnsafeFileError, match="`ghost` not in"):
        opened(parts)


def test_a_tensor_that_the_index_leaves_out_is_refused(parts: Path) -> None:
    change_index(parts, d=None)
    with pytest.raises(UnsafeFileError, match=r"leaves out tensors.*`d` in model-00001"):
        opened(parts)


def test_a_file_that_the_index_leaves_out_is_refused(parts: Path) -> None:
    change_index(parts, b=None)
    with pytest.raises(UnsafeFileError, match="other files than the names of these count: saw 2 files"):
        opened(parts)


def test_a_tensor_in_two_files_is_refused(parts: Path) -> None:
    save_file({"b": PARTS["b"], "a": PARTS["a"]}, parts / "model-00002-of-00003.safetensors")
    with pytest.raises(UnsafeFileError, match="in two files: saw `a` in"):
        opened(parts)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "sub/model.safetensors", "..", "", "a\\b", "C:x", "a\0b"]
)
def test_an_index_cannot_name_files_elsewhere(name: str, parts: Path) -> None:
    change_index(parts, a=name)
    with pytest.raises(UnsafeFileError, match="outside of the folder"):
        opened(parts)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b'{"weight_map":{}}', b'{"weight_map":{"a":1}}', b"\xff", b"[" * 99999],
)
def test_an_index_that_is_none_is_refused(content: bytes, parts: Path) -> None:
    (parts / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(InputError, match="index"):
        opened(parts)


def test_files_of_two_saves_without_an_index_are_refused(parts: Path) -> None:
    (parts / "model.safetensors.index.json").unlink()
    save_file({"z": PARTS["a"]}, parts / "model-00001-of-00002.safetensors")
    with pytest.raises(UnsafeFileError, match=r"several sets of weights"):
        opened(parts)


def test_one_file_of_several_is_not_taken_for_the_model(parts: Path) -> None:
    with pytest.raises(
        IncompleteCheckpointError, match=r"is file 2 of 3 of a model\n\nhint: Give the folder"
    ):
        opened(parts / "model-00002-of-00003.safetensors")


def test_the_index_stands_for_its_folder(parts: Path) -> None:
    assert opened(parts / "model.safetensors.index.json").path == parts


def test_safetensors_are_preferred_and_the_other_copy_is_told(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    torch.save({"w": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    checkpoint = opened(tmp_path)
    assert checkpoint["w"].numpy().all()
    assert "pytorch_model.bin" in {extra.name for extra in checkpoint.extras}


def test_a_safetensors_file_of_any_name_is_read(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "mine.safetensors")
    (tmp_path / "mine.safetensors").rename(tmp_path / "mine.weights")
    assert list(opened(tmp_path / "mine.weights")) == ["w"]


def test_a_prefix_selects_among_the_names(tmp_path: Path) -> None:
    save_file({"actor.w": torch.ones(2), "critic.w": torch.zeros(2)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path, step=None, select="actor")
    assert (checkpoint.selected, list(checkpoint), list(checkpoint.storages)) == ("actor", ["w"], ["w"])


def test_links_of_a_hub_cache_into_its_blobs_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    save_file({"w": torch.ones(2)}, blobs / "1234")
    os.symlink("../../blobs/1234", snapshot / "model.safetensors")
    assert list(opened(snapshot)) == ["w"]
    assert list(opened(tmp_path / "models--a--b")) == ["w"]


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "secret.safetensors")
    run = tmp_path / "run"
    run.mkdir()
    os.symlink(tmp_path / "secret.safetensors", run / "model.safetensors")
    with pytest.raises(UnsafeFileError, match=r"links that lead out of it.*`model\.safetensors`") as caught:
        opened(run)
    assert caught.value.hint is not None
    assert str(tmp_path) in caught.value.hint
    assert list(opened(run / "model.safetensors")) == ["w"]  # named by the person, it is


def test_small_files_of_the_model_are_found_beside_it(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    for name in (
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "notes.txt",
    ):
        (tmp_path / name).write_text("{}")
    assert sorted(opened(tmp_path).side_files) == [
        "chat_template.jinja", "config.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_a_folder_that_we_wrote_says_so(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "unshard.manifest.json").write_text("{}")
    assert opened(tmp_path).layout.writer == "unshard"
