"""Experts in one tensor become experts one by one, and back: bit for bit, or by name what does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from raw_tensors import raw
from specimens import State, base_of, bytes_of, checkpoint_of, codes, match_state, matched, one, state_of
from tiny_experts import FAMILIES, tiny_experts
from unshard.base import Base
from unshard.errors import MatchError
from unshard.match import Model
from unshard.recipes.experts import RECIPES
from unshard.tensors import Box, DescribedTensor, FileSource, Piece
from unshard.tensors.boxes import row_major_strides

GATE_UP = "model.layers.0.mlp.experts.gate_up_proj"
DOWN = "model.layers.0.mlp.experts.down_proj"
W1 = "model.layers.0.block_sparse_moe.experts.{}.w1.weight"


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> tuple[State, Path]:
    """Return a model as memory has it, and the folder that a hub would hold."""
    return saved(tiny_experts("mixtral"), tmp_path_factory.mktemp("mixtral"))


def saved(model: Any, folder: Path) -> tuple[State, Path]:
    model.save_pretrained(folder / "base")
    return state_of(model), folder / "base"


def only_config(base: Path, folder: Path, **settings: object) -> Path:
    """Return a base of which nothing but the configuration is here."""
    folder.mkdir()
    config = json.loads((base / "config.json").read_bytes()) | settings
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def contents(tensors: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], str, bytes]]:
    return {
        name: (
            tuple(t.shape),
            str(t.dtype).removeprefix("torch."),
            raw(t) if isinstance(t, torch.Tensor) else bytes_of(t),
        )
        for name, t in tensors.items()
    }


def matched_to(state: State, base: Base | Path, folder: Path) -> Model:
    checkpoint = checkpoint_of(state, folder / "run")
    return matched(checkpoint, base_of(base, checkpoint) if isinstance(base, Path) else base)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_result_is_what_save_pretrained_writes(family: str, tmp_path: Path) -> None:
    state, base = saved(tiny_experts(family), tmp_path)
    model = match_state(state, base, tmp_path)
    assert contents(model.tensors) == contents(load_file(base / "model.safetensors"))


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss", "granitemoe"])
def test_a_base_without_weights_gives_published_names_too(family: str, tmp_path: Path) -> None:
    state, base = saved(tiny_experts(family), tmp_path)
    truth = contents(load_file(base / "model.safetensors"))
    checkpoint = checkpoint_of(state, tmp_path / "run")
    bare = only_config(base, tmp_path / "bare")
    for model_class in (True, False):  # told by the class, and by nothing but the model type
        model = matched(checkpoint, base_of(bare, checkpoint, model_class=model_class))
        assert contents(model.tensors) == truth


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "phimoe", "granitemoe"])
def test_published_experts_become_those_of_a_base_that_memory_was_dumped_to(
    family: str, tmp_path: Path
) -> None:
    state, base = saved(tiny_experts(family), tmp_path)
    published = load_file(base / "model.safetensors")
    save_file(state, base / "model.safetensors")
    model = match_state(published, base, tmp_path)
    assert contents(model.tensors) == contents(state)
    assert {"U201", "U207"} & set(codes(model.findings))


def test_a_family_without_a_row_is_read_from_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, base = saved(tiny_experts("phimoe"), tmp_path)
    monkeypatch.delitem(RECIPES, "phimoe")
    model = match_state(state, base, tmp_path)
    assert contents(model.tensors) == contents(load_file(base / "model.safetensors"))


def test_every_use_is_told(mixtral: tuple[State, Path], tmp_path: Path) -> None:
    model = match_state(*mixtral, tmp_path)
    experts = one(model.findings, "U207")
    assert experts.saw == "4 tensors, each with all experts of a layer, are 24 with one expert each"
    assert experts.expected == "exactly the names that the base has (safetensors headers)"
    assert one(model.findings, "U201").saw == "as transformers 5 translates them: 2 of 21 names"
    parts = [d for d in model.decisions if d.source == GATE_UP]
    assert [d.target for d in parts[:3]] == [W1.format(0), W1.format(0).replace("w1", "w3"), W1.format(1)]
    assert {d.reason for d in parts} == {"one of 8 parts of it"}
    assert len(parts) == 8
    assert model.sources[W1.format(3)] == (GATE_UP,)


def test_the_decisions_follow_the_checkpoint(mixtral: tuple[State, Path], tmp_path: Path) -> None:
    state, base = mixtral
    model = match_state(state, base, tmp_path)
    assert list(dict.fromkeys(d.source for d in model.decisions)) == list(state)


def test_what_is_put_together_names_all_it_is_made_of(mixtral: tuple[State, Path], tmp_path: Path) -> None:
    state, base = mixtral
    published = load_file(base / "model.safetensors")
    fused = shutil.copytree(base, tmp_path / "fused")
    save_file(state, fused / "model.safetensors")
    model = match_state(published, fused, tmp_path)
    made_of = model.sources[GATE_UP]
    assert set(made_of) == {
        n for n in published if "layers.0." in n and n.endswith(("w1.weight", "w3.weight"))
    }
    assert {d.reason for d in model.decisions if d.target == GATE_UP} == {"put together with 7 more"}
    assert one(model.findings, "U207").saw == (
        "24 tensors, each with one expert, are 4 with all experts of a layer"
    )


def test_published_experts_are_left_as_they_are(mixtral: tuple[State, Path], tmp_path: Path) -> None:
    published = load_file(mixtral[1] / "model.safetensors")
    model = match_state(published, mixtral[1], tmp_path)
    assert codes(model.findings) == []
    assert contents(model.tensors) == contents(published)


def test_names_inside_wrappers_are_found(mixtral: tuple[State, Path], tmp_path: Path) -> None:
    state, base = mixtral
    wrapped = {
        "_orig_mod."
        + name.replace("layers.0.", "layers.0._fsdp_wrapped_module.").replace(
            ".experts.", "._checkpoint_wrapped_module.experts."
        ): tensor
        for name, tensor in state.items()
    }
    model = match_state(wrapped, base, tmp_path)
    assert contents(model.tensors) == contents(load_file(base / "model.safetensors"))
    assert model.sources[W1.format(0)] == (
        "_orig_mod.model.layers.0._fsdp_wrapped_module.mlp._checkpoint_wrapped_module.experts.gate_up_proj",
    )
    assert "`_orig_mod` in 21 of 21 names" in " ".join(f.saw for f in model.findings)


def test_a_prefix_before_all_names_is_found_as_well(mixtral: tuple[State, Path], tmp_path: Path) -> None:
    state, base = mixtral
    model = match_state({f"policy.{name}": tensor for name, tensor in state.items()}, base, tmp_path)
    assert contents(model.tensors) == contents(load_file(base / "model.safetensors"))


def test_experts_are_cast_as_their_base_says(tmp_path: Path) -> None:
    state, base = saved(tiny_experts("qwen3_moe"), tmp_path)
    bf16 = {n: t.to(torch.bfloat16) for n, t in load_file(base / "model.safetensors").items()}
    save_file(bf16, base / "model.safetensors")
    model = match_state(state, base, tmp_path)
    assert contents(model.tensors) == contents(bf16)
    name = "model.layers.0.mlp.experts.0.up_proj.weight"
    assert next(d for d in model.decisions if d.target == name).reason == (
        "one of 8 parts of it, cast from float32 to bfloat16"
    )


def test_a_tie_beside_experts_is_found(tmp_path: Path) -> None:
    state, base = saved(tiny_experts("qwen3_moe", tie_word_embeddings=True), tmp_path)
    model = match_state(state, base, tmp_path)
    assert one(model.findings, "U301").subject == "lm_head.weight"
    assert contents(model.tensors) == contents(load_file(base / "model.safetensors"))


def cut_in_rows(tensor: DescribedTensor, parts: int) -> DescribedTensor:
    """Return the tensor in unequal pieces along its last but one dimension, as ranks hold it."""
    (piece,) = tensor.pieces
    assert isinstance(piece.source, FileSource)
    dim, strides = len(tensor.shape) - 2, row_major_strides(tensor.shape)
    edges = [tensor.shape[dim] * n // parts for n in range(parts + 1)]
    pieces = []
    for first, last in pairwise(edges):
        start, stop = [0] * len(tensor.shape), list(tensor.shape)
        start[dim], stop[dim] = first, last
        box = Box(tuple(start), tuple(stop))
        offset = piece.source.offset + first * strides[dim] * tensor.dtype.itemsize
        pieces.append(Piece(box, FileSource(piece.source.file, offset, box.shape, strides, tensor.dtype)))
    return DescribedTensor(tensor.shape, tensor.dtype, tuple(pieces))


def test_experts_that_lie_in_many_pieces_are_taken_apart(mixtral: tuple[State, Path], tmp_path: Path) -> None:
    state, base = mixtral
    checkpoint = checkpoint_of(state, tmp_path / "run")
    pieces = {n: cut_in_rows(t, 3) if len(t.shape) > 1 else t for n, t in checkpoint.tensors.items()}
    model = matched(replace(checkpoint, tensors=pieces), base_of(base, checkpoint))
    assert contents(model.tensors) == contents(load_file(base / "model.safetensors"))


def refused(state: State, base: Path, folder: Path) -> MatchError:
    with pytest.raises(MatchError) as caught:
        match_state(state, base, folder)
    return caught.value


def test_another_number_of_experts_is_refused(mixtral: tuple[State, Path], tmp_path: Path) -> None:
    state, base = mixtral
    more = {n: torch.cat([t, t]) if ".experts." in n else t for n, t in state.items()}
    error = refused(more, base, tmp_path)
    assert error.hint == (
        "The base has 4 experts in a layer, and the checkpoint has 8. Name the model that training started "
        "from with --base."
    )
    assert {m.kind for m in error.mismatches} == {"unexpected"}


def test_the_configuration_alone_says_how_many_experts_there_are(
    mixtral: tuple[State, Path], tmp_path: Path
) -> None:
    state, base = mixtral
    bare = only_config(base, tmp_path / "bare", num_local_experts=8)
    model = matched_to(state, bare, tmp_path)
    assert GATE_UP in model.tensors
    assert codes(model.findings) == ["U201", "U204", "U204"]


def test_an_expert_that_is_missing_is_not_made_up(mixtral: tuple[State, Path], tmp_path: Path) -> None:
    state, base = mixtral
    published = load_file(base / "model.safetensors")
    fused = shutil.copytree(base, tmp_path / "fused")
    save_file(state, fused / "model.safetensors")
    del published[W1.format(2)]
    error = refused(published, fused, tmp_path)
    assert ("missing", GATE_UP) in [(m.kind, m.name) for m in error.mismatches]


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t[:, :-1],  # an odd number of rows
        lambda t: t[0],  # no experts
        lambda t: t[:0],
        lambda t: t[:, :0],
        lambda t: t.flatten(),
    ],
)
def test_a_tensor_of_other_dimensions_is_not_taken_apart(
    mixtral: tuple[State, Path], tmp_path: Path, change: Any
) -> None:
    state, base = mixtral
    error = refused({**state, GATE_UP: change(state[GATE_UP])}, base, tmp_path)
    assert ("unexpected", GATE_UP) in [(m.kind, m.name) for m in error.mismatches]
    assert str(error.hint).startswith(f"`{GATE_UP}` is (")


def test_experts_of_two_dtypes_are_not_put_together(mixtral: tuple[State, Path], tmp_path: Path) -> None:
    state, base = mixtral
    published = load_file(base / "model.safetensors")
    fused = shutil.copytree(base, tmp_path / "fused")
    save_file(state, fused / "model.safetensors")
    published[W1.format(1)] = published[W1.format(1)].double()
    assert any(m.name == GATE_UP for m in refused(published, fused, tmp_path).mismatches)


def test_experts_that_are_there_twice_are_refused(mixtral: tuple[State, Path], tmp_path: Path) -> None:
    state, base = mixtral
    twice = {**state, W1.format(0): torch.zeros(40, 32)}
    error = refused(twice, base, tmp_path)
    assert any(m.name == GATE_UP for m in error.mismatches)


def test_a_model_type_that_is_not_known_is_not_guessed(mixtral: tuple[State, Path], tmp_path: Path) -> None:
    state, base = mixtral
    bare = only_config(base, tmp_path / "bare", model_type="of_their_own")
    model = matched_to(state, bare, tmp_path)
    assert contents(model.tensors) == contents(state)
    assert codes(model.findings) == ["U204", "U204"]
    told = [found.subject for found in model.findings if found.code == "U204"]
    assert told[-1] == f"{GATE_UP} and 3 more"


def test_nothing_is_done_without_a_base(mixtral: tuple[State, Path], tmp_path: Path) -> None:
    checkpoint = checkpoint_of(mixtral[0], tmp_path / "run")
    model = matched(checkpoint, None)
    assert contents(model.tensors) == contents(mixtral[0])
    assert codes(model.findings) == ["U204", "U204"]


@pytest.mark.parametrize("square", [False, True])
def test_dimensions_are_exchanged_where_the_base_has_them_so(tmp_path: Path, square: bool) -> None:
    hidden, inner = (16, 8) if square else (16, 12)
    memory = {
        "model.language_model.layers.0.mlp.experts.gate_up_proj": torch.randn(4, 2 * inner, hidden),
        "model.language_model.layers.0.mlp.experts.down_proj": torch.randn(4, hidden, inner),
    }
    published = {name: tensor.transpose(1, 2).contiguous() for name, tensor in memory.items()}
    base = tmp_path / "base"
    base.mkdir()
    save_file(published, base / "model.safetensors")
    (base / "config.json").write_text('{"model_type": "qwen3_vl_moe"}')
    bare = only_config(base, tmp_path / "bare")
    assert contents(matched_to(memory, bare, tmp_path / "bare").tensors) == contents(memory)
    model = match_state(memory, base, tmp_path / "memory")
    assert contents(model.tensors) == contents(published)
    assert one(model.findings, "U207").saw == "two dimensions of 2 tensors were exchanged"
    assert {d.reason for d in model.decisions} == {"two dimensions exchanged"}
    assert codes(match_state(published, base, tmp_path / "published").findings) == []


def test_experts_that_are_published_as_memory_has_them_need_no_proof(tmp_path: Path) -> None:
    state, base = saved(tiny_experts("gpt_oss"), tmp_path)
    model = matched_to(state, only_config(base, tmp_path / "bare"), tmp_path)
    assert contents(model.tensors) == contents(state)
    assert codes(model.findings) == ["U204"]


def test_a_base_in_float8_takes_experts_in_another_precision(tmp_path: Path) -> None:
    state, base = saved(tiny_experts("deepseek_v3", dtype=torch.bfloat16), tmp_path)
    truth = load_file(base / "model.safetensors")
    small = {n: t.to(torch.float8_e4m3fn) if t.dim() == 2 else t for n, t in truth.items()}
    scales = {f"{n}_scale_inv": torch.ones(1, 1) for n, t in small.items() if t.dtype.itemsize == 1}
    save_file({**small, **scales}, base / "model.safetensors")
    assert contents(match_state(state, base, tmp_path).tensors) == contents(truth)
