"""What every reader promises, whatever the layout.

A layout's own test class inherits this one, writes its truth in its own way, and adds what is
peculiar to it.
"""

from __future__ import annotations

import random
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from awkward import Value, awkward_tensors, read_values, true_values

from unshard.checkpoint import Checkpoint
from unshard.errors import BaseModelError, InputError
from unshard.readers import open_checkpoint

FLIPS = 300


def opened(path: Path) -> Checkpoint:
    return open_checkpoint(path, step=None, select=None)


class ReaderSuite:
    """The conformance suite: names, shapes, values, sharing and damage."""

    @classmethod
    def tensors(cls) -> Mapping[str, torch.Tensor]:
        """Return the truth; a layout that cannot hold all of it returns less."""
        return awkward_tensors()

    @classmethod
    def write(cls, tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
        """Write the truth into an empty folder; return what a person would give to a command."""
        raise NotImplementedError

    @classmethod
    def opened(cls, path: Path) -> Checkpoint:
        """Return a checkpoint; a layout that needs more than its files for it opens it in its own way."""
        return opened(path)

    @pytest.fixture(scope="class")
    @classmethod
    def written(cls, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Value]]:
        folder = tmp_path_factory.mktemp("written")
        tensors = cls.tensors()
        return cls.write(tensors, folder / "run"), true_values(tensors)

    def test_names_shapes_and_dtypes_are_those_that_were_saved(
        self, written: tuple[Path, dict[str, Value]]
    ) -> None:
        path, truth = written
        checkpoint = self.opened(path)
        described = {name: (t.shape, t.dtype.name) for name, t in checkpoint.tensors.items()}
        assert described == {name: value[:2] for name, value in truth.items()}

    def test_every_value_is_bit_for_bit_what_was_saved(self, written: tuple[Path, dict[str, Value]]) -> None:
        path, truth = written
        assert read_values(self.opened(path).tensors) == truth

    def test_any_range_of_a_tensor_can_be_read(self, written: tuple[Path, dict[str, Value]]) -> None:
        path, truth = written
        for name, tensor in self.opened(path).tensors.items():
            size, count = tensor.dtype.itemsize, tensor.nbytes // tensor.dtype.itemsize
            start, stop = count // 3, count - count // 4
            part = bytearray((stop - start) * size)
            tensor.read(start, stop, memoryview(part))
            assert bytes(part) == truth[name][2][start * size : stop * size], name

    def test_tensors_that_share_storage_are_told(self, written: tuple[Path, dict[str, Value]]) -> None:
        path, truth = written
        storages = self.opened(path).storages
        assert storages.keys() == truth.keys()
        if "tied.head" in truth:
            assert storages["tied.head"] == storages["tied.embedding"] != storages["number"]

    def test_checksums_are_those_of_the_bytes(self, written: tuple[Path, dict[str, Value]]) -> None:
        for checksum in self.opened(written[0]).checksums:
            assert zlib.crc32(checksum.file.read(checksum.start, checksum.stop)) == checksum.crc32

    def test_every_file_that_holds_tensors_is_listed(self, written: tuple[Path, dict[str, Value]]) -> None:
        checkpoint = self.opened(written[0])
        files = {place.file for tensor in checkpoint.tensors.values() for place in tensor.places}
        assert files <= set(checkpoint.files)

    def test_a_file_cut_anywhere_is_refused_with_a_reason(
        self, written: tuple[Path, dict[str, Value]], tmp_path: Path
    ) -> None:
        path, _ = written
        for victim in self.opened(path).files:
            for kept in _cuts(victim.size):
                copy = _copied(path, tmp_path / "copy")
                with (copy.parent / victim.path.relative_to(path.parent)).open("r+b") as file:
                    file.truncate(kept)
                with pytest.raises(InputError):
                    read_values(self.opened(copy).tensors)

    def test_a_flipped_byte_is_refused_or_found_or_cannot_be_told(
        self, written: tuple[Path, dict[str, Value]], tmp_path: Path
    ) -> None:
        path, truth = written
        copy = _copied(path, tmp_path / "copy")
        chance = random.Random(11)
        victims = [copy.parent / file.path.relative_to(path.parent) for file in self.opened(path).files]
        for _ in range(FLIPS):
            victim = chance.choice(victims)
            with victim.open("r+b") as file:
                at = chance.randrange(victim.stat().st_size)
                file.seek(at)
                before = file.read(1)
                file.seek(at)
                file.write(bytes([before[0] ^ (1 << chance.randrange(8))]))
            self._require_told(copy, truth, f"{victim.name} at byte {at}")
            with victim.open("r+b") as file:
                file.seek(at)
                file.write(before)

    def _require_told(self, path: Path, truth: dict[str, Value], where: str) -> None:
        """Fail unless damage was refused, changes nothing, is found by a checksum, or cannot be told."""
        try:
            checkpoint = self.opened(path)
            values = read_values(checkpoint.tensors)
        except (InputError, BaseModelError):  # a box that was moved does not fit the base any more
            return
        if values == truth:
            return
        broken = [c for c in checkpoint.checksums if zlib.crc32(c.file.read(c.start, c.stop)) != c.crc32]
        assert broken or self.is_unverifiable(checkpoint), where

    def is_unverifiable(self, checkpoint: Checkpoint) -> bool:
        """Return whether the checkpoint says that damage cannot be told from data."""
        return any(found.code == "U103" for found in checkpoint.findings)


class FolderSuite(ReaderSuite):
    """For layouts of more than one file: what one of them held is named when it is gone."""

    def test_a_missing_file_names_tensors_it_held(
        self, written: tuple[Path, dict[str, Value]], tmp_path: Path
    ) -> None:
        path, truth = written
        for victim in self.opened(path).files:
            copy = _copied(path, tmp_path / "copy")
            (copy.parent / victim.path.relative_to(path.parent)).unlink()
            with pytest.raises(InputError) as caught:
                self.opened(copy)
            assert victim.path.name in str(caught.value)
            assert any(f"`{name}`" in str(caught.value) for name in truth)


def _cuts(size: int) -> list[int]:
    """Return sizes to which a file is cut: nothing, almost all, and some in between."""
    return sorted({0, 1, 4, 21, size // 7, size // 2, size - 30, size - 1} & set(range(size)))


def _copied(path: Path, target: Path) -> Path:
    """Copy what a checkpoint lies in; return the path of the checkpoint in the copy."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(path.parent, target)
    return target / path.name
