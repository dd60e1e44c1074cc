"""Checkpoints of torch.distributed.checkpoint: the conformance suite, and what is peculiar to them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from awkward import awkward_tensors, plain_tensors, read_values, true_values
from reader_suite import FolderSuite, ReaderSuite, opened
from safetensors.torch import save_file
from torch.distributed.checkpoint._extension import ZStandard
from torch.distributed.checkpoint.filesystem import SerializationFormat

from dcp_folders import HandWriter, read_metadata, save, saved_bytes, tiles, whole, write_metadata
from unshard.errors import (
    AmbiguousModelError,
    DamagedFileError,
    MissingExtraError,
    NoSpaceError,
    TrainingStateError,
    UnknownLayoutError,
    UnsafeFileError,
    UnsupportedLayoutError,
)

MODEL = {"model.embed_tokens.weight": torch.arange(12.0).view(6, 2), "lm_head.weight": torch.ones(6, 2)}
MOMENTS = {"state": {name: {"exp_avg": torch.ones(6, 2), "step": torch.tensor(3.0)} for name in MODEL}}


def copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors under names that do not say they are tied: DCP cannot tell later that they were."""
    return {name.replace("tied.", "copied."): tensor for name, tensor in tensors.items()}


class TestTorchsWriter(FolderSuite):
    @classmethod
    def tensors(cls) -> Mapping[str, torch.Tensor]:
        return copied(awkward_tensors())

    @classmethod
    def write(cls, tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
        return save({"model": dict(tensors)}, folder)

    def test_a_healthy_checkpoint_has_no_findings_but_where_the_model_lies(
        self, written: tuple[Path, Any]
    ) -> None:
        assert [found.code for found in opened(written[0]).findings] == ["U105"]

    def test_every_chunk_has_its_checksum(self, written: tuple[Path, Any]) -> None:
        checkpoint = opened(written[0])
        found = list(checkpoint.checksums)
        assert {checksum.subject for checksum in found} == {
            n for n, t in checkpoint.tensors.items() if t.nbytes
        }
        assert checkpoint.checksums.nbytes == sum(t.nbytes for t in checkpoint.tensors.values())


class TestSeveralFilesOfARank(FolderSuite):
    @classmethod
    def tensors(cls) -> Mapping[str, torch.Tensor]:
        # The blob of an empty tensor may end a file, and nobody misses it.
        return {name: tensor for name, tensor in plain_tensors().items() if tensor.numel()}

    @classmethod
    def write(cls, tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
        return save(tensors, folder, thread_count=3)


class TestChunksOfSeveralRanks(FolderSuite):
    @classmethod
    def tensors(cls) -> Mapping[str, torch.Tensor]:
        return {**plain_tensors(), "cube": torch.arange(60).view(3, 4, 5), "tall": torch.randn(515, 2)}

    @classmethod
    def write(cls, tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
        writer = HandWriter(folder)
        for name, tensor in tensors.items():
            writer.add(name, tensor, tiles(tensor))
        return writer.finish()


def compressed(value: object) -> bytes:
    return zstandard.ZstdCompressor().compress(saved_bytes(value))


class TestCompressedByTorch(FolderSuite):
    @classmethod
    def tensors(cls) -> Mapping[str, torch.Tensor]:
        return plain_tensors()

    @classmethod
    def write(cls, tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
        return save({"state_dict": dict(tensors)}, folder, _extensions=[ZStandard()])

    def test_the_room_that_unpacking_takes_is_known(self, written: tuple[Path, Any]) -> None:
        assert opened(written[0]).scratch_bytes > 0


class TestSafetensorsMembers(ReaderSuite):
    @classmethod
    def tensors(cls) -> Mapping[str, torch.Tensor]:
        unheld = ("complex", "dtype.float8_e4m3fnuz", "dtype.float8_e5m2fnuz")
        return {name: tensor for name, tensor in plain_tensors().items() if name not in unheld}

    @classmethod
    def write(cls, tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
        state = {"model": dict(tensors), "epoch": 3}
        return save(state, folder, serialization_format=SerializationFormat.SAFETENSORS)

    def test_missing_checksums_are_told(self, written: tuple[Path, Any]) -> None:
        assert "U103" in [found.code for found in opened(written[0]).findings]


def test_blobs_at_any_offset_are_read(tmp_path: Path) -> None:
    writer = HandWriter(tmp_path / "run", ranks=1)
    (tmp_path / "run" / "__0_0.distcp").write_bytes(b"x")
    for name, tensor in MODEL.items():
        writer.add(name, tensor, tiles(tensor))
    assert read_values(opened(writer.finish()).tensors) == true_values(MODEL)


def test_chunks_without_elements_need_no_place(tmp_path: Path) -> None:
    writer = HandWriter(tmp_path / "run")
    tensor = MODEL["lm_head.weight"]
    writer.add("w", tensor, [((0, 0), (6, 2)), ((6, 0), (0, 2)), ((6, 0), (0, 2))])
    assert read_values(opened(writer.finish()).tensors) == true_values({"w": tensor})


def test_a_tensor_may_be_a_strided_view_of_a_larger_storage(tmp_path: Path) -> None:
    storage = torch.arange(100.0)
    writer = HandWriter(tmp_path / "run")
    writer.add(
        "w",
        torch.zeros(5, 4),
        whole(torch.zeros(5, 4)),
        lambda _: saved_bytes(storage[3:43:2].view(4, 5).t()),
    )
    expected = storage[3:43:2].view(4, 5).t()
    assert read_values(opened(writer.finish()).tensors) == true_values({"w": expected})


@pytest.mark.parametrize(
    ("state", "container", "names"),
    [
        ({"model": MODEL, "optim": MOMENTS}, ("model",), set(MODEL)),
        (
            {"state_dict": {f"model.{name}": t for name, t in MODEL.items()}},
            ("state_dict",),
            {f"model.{n}" for n in MODEL},
        ),
        (
            {"app": {"model": MODEL, "optimizers": MOMENTS, "progress": {"step": 7}}},
            ("app", "model"),
            set(MODEL),
        ),
        (
            {"state": {"model": {"model.w": torch.ones(2)}}, "rng": torch.ones(8)},
            ("state", "model"),
            {"model.w"},
        ),
        ({**MODEL, "optimizer": MOMENTS, "train_state": {"step": torch.tensor(5)}}, (), set(MODEL)),
        ({f"module.{name}": t for name, t in MODEL.items()}, ("module",), set(MODEL)),
        (MODEL, (), set(MODEL)),
    ],
    ids=["model", "lightning", "prime-rl", "composer", "torchtitan", "ddp", "alone"],
)
@pytest.mark.parametrize("with_keys", [True, False], ids=["keys", "names"])
def test_the_models_container_is_found(
    tmp_path: Path, state: dict[str, Any], container: tuple[str, ...], names: set[str], with_keys: bool
) -> None:
    folder = save(state, tmp_path / "run")
    if not with_keys:
        metadata = read_metadata(folder)
        metadata.planner_data = None
        write_metadata(folder, metadata)
    checkpoint = opened(folder)
    assert (checkpoint.container, set(checkpoint.tensors)) == (container, names)


@pytest.mark.parametrize("top", [{}, {"optimizer": {"state": {"model.w": {"exp_avg": torch.ones(3)}}}}])
def test_names_that_the_optimizer_has_too_are_whole(tmp_path: Path, top: dict[str, Any]) -> None:
    checkpoint = opened(save({"model.w": torch.ones(3), "model.v": torch.ones(2), **top}, tmp_path / "run"))
    assert set(checkpoint.tensors) == {"model.w", "model.v"}


def test_names_that_the_optimizer_has_without_their_beginning_lie_in_a_container(tmp_path: Path) -> None:
    state = {"model.w": torch.ones(3), "optim.state.w.exp_avg": torch.ones(3)}
    assert opened(save(state, tmp_path / "run")).container == ("model",)


def test_names_of_hugging_face_are_no_container(tmp_path: Path) -> None:
    folder = save(
        {"model.embed_tokens.weight": torch.ones(3), "model.norm.weight": torch.ones(2)}, tmp_path / "run"
    )
    assert opened(folder).container == ()


def test_training_state_is_told_by_its_size_and_plain_values_are_shown(tmp_path: Path) -> None:
    state = {
        "model": MODEL,
        "optim": MOMENTS,
        "lr_scheduler": {"last_epoch": 4},
        "train_state": {"step": torch.tensor(40), "loss": 0.5},
        "epoch": 3,
    }
    extras = {extra.name: extra for extra in opened(save(state, tmp_path / "run")).extras}
    assert extras["optim"].kind == "optimizer"
    assert extras["optim"].size > 2 * 6 * 2 * 4
    assert extras["lr_scheduler"].kind == "scheduler"
    assert (extras["epoch"].kind, extras["epoch"].value) == ("step", "3")
    assert (extras["train_state.step"].kind, extras["train_state.step"].value) == ("step", "40")
    assert extras["train_state.loss"].value == "0.5"


def test_many_values_of_a_kind_are_told_as_one(tmp_path: Path) -> None:
    state = {"model": MODEL, "log": {f"line {i}": i for i in range(100)}}
    (extra,) = opened(save(state, tmp_path / "run")).extras
    assert (extra.name, extra.value) == ("log", "100 values")


def test_a_value_that_cannot_be_read_keeps_nobody_from_the_model(tmp_path: Path) -> None:
    folder = save({"model": MODEL, "epoch": 3}, tmp_path / "run")
    metadata = read_metadata(folder)
    (place,) = [info for index, info in metadata.storage_data.items() if index.fqn == "epoch"]
    with (folder / place.relative_path).open("r+b") as file:
        file.seek(place.offset)
        file.write(bytes(place.length))
    checkpoint = opened(folder)
    assert [extra.value for extra in checkpoint.extras] == [None]
    assert set(checkpoint.tensors) == set(MODEL)


def test_a_checkpoint_of_nothing_but_an_optimizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingStateError, match="optimizer"):
        opened(save({"optimizer": MOMENTS}, tmp_path / "state"))


def test_moments_are_an_optimizers_whatever_they_lie_in(tmp_path: Path) -> None:
    writer = HandWriter(tmp_path / "run")
    for name in ("w.exp_avg", "w.exp_avg_sq"):
        writer.add(name, torch.ones(4), whole(torch.ones(4)))
    with pytest.raises(TrainingStateError):
        opened(writer.finish())


def test_a_checkpoint_without_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownLayoutError, match="no tensors"):
        opened(save({"epoch": 3}, tmp_path / "run"))


def test_of_several_models_one_must_be_named(tmp_path: Path) -> None:
    state = {"actor": MODEL, "critic": {"head.weight": torch.ones(2, 2)}}
    folder = save(state, tmp_path / "run")
    with pytest.raises(AmbiguousModelError, match="--select actor"):
        opened(folder)
    from unshard.readers import open_checkpoint

    assert set(open_checkpoint(folder, step=None, select="critic").tensors) == {"head.weight"}


CONFIG = {
    "model_type": "llama",
    "hidden_size": 8,
    "rope_scaling": {"factor": 2.0, "kinds": ["a", "b"]},
    "eos": None,
}
TOKENIZER = {
    "tokenizer": {"file_extension": ".json", "content": {"version": "1.0", "model": {"vocab": {"a": 0}}}},
    "vocab": {"file_extension": ".txt", "content": ["a", "b"]},
    "spm": {"file_extension": ".model", "content": b"\x00\xff"},
    "../evil": {"file_extension": ".json", "content": {"a": 1}},
}
INTEGRATIONS = {
    "huggingface": {"model": {"config": {"content": CONFIG, "class": "x"}}, "tokenizer": TOKENIZER}
}


@pytest.mark.parametrize("flattened", [True, False], ids=["item by item", "as one item"])
def test_files_of_a_model_that_composer_kept_are_given(tmp_path: Path, flattened: bool) -> None:
    if flattened:
        folder = save({"state": {"model": MODEL, "integrations": INTEGRATIONS}}, tmp_path / "run")
    else:  # torch before 2.4 kept dictionaries without tensors whole
        writer = HandWriter(tmp_path / "run")
        for name, tensor in MODEL.items():
            writer.add(f"state.model.{name}", tensor, whole(tensor))
        writer.add_item("state.integrations", INTEGRATIONS)
        folder = writer.finish()
    embedded = opened(folder).embedded
    assert set(embedded) == {"config.json", "tokenizer.json", "vocab.txt", "spm.model"}
    assert json.loads(embedded["config.json"]) == CONFIG
    assert json.loads(embedded["tokenizer.json"]) == {"version": "1.0", "model": {"vocab": {"a": 0}}}
    assert (embedded["vocab.txt"], embedded["spm.model"]) == (b"a\nb", b"\x00\xff")


def test_a_file_of_another_tool_beside_a_model_is_no_checkpoint(tmp_path: Path) -> None:
    save_file({"w": torch.ones(3)}, tmp_path / "model.safetensors")
    (tmp_path / ".metadata").write_text("{}")
    assert opened(tmp_path).layout.name == "hugging-face"


@pytest.mark.parametrize(
    ("file", "writer"),
    [("train_params.yaml", "llama-recipes"), ("meta.pt", "PyTorch Lightning"), (None, None)],
)
def test_the_writer_is_told_by_what_it_leaves(tmp_path: Path, file: str | None, writer: str | None) -> None:
    folder = save({"model": MODEL}, tmp_path / "run")
    if file is not None:
        shutil.copy(folder / ".metadata", folder / file)  # the name is what tells
    if file == "train_params.yaml":
        (folder / file).write_text("model_name: llama\n")
    layout = opened(folder).layout
    assert (layout.name, layout.writer) == ("dcp", writer)
    assert any("1 file of 1 rank" in fact for fact in layout.evidence)


def test_a_tensor_that_is_another_one_than_the_metadata_says_is_damage(tmp_path: Path) -> None:
    writer = HandWriter(tmp_path / "run")
    writer.add("w", torch.ones(4), whole(torch.ones(4)), lambda _: saved_bytes(torch.ones(5)))
    with pytest.raises(DamagedFileError, match=r"w.*\[5\].*\[4\]"):
        read_values(opened(writer.finish()).tensors)


@pytest.mark.parametrize(
    ("blob", "error", "words"),
    [
        (bytes(4000), DamagedFileError, "zeros"),
        (b"raw bytes " * 400, UnsafeFileError, "ByteCheckpoint"),
        (saved_bytes({"not": "a tensor"}) * 4, UnsafeFileError, "w"),
        (saved_bytes([torch.ones(900)]), DamagedFileError, "no tensor"),
    ],
    ids=["zeros", "raw", "several archives", "a list"],
)
def test_what_is_no_blob_is_refused_by_name(
    tmp_path: Path, blob: bytes, error: type[Exception], words: str
) -> None:
    writer = HandWriter(tmp_path / "run")
    writer.add("w", torch.ones(900), whole(torch.ones(900)), lambda _: blob)
    with pytest.raises(error, match=words):
        read_values(opened(writer.finish()).tensors)


def test_a_blob_in_the_format_before_torch_1_6_is_refused_by_name(tmp_path: Path) -> None:
    tensor = torch.ones(4)
    torch.save(tensor, tmp_path / "old", _use_new_zipfile_serialization=False)
    writer = HandWriter(tmp_path / "run")
    writer.add("w", tensor, whole(tensor), lambda _: (tmp_path / "old").read_bytes())
    with pytest.raises(UnsupportedLayoutError, match=r"1\.6"):
        read_values(opened(writer.finish()).tensors)


class TestTransforms:
    def compressed(self, folder: Path, encode: Any, names: list[str]) -> Path:
        writer = HandWriter(folder)
        tensor = torch.arange(4000.0)
        writer.add("w", tensor, tiles(tensor), encode, transform_descriptors=names)
        return writer.finish()

    def test_other_transforms_are_refused_by_name(self, tmp_path: Path) -> None:
        folder = self.compressed(tmp_path / "run", saved_bytes, ["stream.encrypted@example.com/3"])
        with pytest.raises(UnsupportedLayoutError, match=r"encrypted@example\.com"):
            opened(folder)

    def test_threads_share_the_scratch_space(self, tmp_path: Path) -> None:
        writer = HandWriter(tmp_path / "run")
        tensors = {f"w{i}": torch.randn(16, 64) for i in range(40)}
        for name, tensor in tensors.items():
            rows = [((row, 0), (1, 64)) for row in range(16)]
            writer.add(name, tensor, rows, compressed, transform_descriptors=["stream.zstd/1"])
        checkpoint = opened(writer.finish())
        chance = random.Random(3)

        def read(name: str) -> bool:
            start = chance.randrange(1024)
            part = bytearray((1024 - start) * 4)
            checkpoint[name].read(start, 1024, memoryview(part))
            expected: bytes = tensors[name].numpy().tobytes()[start * 4 :]
            return bytes(part) == expected

        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(read, [chance.choice(list(tensors)) for _ in range(200)]))

    def test_a_stream_that_unpacks_to_more_than_its_chunk_is_refused(self, tmp_path: Path) -> None:
        bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
        folder = self.compressed(tmp_path / "run", lambda _: bomb, ["stream.zstd/1"])
        with pytest.raises(UnsafeFileError, match="unpacks to more"):
            read_values(opened(folder).tensors)

    def test_a_stream_that_breaks_off_is_damage(self, tmp_path: Path) -> None:
        folder = self.compressed(tmp_path / "run", lambda part: compressed(part)[:-9], ["stream.zstd/1"])
        with pytest.raises(DamagedFileError):
            read_values(opened(folder).tensors)

    def test_no_scratch_file_is_left(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "scratch").mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
        folder = self.compressed(tmp_path / "run", compressed, ["stream.zstd/1"])
        assert read_values(opened(folder).tensors) == true_values({"w": torch.arange(4000.0)})
        assert list((tmp_path / "scratch").iterdir()) == []

    def test_without_room_to_unpack_nothing_is_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = self.compressed(tmp_path / "run", compressed, ["stream.zstd/1"])
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
        with pytest.raises(NoSpaceError, match="TMPDIR"):
            read_values(opened(folder).tensors)

    def test_the_package_that_unpacks_is_named_where_it_is_missing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = self.compressed(tmp_path / "run", compressed, ["stream.zstd/1"])
        monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
        with pytest.raises(MissingExtraError, match=r"unshard\[zstd\]"):
            opened(folder)
