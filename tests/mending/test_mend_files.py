"""Files of weights: their index, their names, their size, their format, and how experts lie in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from folders_to_mend import (
    assert_loads_as,
    contents,
    copied,
    index_of,
    rename_weights,
    same,
    set_config,
    set_index,
    split,
    weights_of,
    wrapped,
)
from safetensors.torch import save_file

from tiny_experts import tiny_experts
from unshard import convert, mend, verify
from unshard.manifest import MANIFEST_NAME, read_manifest

INDEX = "model.safetensors.index.json"


@pytest.fixture
def parts(llama: Path, tmp_path: Path) -> Path:
    """A sound folder of several files of weights, and their index."""
    folder = copied(llama, tmp_path / "parts")
    split(folder)
    mend(folder, in_place=True, only=["spelling"])
    assert not mend(folder).plan.changes
    return folder


def lose(folder: Path) -> None:
    (folder / INDEX).unlink()


def garble(folder: Path) -> None:
    (folder / INDEX).write_text("{")


def misplace(folder: Path) -> None:
    homes = index_of(folder)
    first, last = min(homes.values()), max(homes.values())
    set_index(folder, {name: last if home == first else home for name, home in homes.items()})


def shorten(folder: Path) -> None:
    set_index(folder, dict(list(index_of(folder).items())[1:]))


def of_the_base(folder: Path) -> None:
    """The index of the base, which is split otherwise: torchtitan copies it along."""
    set_index(
        folder,
        {name: f"model-0000{1 + (i > 9)}-of-00002.safetensors" for i, name in enumerate(index_of(folder))},
    )


@pytest.mark.parametrize("damage", [lose, garble, misplace, shorten, of_the_base])
def test_the_index_is_what_the_headers_say(parts: Path, llama: Path, damage: Callable[[Path], None]) -> None:
    homes = index_of(parts)
    damage(parts)
    done = mend(parts, in_place=True)
    assert [repair.name for repair in done.plan.repairs] == ["index"]
    assert index_of(parts) == homes
    metadata = json.loads((parts / INDEX).read_bytes())["metadata"]
    assert metadata["total_size"] == sum(t.nbytes for t in weights_of(parts).values())
    assert_loads_as(llama, parts)
    assert not mend(parts).plan.changes


def test_an_index_beside_one_file_goes_if_it_is_wrong(llama: Path, tmp_path: Path) -> None:
    folder = copied(llama, tmp_path / "broken")
    homes = dict.fromkeys(weights_of(folder), "model.safetensors")
    set_index(folder, homes)
    assert not mend(folder).plan.changes
    set_index(folder, dict.fromkeys(homes, "model-00001-of-00002.safetensors"))
    mend(folder, in_place=True)
    assert contents(folder) == contents(llama)


def test_names_and_index_are_mended_together(parts: Path, llama: Path) -> None:
    for path in parts.glob("*.safetensors"):
        rename_file(path, wrapped)
    done = mend(parts, in_place=True)
    assert {file.fate for file in done.plan.weights} == {"header"}
    assert index_of(parts).keys() == weights_of(llama).keys()
    assert same(weights_of(parts), weights_of(llama))
    assert_loads_as(llama, parts)


def rename_file(path: Path, rename: Callable[[str], str]) -> None:
    from safetensors.torch import load_file

    save_file({rename(n): t.clone() for n, t in load_file(path).items()}, path, metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["weights.safetensors", "model-00001-of-00002.safetensors"])
def test_one_file_gets_the_name_that_engines_look_for(llama: Path, tmp_path: Path, name: str) -> None:
    folder = copied(llama, tmp_path / "broken")
    (folder / "model.safetensors").rename(folder / name)
    inode = (folder / name).stat().st_ino
    mend(folder, in_place=True)
    assert contents(folder) == contents(llama)
    assert (folder / "model.safetensors").stat().st_ino == inode


def test_several_files_get_the_usual_names_even_where_these_are_taken(parts: Path, llama: Path) -> None:
    names = sorted(path.name for path in parts.glob("*.safetensors"))
    (parts / names[0]).rename(parts / "a")
    (parts / names[1]).rename(parts / names[0])
    (parts / "a").rename(parts / "weights.safetensors")
    (parts / INDEX).unlink()
    mend(parts, in_place=True)
    assert sorted(path.name for path in parts.glob("*.safetensors")) == names
    assert same(weights_of(parts), weights_of(llama))
    assert_loads_as(llama, parts)


def test_a_file_of_several_that_is_missing_is_refused(parts: Path) -> None:
    sorted(parts.glob("*.safetensors"))[1].unlink()
    done = mend(parts)
    assert done.plan.is_refused
    assert done.remains[0].code == "U901"


def test_two_sets_of_weights_are_refused(parts: Path, llama: Path) -> None:
    (parts / "model.safetensors").write_bytes((llama / "model.safetensors").read_bytes())
    assert [item.code for item in mend(parts).remains] == ["U902"]


def test_files_that_a_right_index_does_not_name_are_leftovers(
    parts: Path, tmp_path: Path, llama: Path
) -> None:
    stale = "model-00001-of-00009.safetensors"
    (parts / stale).write_bytes(min(parts.glob("*.safetensors")).read_bytes())
    done = mend(parts, tmp_path / "out")
    assert done.plan.leftovers == (stale,)
    assert not (tmp_path / "out" / stale).exists()
    assert_loads_as(llama, tmp_path / "out")


@pytest.mark.parametrize(("name", "code"), [("consolidated.safetensors", "U906"), ("optimizer.pt", "U907")])
def test_what_lies_beside_the_model_is_told_and_left(
    llama: Path, tmp_path: Path, name: str, code: str
) -> None:
    folder = copied(llama, tmp_path / "broken")
    (folder / name).write_bytes((llama / "model.safetensors").read_bytes())
    set_config(folder, use_cache=False)
    done = mend(folder, tmp_path / "out")
    assert [item.code for item in done.plan.findings] == [code]
    assert (folder / name).exists()
    assert not (tmp_path / "out" / name).exists()
    mend(folder, in_place=True)
    assert (folder / name).exists()


@pytest.mark.parametrize("in_place", [False, True])
def test_one_large_file_is_split(llama: Path, tmp_path: Path, in_place: bool) -> None:
    folder = copied(llama, tmp_path / "broken")
    out = folder if in_place else tmp_path / "out"
    mend(folder, None if in_place else out, in_place=in_place, max_shard_size="100KB")
    assert len(list(out.glob("*.safetensors"))) == 4
    assert not (out / "model.safetensors").exists()
    assert same(weights_of(out), weights_of(llama))
    assert_loads_as(llama, out)
    assert not mend(out, max_shard_size="100KB").plan.changes


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_files_of_torch_become_safetensors(
    healthy: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    folder = copied(healthy(family), tmp_path / "broken")
    state = weights_of(folder)
    (folder / "model.safetensors").unlink()
    if family == "llama-tied":
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    torch.save({f"_orig_mod.{name}": tensor for name, tensor in state.items()}, folder / "pytorch_model.bin")
    mend(folder, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.bin"))
    mend(folder, in_place=True)
    assert (folder / "pytorch_model.bin").exists()
    for out in (folder, tmp_path / "out"):
        assert same(weights_of(out), weights_of(healthy(family)))
        assert_loads_as(healthy(family), out)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_experts_are_taken_apart_by_headers_and_put_together_again(tmp_path: Path, family: str) -> None:
    model = tiny_experts(family)
    model.save_pretrained(tmp_path / "hub")
    model.save_pretrained(tmp_path / "fused")
    memory = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(memory, tmp_path / "fused" / "model.safetensors", metadata={"format": "pt"})
    options = {"skip": ["files", "spelling", "dtype"]}
    done = mend(tmp_path / "fused", tmp_path / "apart", **options)  # type: ignore[arg-type]
    assert [file.fate for file in done.plan.weights] == ["copied"]
    assert same(weights_of(tmp_path / "apart"), weights_of(tmp_path / "hub"))
    assert_loads_as(tmp_path / "hub", tmp_path / "apart")
    mend(tmp_path / "hub", tmp_path / "together", layout="v5", **options)  # type: ignore[arg-type]
    assert same(weights_of(tmp_path / "together"), memory)
    assert not mend(tmp_path / "together", layout="v5", **options).plan.changes  # type: ignore[arg-type]


def test_an_expert_that_is_missing_is_refused(tmp_path: Path) -> None:
    tiny_experts("qwen3_moe").save_pretrained(tmp_path / "hub")
    state = weights_of(tmp_path / "hub")
    del state["model.layers.1.mlp.experts.2.up_proj.weight"]
    save_file(state, tmp_path / "hub" / "model.safetensors")
    done = mend(tmp_path / "hub")
    assert done.plan.is_refused
    assert "experts.2.up_proj" in done.remains[0].saw


def test_a_manifest_stays_true(llama: Path, tmp_path: Path) -> None:
    state: Mapping[str, torch.Tensor] = weights_of(llama)
    torch.save(dict(state), tmp_path / "model.pt")
    out = tmp_path / "out"
    convert(tmp_path / "model.pt", out, base=llama)
    before = read_manifest(out / MANIFEST_NAME)
    rename_weights(out, wrapped)
    set_config(out, use_cache=False)
    mend(out, in_place=True)
    after = read_manifest(out / MANIFEST_NAME)
    assert before is not None
    assert after is not None
    assert after.tensors == before.tensors
    assert "names" in {item["subject"] for item in after.findings if item["code"] == "U908"}
    assert after.proof["mended"]["verdict"] == "not checked"
    assert verify(out, forward=False).sound


def test_a_manifest_keeps_the_digests_of_bytes_that_stay(llama: Path, tmp_path: Path) -> None:
    torch.save(dict(weights_of(llama)), tmp_path / "model.pt")
    out = tmp_path / "out"
    convert(tmp_path / "model.pt", out, base=llama)
    before = read_manifest(out / MANIFEST_NAME)
    mend(out, in_place=True, max_shard_size="100KB")
    after = read_manifest(out / MANIFEST_NAME)
    assert before is not None
    assert after is not None
    assert {n: t.sha256 for n, t in after.tensors.items()} == {n: t.sha256 for n, t in before.tensors.items()}
    assert {t.file for t in after.tensors.values()} == set(index_of(out).values())
    assert verify(out, forward=False).sound
