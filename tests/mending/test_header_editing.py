"""Headers: what fits into the old length, what does not, and which tensors are the data of a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from raw_tensors import random_tensor
from unshard.dtypes import FLOAT32
from unshard.errors import OutputError
from unshard.mending import header_editing
from unshard.mending.header_editing import data_start, header_of, tiled
from unshard.readers.weights.safetensors_file import describe_safetensors_file
from unshard.storage.files import InputFile
from unshard.tensors import CastTensor, DescribedTensor
from unshard.tensors.views import concatenate, permute, split, unstack

DTYPES = ("float32", "bfloat16", "int64", "uint8", "bool")


@pytest.fixture
def file(tmp_path: Path) -> InputFile:
    state = {f"layer.{name}": random_tensor((3, 4), name, seed=i) for i, name in enumerate(DTYPES)}
    state |= {"number": torch.tensor(2.5), "empty": torch.empty(0, 4), "fused": torch.rand(4, 6, 5)}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt", "more": "text"})
    return InputFile.describe(tmp_path / "model.safetensors")


def test_a_file_is_tiled_by_its_own_tensors_under_any_name(file: InputFile) -> None:
    tensors = describe_safetensors_file(file)
    entries = tiled(file, {f"x.{name}": tensor for name, tensor in tensors.items()})
    assert entries is not None
    assert {entry.name for entry in entries} == {f"x.{name}" for name in tensors}


def test_what_is_no_more_than_another_cut_of_the_bytes_tiles_it_too(file: InputFile) -> None:
    tensors = describe_safetensors_file(file)
    fused = tensors.pop("fused")
    parts = [half for part in unstack(fused, 0) for half in split(part, 0, [2, 4])]
    apart = {f"part.{number}": part for number, part in enumerate(parts)}
    assert tiled(file, {**tensors, **apart}) is not None
    again = concatenate(parts, 0)
    assert tiled(file, {**tensors, "fused": again}) is not None


def test_anything_else_does_not(file: InputFile) -> None:
    tensors = describe_safetensors_file(file)
    fused = tensors["fused"]
    others: dict[str, dict[str, DescribedTensor | CastTensor]] = {
        "one is missing": {name: t for name, t in tensors.items() if name != "number"},
        "one is there twice": {**tensors, "again": fused},
        "two dimensions are exchanged": {**tensors, "fused": permute(fused, [0, 2, 1])},
        "one is cast": {**tensors, "layer.bfloat16": CastTensor(tensors["layer.bfloat16"], FLOAT32)},
        "half of one": {**tensors, "fused": split(fused, 1, [3, 3])[0]},
    }
    for why, those in others.items():
        assert tiled(file, those) is None, why


def test_a_header_that_fits_is_as_long_as_the_old_one(file: InputFile) -> None:
    tensors = describe_safetensors_file(file)
    entries = tiled(file, {name.removeprefix("layer."): tensor for name, tensor in tensors.items()})
    assert entries is not None
    header = header_of(file, entries, {"format": "pt", "more": "text"})
    assert len(header) == data_start(file)
    old = file.path.read_bytes()
    file.path.write_bytes(header + old[len(header) :])
    with safe_open(file.path, "pt") as opened:
        assert opened.metadata() == {"format": "pt", "more": "text"}
        assert set(opened.keys()) == {name.removeprefix("layer.") for name in tensors}
        assert opened.get_slice("float32").get_shape() == [3, 4]


def test_a_header_that_does_not_fit_grows_by_pages(file: InputFile) -> None:
    entries = tiled(file, {f"{'long' * 99}.{n}": t for n, t in describe_safetensors_file(file).items()})
    assert entries is not None
    header = header_of(file, entries, {})
    assert (len(header) - data_start(file)) % 4096 == 0
    assert len(header) > data_start(file)
    assert json.loads(header[8:])["__metadata__"] == {"format": "pt"}


def test_the_format_is_added_only_where_there_is_room(tmp_path: Path) -> None:
    save_file({"a": torch.rand(3)}, tmp_path / "model.safetensors")
    file = InputFile.describe(tmp_path / "model.safetensors")
    entries = tiled(file, describe_safetensors_file(file))
    assert entries is not None
    header = header_of(file, entries, {})
    assert len(header) == data_start(file)
    assert "__metadata__" not in json.loads(header[8:])


def test_a_header_that_no_reader_accepts_is_refused(file: InputFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_editing, "_LONGEST_HEADER", 1000)
    entries = tiled(file, {f"{'long' * 99}.{n}": t for n, t in describe_safetensors_file(file).items()})
    assert entries is not None
    with pytest.raises(OutputError, match="a header that no reader accepts"):
        header_of(file, entries, {})
