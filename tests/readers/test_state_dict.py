"""Full state dicts in every format torch.save has: the conformance suite, and what is peculiar to each."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from awkward import awkward_tensors, read_values, true_values
from reader_suite import ReaderSuite, opened
from torch_archives import Entry, StorageRef, TensorRef, pickled, torch_entries, write_archive

from unshard.dtypes import DTYPES
from unshard.errors import (
    AmbiguousModelError,
    DamagedFileError,
    OptionError,
    TrainingStateError,
    UnknownLayoutError,
    UnsafeFileError,
    UnsupportedLayoutError,
)
from unshard.readers import open_checkpoint


class TestZipFormat(ReaderSuite):
    @classmethod
    def write(cls, tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
        folder.mkdir()
        torch.save(tensors, folder / "model.pt")
        return folder / "model.pt"

    def test_a_healthy_file_has_no_findings(self, written: tuple[Path, Any]) -> None:
        assert opened(written[0]).findings == ()

    def test_every_storage_has_its_checksum(self, written: tuple[Path, Any]) -> None:
        checkpoint = opened(written[0])
        covered = {name for c in checkpoint.checksums for name in c.subject.split(", ")}
        assert covered == {name for name, tensor in checkpoint.tensors.items() if tensor.nbytes}


class TestZipFormatWithoutChecksums(ReaderSuite):
    @classmethod
    def write(cls, tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
        folder.mkdir()
        torch.serialization.set_crc32_options(False)
        try:
            torch.save(tensors, folder / "model.pt")
        finally:
            torch.serialization.set_crc32_options(True)
        return folder / "model.pt"

    def test_missing_checksums_are_told_and_are_no_damage(self, written: tuple[Path, Any]) -> None:
        checkpoint = opened(written[0])
        assert [found.code for found in checkpoint.findings] == ["U103"]
        assert tuple(checkpoint.checksums) == ()


class TestLegacyFormat(ReaderSuite):
    @classmethod
    def write(cls, tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
        folder.mkdir()
        torch.save(tensors, folder / "model.pt", _use_new_zipfile_serialization=False)
        return folder / "model.pt"


class TestContainer(ReaderSuite):
    @classmethod
    def write(cls, tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
        folder.mkdir()
        optimizer = {
            "state": {0: {"exp_avg": torch.ones(4), "step": torch.tensor(3.0)}},
            "param_groups": [{}],
        }
        content = {"epoch": 3, "state_dict": tensors, "optimizer": optimizer, "loss": torch.tensor(0.5)}
        torch.save(content, folder / "last.ckpt")
        return folder / "last.ckpt"

    def test_what_is_not_the_model_is_told(self, written: tuple[Path, Any]) -> None:
        checkpoint = opened(written[0])
        assert checkpoint.container == ("state_dict",)
        assert {(e.name, e.kind, e.value) for e in checkpoint.extras} == {
            ("epoch", "step", "3"), ("optimizer", "optimizer", None), ("loss", "value", "a number"),
        }  # fmt: skip
        assert {e.name: e.size for e in checkpoint.extras}["optimizer"] == 20


class TestBigEndian(ReaderSuite):
    """Written by hand as a big-endian machine would; torch itself reads back what has a storage class."""

    @classmethod
    def tensors(cls) -> Mapping[str, torch.Tensor]:
        return {name: t.detach().contiguous() for name, t in awkward_tensors().items() if "tied" not in name}

    @classmethod
    def write(cls, tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
        folder.mkdir()
        state: OrderedDict[str, TensorRef] = OrderedDict()
        storages: dict[str, bytes | int] = {}
        for i, (name, tensor) in enumerate(tensors.items()):
            state[name], storages[str(i)] = _big_endian(str(i), tensor)
        entries = [e for e in torch_entries(state, storages) if not e.name.endswith("byteorder")]
        path = write_archive(folder / "big.pt", [*entries, Entry("archive/byteorder", b"big")])
        again = torch.load(path, weights_only=True)
        swapped = {
            n: t for n, t in tensors.items() if t.dtype not in (torch.uint16, torch.uint32, torch.uint64)
        }
        assert true_values({name: again[name] for name in swapped}) == true_values(swapped)
        return path


def _big_endian(key: str, tensor: torch.Tensor) -> tuple[TensorRef, bytes]:
    dtype = DTYPES[str(tensor.dtype).removeprefix("torch.")]
    number = dtype.itemsize // 2 if dtype.kind == "complex" else dtype.itemsize
    raw = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else np.empty(0, np.uint8)
    content = raw.view(f"u{number}").byteswap().tobytes()
    if dtype.storage:
        storage = StorageRef(key, tensor.numel(), getattr(torch, dtype.storage))
        return TensorRef(storage, tuple(tensor.shape), tensor.stride()), content
    storage = StorageRef(key, len(content), torch.storage.UntypedStorage)
    rest: tuple[Any, ...] = (False, OrderedDict(), tensor.dtype)
    return TensorRef(
        storage, tuple(tensor.shape), tensor.stride(), 0, rest, torch._utils._rebuild_tensor_v3
    ), content


def test_the_order_of_members_is_free_and_deflated_pickles_are_read(tmp_path: Path) -> None:
    state = {"w": TensorRef(StorageRef("0", 3, torch.FloatStorage), (3,), (1,))}
    data = np.arange(3, dtype=np.float32).tobytes()
    entries = torch_entries(state, {"0": data}, deflate=True)
    path = write_archive(tmp_path / "m.pt", entries[::-1])
    assert read_values(opened(path).tensors) == {"w": ((3,), "float32", data)}


def test_an_archive_of_more_than_four_gigabytes_is_read(tmp_path: Path) -> None:
    huge, small = StorageRef("0", 3 << 30), StorageRef("1", 2, torch.FloatStorage)
    state = {"huge": TensorRef(huge, (3 << 20, 1024), (1024, 1)), "small": TensorRef(small, (2,), (1,))}
    path = write_archive(tmp_path / "m.pt", torch_entries(state, {"0": 6 << 30, "1": b"12345678"}))
    checkpoint = opened(path)
    assert checkpoint["huge"].nbytes == 6 << 30
    assert read_values({"small": checkpoint["small"]})["small"][2] == b"12345678"


def test_an_archive_of_python_s_zipfile_is_read(tmp_path: Path) -> None:
    import zipfile

    state = {"w": TensorRef(StorageRef("0", 3, torch.FloatStorage), (3,), (1,))}
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        with archive.open("m/data.pkl", "w", force_zip64=True) as member:
            member.write(pickled(state))
        archive.writestr("m/data/0", b"0123456789ab")
    assert read_values(opened(tmp_path / "m.pt").tensors)["w"][2] == b"0123456789ab"


def test_a_view_in_the_legacy_format_is_a_part_of_its_storage(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(_legacy(("storage", torch.FloatStorage, "7", "cuda:0", 6, ("8", 2, 3)), "7", range(6)))
    assert np.array_equal(opened(path)["w"].numpy(), np.array([2, 3, 4], np.float32))


def test_keys_of_python_2_are_text(tmp_path: Path) -> None:
    content = _legacy(("storage", torch.FloatStorage, "7", "cpu", 3), "7", range(3))
    # X <4-byte length> text, as Python 3 writes it, became U <1-byte length> bytes in Python 2.
    for word in (b"storage", b"7", b"cpu", b"w"):
        content = content.replace(
            b"X" + len(word).to_bytes(4, "little") + word, b"U" + bytes([len(word)]) + word
        )
    assert b"U\x07storage" in content
    (tmp_path / "m.pt").write_bytes(content)
    assert np.array_equal(opened(tmp_path / "m.pt")["w"].numpy(), np.arange(3, dtype=np.float32))


def _legacy(reference: tuple[Any, ...], key: str, values: range) -> bytes:
    """Return a legacy file with one tensor `w` of three numbers, whose storage is `reference`."""
    import io
    import pickle

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return reference if isinstance(obj, StorageRef) else None

    out = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": sys.byteorder == "little"}):
        pickle.dump(value, out, 2)
    Pickler(out, 2).dump({"w": TensorRef(StorageRef(key, 0), (3,), (1,))})
    pickle.dump([key], out, 2)
    data = np.array(values, np.float32)
    return out.getvalue() + len(data).to_bytes(8, "little") + data.tobytes()


@pytest.mark.parametrize("module", ["_tensor", "tensor"])
def test_tensors_with_attributes_of_older_torch_are_read(module: str, tmp_path: Path) -> None:
    inner = TensorRef(StorageRef("0", 3, torch.FloatStorage), (3,), (1,))

    class Attributed:
        def __reduce__(self) -> tuple[Any, ...]:
            function, args = inner.__reduce__()
            return torch._tensor._rebuild_from_type, (function, torch.Tensor, args, {"tag": 1})

    content = pickled({"w": Attributed()}).replace(b"ctorch._tensor\n", b"ctorch.%b\n" % module.encode())
    path = write_archive(tmp_path / "m.pt", torch_entries(content, {"0": b"0123456789ab"}))
    assert read_values(opened(path).tensors)["w"][2] == b"0123456789ab"


def test_a_tensor_of_four_arguments_is_read(tmp_path: Path) -> None:
    storage = StorageRef("0", 3, torch.FloatStorage)
    tensor = TensorRef(storage, (3,), (1,), 0, (), torch._utils._rebuild_tensor)
    path = write_archive(tmp_path / "m.pt", torch_entries({"w": tensor}, {"0": b"0123456789ab"}))
    assert read_values(opened(path).tensors)["w"][2] == b"0123456789ab"


@pytest.mark.parametrize(
    ("container", "path"),
    [
        ({"model": 0}, ("model",)),
        ({"module": 0, "ds_config": {"lr": 1}}, ("module",)),
        (
            {"state": {"model": 0, "optimizers": {"AdamW": {"state": {}, "param_groups": []}}}},
            ("state", "model"),
        ),
        ({"models": [0]}, ("models", "0")),
        ({"a": {"b": {"c": {"d": 0}}}}, ("a", "b", "c", "d")),
    ],
)
def test_a_model_is_found_in_any_container(container: Any, path: tuple[str, ...], tmp_path: Path) -> None:
    tensors = {"w": torch.ones(2, 3)}

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [filled(inner) for inner in value]
        return tensors if value == 0 else value

    torch.save(filled(container), tmp_path / "m.pt")
    checkpoint = opened(tmp_path / "m.pt")
    assert checkpoint.container == path
    assert read_values(checkpoint.tensors) == true_values(tensors)
    assert "U105" in {found.code for found in checkpoint.findings}


TWO = {
    "model": {"a.w": torch.ones(2), "b.w": torch.ones(3)},
    "ema": {"a.w": torch.zeros(2), "b.w": torch.zeros(3)},
}


def test_two_models_are_refused_by_name_and_count(tmp_path: Path) -> None:
    torch.save(TWO, tmp_path / "m.pt")
    with pytest.raises(AmbiguousModelError) as caught:
        opened(tmp_path / "m.pt")
    assert "`model` (2 tensors), `ema` (2 tensors)" in str(caught.value)
    assert "--select model or --select ema" in str(caught.value)


@pytest.mark.parametrize(
    ("select", "container", "removed", "names"),
    [
        ("ema", ("ema",), "", ["a.w", "b.w"]),
        ("ema.a", ("ema",), "a", ["w"]),
        ("ema.a.", ("ema",), "a", ["w"]),
    ],
)
def test_a_model_is_selected_by_its_prefix(
    select: str, container: tuple[str, ...], removed: str, names: list[str], tmp_path: Path
) -> None:
    torch.save(TWO, tmp_path / "m.pt")
    checkpoint = open_checkpoint(tmp_path / "m.pt", step=None, select=select)
    assert (checkpoint.container, checkpoint.selected, list(checkpoint)) == (container, removed, names)
    assert all(not tensor.numpy().any() for tensor in checkpoint.tensors.values())
    assert "U205" in {found.code for found in checkpoint.findings}


def test_a_prefix_below_an_only_container_need_not_name_it(tmp_path: Path) -> None:
    torch.save({"model": {"actor.w": torch.ones(2), "critic.w": torch.zeros(2)}}, tmp_path / "m.pt")
    checkpoint = open_checkpoint(tmp_path / "m.pt", step=None, select="critic")
    assert (checkpoint.container, checkpoint.selected, list(checkpoint)) == (("model",), "critic", ["w"])


def test_the_top_level_is_selected_by_a_dot(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(5), "teacher": {"w": torch.zeros(5)}}, tmp_path / "m.pt")
    with pytest.raises(AmbiguousModelError, match=r"--select \. or --select teacher"):
        opened(tmp_path / "m.pt")
    checkpoint = open_checkpoint(tmp_path / "m.pt", step=None, select=".")
    assert checkpoint["w"].numpy().all()


def test_containers_below_a_selected_one_are_joined(tmp_path: Path) -> None:
    torch.save({"model": {"vision": {"w": torch.ones(2)}, "text": {"w": torch.zeros(2)}}}, tmp_path / "m.pt")
    checkpoint = open_checkpoint(tmp_path / "m.pt", step=None, select="model")
    assert sorted(checkpoint) == ["text.w", "vision.w"]


def test_a_selection_that_names_nothing_says_what_there_is(tmp_path: Path) -> None:
    torch.save(TWO, tmp_path / "m.pt")
    with pytest.raises(OptionError, match=r"--select critic.*`model` \(2\), `ema` \(2\)"):
        open_checkpoint(tmp_path / "m.pt", step=None, select="critic")


@pytest.mark.parametrize(
    "content",
    [
        {"state": {"w": {"exp_avg": torch.ones(2), "step": 3}}, "param_groups": [{"params": ["w"]}]},
        {"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}, "epoch": 3},
        {"w": {"exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2), "step": torch.tensor(1.0)}},
        {"w.exp_avg": torch.ones(2), "w.exp_avg_sq": torch.ones(2)},
        {"torch_rng_state": torch.get_rng_state(), "cuda_rng_state": [torch.get_rng_state()]},
    ],
)
def test_training_state_is_refused_and_the_model_beside_it_named(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "state.pt")
    torch.save({"w": torch.ones(2)}, tmp_path / "model-3.pt")
    with pytest.raises(TrainingStateError, match=r"unshard inspect .*model-3\.pt"):
        opened(tmp_path / "state.pt")


def test_values_beside_a_model_are_short_and_safe_to_show(tmp_path: Path) -> None:
    content = {
        "model": {"w": torch.ones(1, 2)},
        "note": "\x1b[2J" + "x" * 500,
        "big": 1 << 5000,
        "args": {"lr": 0.1},
    }
    torch.save(content, tmp_path / "m.pt")
    values = {e.name: e.value for e in opened(tmp_path / "m.pt").extras}
    assert values == {
        "note": "\\x1b[2J" + "x" * 50 + "...", "big": "an integer of 5001 bits", "args.lr": "0.1",
    }  # fmt: skip


def test_extra_state_in_a_model_is_told_and_not_taken_for_a_tensor(tmp_path: Path) -> None:
    import io

    torch.save({"w": torch.ones(2), "layer._extra_state": io.BytesIO(b"abc"), "n": None}, tmp_path / "m.pt")
    checkpoint = opened(tmp_path / "m.pt")
    assert list(checkpoint) == ["w"]
    assert [e.name for e in checkpoint.extras] == ["layer._extra_state", "n"]


class Tagged(torch.Tensor):  # type: ignore[misc]
    """A tensor with a class of its own."""


NOT_READ: dict[str, Callable[[], Any]] = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "meta": lambda: torch.empty(3, device="meta"),
    "conj": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "neg": lambda: torch._neg_view(torch.ones(3)),
    "Tagged": lambda: torch.ones(3).as_subclass(Tagged),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", list(NOT_READ))
def test_tensors_of_other_kinds_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    torch.save({"fine": torch.ones(2), "layer.odd": NOT_READ[kind]()}, tmp_path / "m.pt")
    with pytest.raises(UnsupportedLayoutError, match=rf"`layer\.odd` is .*{kind}"):
        opened(tmp_path / "m.pt")


def test_tensors_of_other_kinds_beside_the_model_do_no_harm(tmp_path: Path) -> None:
    content = {
        "model": {"w": torch.ones(2)},
        "optimizer": {"state": {0: torch.eye(2).to_sparse()}, "param_groups": []},
    }
    torch.save(content, tmp_path / "m.pt")
    assert list(opened(tmp_path / "m.pt")) == ["w"]


def test_a_part_without_its_place_is_refused(tmp_path: Path) -> None:
    from torch.distributed.tensor import DTensor

    inner = TensorRef(StorageRef("0", 2, torch.FloatStorage), (2,), (1,))

    class Distributed:
        def __reduce__(self) -> tuple[Any, ...]:
            wrapped = (DTensor, torch.float32, (4,), (1,), 0, torch.strided, "cpu", False)
            state = (None, {"_local_tensor": inner})
            function = torch._utils._rebuild_wrapper_subclass
            return torch._tensor._rebuild_from_type_v2, (function, DTensor, wrapped, state)

    path = write_archive(tmp_path / "m.pt", torch_entries({"w": Distributed()}, {"0": b"12345678"}))
    with pytest.raises(UnsafeFileError, match=r"m\.pt: w` is a DTensor without a local tensor or a spec"):
        opened(path)


def test_a_pickled_module_is_refused_as_such(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pt")
    with pytest.raises(UnsupportedLayoutError, match=r"pickled module.*torch\.nn\.modules\.linear\.Linear"):
        opened(tmp_path / "m.pt")


@pytest.mark.parametrize("value", [torch.ones(2), [torch.ones(2)], {3: torch.ones(2)}])
def test_tensors_without_names_are_refused(value: Any, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "m.pt")
    with pytest.raises(UnsupportedLayoutError, match="without names"):
        opened(tmp_path / "m.pt")


class Holder:
    def __init__(self) -> None:
        self.weight = torch.ones(2)


def test_tensors_inside_of_unknown_objects_are_refused_with_their_class(tmp_path: Path) -> None:
    torch.save({"holder": Holder()}, tmp_path / "m.pt")
    with pytest.raises(UnsupportedLayoutError, match=r"not known here: saw .*\.Holder"):
        opened(tmp_path / "m.pt")


def test_models_of_single_numbers_are_models(tmp_path: Path) -> None:
    torch.save({"a": {"w": torch.ones(1)}, "b": {"w": torch.ones(1)}}, tmp_path / "m.pt")
    with pytest.raises(AmbiguousModelError):
        opened(tmp_path / "m.pt")


def test_a_file_without_tensors_is_not_a_checkpoint(tmp_path: Path) -> None:
    torch.save({"lr": 0.1, "name": "x"}, tmp_path / "m.pt")
    with pytest.raises(UnknownLayoutError, match=r"no tensors: saw values: lr, name"):
        opened(tmp_path / "m.pt")


def test_a_save_that_failed_is_told(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        torch.save({"w": torch.ones(2), "f": lambda: 0}, tmp_path / "m.pt")
    with pytest.raises(DamagedFileError, match="never finished"):
        opened(tmp_path / "m.pt")


def test_classes_that_are_not_torch_s_are_told_and_kept_inert(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(2)}, "args": np.float64(3), "tag": Tagged}, tmp_path / "m.pt")
    checkpoint = opened(tmp_path / "m.pt")
    assert f"{__name__}.Tagged" in checkpoint.classes
    assert "torch.FloatStorage" not in checkpoint.classes
    assert "U104" in {found.code for found in checkpoint.findings}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"offset": -1}, "cannot be"),
        ({"offset": 5}, "beyond the end"),
        ({"shape": (-2, 3)}, "cannot be"),
        ({"shape": (2, 4)}, "beyond the end"),
        ({"shape": (2.0, 3)}, "cannot be"),
        ({"shape": (True, 3)}, "cannot be"),
        ({"shape": (2,)}, "other numbers of sizes and strides"),
        ({"shape": "ab"}, "no numbers"),
        ({"shape": (1 << 70, 3)}, "cannot be"),
        ({"shape": (1,) * 40, "strides": (1,) * 40}, "too many dimensions"),
        ({"shape": (1 << 40, 1 << 40), "strides": (0, 0)}, "larger than anything"),
        ({"shape": (1 << 20, 1 << 20), "strides": (0, 0)}, "claims to hold"),
        ({"strides": (3, -1)}, "cannot be"),
        ({"storage": StorageRef("0", 7, torch.FloatStorage)}, "another size"),
        ({"storage": StorageRef("0", -6, torch.FloatStorage)}, "no possible length"),
        ({"storage": StorageRef("0", 1 << 4000, torch.FloatStorage)}, "no possible length"),
        ({"storage": StorageRef("9", 6, torch.FloatStorage)}, "not in the file"),
        ({"storage": StorageRef("0", 6, "FloatStorage")}, "does not write"),
        ({"storage": None}, "no storage"),
        ({"rest": ()}, None),
    ],
)
def test_geometry_that_cannot_be_is_refused(changes: dict[str, Any], why: str | None, tmp_path: Path) -> None:
    plain: dict[str, Any] = {
        "storage": StorageRef("0", 6, torch.FloatStorage),
        "shape": (2, 3),
        "strides": (3, 1),
    }
    state = {"w": TensorRef(**(plain | changes))}
    path = write_archive(tmp_path / "m.pt", torch_entries(state, {"0": bytes(24)}))
    if why is None:
        assert opened(path)["w"].shape == (2, 3)
        return
    with pytest.raises((UnsafeFileError, DamagedFileError), match=why):
        opened(path)


def test_names_that_would_steer_a_terminal_are_refused(tmp_path: Path) -> None:
    torch.save({"w\x1b[31m": torch.ones(2)}, tmp_path / "m.pt")
    with pytest.raises(UnsafeFileError, match="cannot be printed") as caught:
        opened(tmp_path / "m.pt")
    assert "\x1b" not in str(caught.value)


def test_a_pickle_that_calls_anything_is_refused_and_nothing_is_run(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            import os

            return os.system, (f"touch {tmp_path}/ran",)

    torch.save({"w": torch.ones(2), "x": Attack()}, tmp_path / "m.pt")
    with pytest.raises(UnsafeFileError, match=r"asks for `posix\.system` to be called"):
        opened(tmp_path / "m.pt")
    assert not (tmp_path / "ran").exists()
