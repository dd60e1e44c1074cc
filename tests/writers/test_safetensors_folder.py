"""Safetensors files, against the reference writer, the reference reader, and Hugging Face's split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import split_torch_state_dict_into_shards
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from raw_tensors import EVERY_DTYPE, awkward_tensors, raw, store
from unshard.dtypes import DTYPES
from unshard.engines.local import run_plan
from unshard.errors import OptionError, OutputError
from unshard.plan import Plan
from unshard.progress import Silence
from unshard.writers.safetensors_folder import INDEX_NAME, plan_safetensors

WRITABLE = [name for name in EVERY_DTYPE if DTYPES[name].tag is not None]
LARGE = 10**12


def write(tensors: dict[str, torch.Tensor], folder: Path, *, max_file_bytes: int) -> Path:
    """Write `tensors` as a plan says, and return the folder."""
    out = folder / "out"
    out.mkdir()
    files, side_files = plan_safetensors(store(folder / "raw", tensors), max_file_bytes=max_file_bytes)
    plan = Plan(out, files, side_files, (), (), 32 << 20)
    run_plan(plan, out, workers=2, durable=False, progress=Silence())
    return out


def test_a_single_file_has_the_bytes_the_reference_writes(tmp_path: Path) -> None:
    tensors = awkward_tensors(WRITABLE)
    out = write(tensors, tmp_path, max_file_bytes=LARGE)
    save_file(tensors, tmp_path / "reference", metadata={"format": "pt"})
    assert [p.name for p in out.iterdir()] == ["model.safetensors"]
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "reference").read_bytes()


def test_the_reference_reader_gives_back_every_value(tmp_path: Path) -> None:
    tensors = awkward_tensors([name for name in WRITABLE if not name.endswith("fnuz")])
    out = write(tensors, tmp_path, max_file_bytes=LARGE)
    with safe_open(out / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        for name, tensor in tensors.items():
            found = file.get_tensor(name)
            assert (found.dtype, found.shape, raw(found)) == (tensor.dtype, tensor.shape, raw(tensor))


def test_no_tensors_make_a_file_without_tensors(tmp_path: Path) -> None:
    out = write({}, tmp_path, max_file_bytes=LARGE)
    with safe_open(out / "model.safetensors", framework="pt") as file:
        assert list(file.keys()) == []


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Empty tensors are left out: to Hugging Face they all share one storage, and lie where the first does.
@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=25), limit=st.integers(1, 130))
def test_tensors_are_split_as_hugging_face_splits_them(tmp_path: Path, sizes: list[int], limit: int) -> None:
    tensors = {f"t{i}": torch.zeros(size, dtype=torch.uint8) for i, size in enumerate(sizes)}
    files, side_files = plan_safetensors(store(tmp_path / "raw", tensors), max_file_bytes=limit)
    theirs = split_torch_state_dict_into_shards(
        tensors, filename_pattern="model{suffix}.safetensors", max_shard_size=limit
    )
    ours = {file.name: sorted(p.name for p in file.placements) for file in files}
    assert ours == {name: sorted(held) for name, held in theirs.filename_to_tensors.items()}
    assert bool(side_files) == theirs.is_sharded


def test_a_split_model_is_what_transformers_saves(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "reference", max_shard_size="20KB")
    out = write(dict(model.state_dict()), tmp_path, max_file_bytes=20_000)
    names = sorted(p.name for p in out.iterdir())
    assert len(names) > 3
    assert names == sorted(p.name for p in (tmp_path / "reference").glob("model*"))
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "reference" / name).read_bytes(), name


def test_the_index_has_the_totals(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(3, 4), "b": torch.zeros((), dtype=torch.int64), "c": torch.zeros(0)}
    _, (index,) = plan_safetensors(store(tmp_path / "raw", tensors), max_file_bytes=40)
    assert index.name == INDEX_NAME
    assert json.loads(index.content or b"") == {
        "metadata": {"total_parameters": 13, "total_size": 56},
        "weight_map": {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
            "c": "model-00002-of-00002.safetensors",
        },
    }


def test_every_tensor_is_aligned_to_its_dtype(tmp_path: Path) -> None:
    files, _ = plan_safetensors(store(tmp_path / "raw", awkward_tensors(WRITABLE)), max_file_bytes=LARGE)
    assert all(p.start % p.tensor.dtype.itemsize == 0 for p in files[0].placements)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_dtypes_that_safetensors_lacks_are_refused_together_with_the_way_out(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(1, dtype=torch.complex128), "b": torch.zeros(1)}
    tensors |= {f"c{i}": torch.zeros(1, dtype=torch.complex32) for i in range(4)}
    with pytest.raises(OutputError, match="`a, c0, c1 and 2 more` cannot be written") as caught:
        plan_safetensors(store(tmp_path / "raw", tensors), max_file_bytes=LARGE)
    assert caught.value.saw == "complex128, complex32"
    assert "--to pt" in str(caught.value)


@pytest.mark.parametrize("name", ["", "a\nb", "a\0", "\x7f", "\ud800", "a\u202eb", "__metadata__"])
def test_names_that_readers_stumble_over_are_refused(tmp_path: Path, name: str) -> None:
    tensors = {name: torch.zeros(1), "fine": torch.zeros(1)}
    with pytest.raises(OutputError, match="cannot be the name of a tensor") as caught:
        plan_safetensors(store(tmp_path / "raw", tensors), max_file_bytes=LARGE)
    assert caught.value.subject.isprintable()


def test_a_header_that_no_reader_accepts_is_refused(tmp_path: Path) -> None:
    one = store(tmp_path / "raw", {"x": torch.zeros(1)})["x"]
    many = {f"{i:05000}": one for i in range(20_000)}
    with pytest.raises(OutputError, match="would have a header that no reader accepts"):
        plan_safetensors(many, max_file_bytes=LARGE)


def test_a_limit_that_fits_nothing_is_refused() -> None:
    with pytest.raises(OptionError, match="must be at least 1: saw 0"):
        plan_safetensors({}, max_file_bytes=0)
