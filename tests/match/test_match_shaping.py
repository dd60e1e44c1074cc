"""Shapes that only the base tells: names that lead to them, ties, experts, and what cannot be known."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from tiny_models import base_of, tiny_model, write_folder
from unshard.base import Base, find_base
from unshard.checkpoint import Checkpoint, KnownShapes, Layout, Shaped
from unshard.dtypes import DTYPES
from unshard.errors import BaseModelError, IncompleteCheckpointError
from unshard.match import with_shapes, with_shapes_to_show
from unshard.tensors import DescribedTensor

Shape = tuple[int, ...]


class Names:
    """Tensors of which nothing is known but their names; they remember what they were told."""

    def __init__(self, names: Mapping[str, Shape], *, incomplete: bool = False) -> None:
        self.extents = dict(names)
        self.incomplete = incomplete
        self.known: KnownShapes | None = None
        self.shapes: dict[str, Shape] = {}

    def shaped(self, known: KnownShapes) -> Shaped:
        self.known = known
        if self.incomplete:
            raise IncompleteCheckpointError("run", "lacks a file")
        self.shapes = dict(known.named(self.extents))
        return Shaped(self.described(self.shapes))

    def inferred(self) -> Shaped:
        return Shaped(self.described(self.extents))

    def as_found(self) -> Mapping[str, DescribedTensor]:
        return self.described(self.extents)

    @staticmethod
    def described(shapes: Mapping[str, Shape]) -> dict[str, DescribedTensor]:
        return {name: DescribedTensor(shape, DTYPES["float32"], ()) for name, shape in shapes.items()}


def checkpoint_of(unshaped: Names | None, **tensors: DescribedTensor) -> Checkpoint:
    path = Path("run")
    return Checkpoint(path, path, Layout("test", "test", None, ()), dict(tensors), unshaped=unshaped)


def told(base: Base, names: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the shapes that a base tells of these names."""
    unshaped = Names(names)
    with_shapes(checkpoint_of(unshaped), base, accept_inferred=False)
    return unshaped.shapes


def with_headers(folder: Path) -> Base:
    base, _ = find_base(checkpoint_of(None), reference=str(folder), download=False)
    assert base is not None
    assert base.expected is not None
    return base


def shapes_in(model: torch.nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    "family", ["llama", "llama-tied", "qwen2", "gemma2", "gpt2", "mixtral", "vision-language"]
)
@pytest.mark.parametrize("before", ["", "model._orig_mod."])
def test_every_name_of_memory_gets_its_shape(family: str, before: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    base = with_headers(write_folder(model, tmp_path, tokenizer=False))
    shapes = {before + name: shape for name, shape in shapes_in(model).items()}
    flat = dict.fromkeys(shapes, (1,))
    assert told(base, flat) == shapes


def test_a_name_that_the_base_does_not_know_gets_no_shape(tmp_path: Path) -> None:
    model = tiny_model("llama")
    base = with_headers(write_folder(model, tmp_path, tokenizer=False))
    shapes = shapes_in(model)
    assert told(base, {**shapes, "score.weight": (3,)}) == shapes


def test_a_checkpoint_whose_shapes_are_known_is_left_alone() -> None:
    checkpoint = checkpoint_of(None)
    assert with_shapes(checkpoint, None, accept_inferred=False) is checkpoint
    assert with_shapes_to_show(checkpoint, None) is checkpoint


def test_tensors_that_have_shapes_stay_beside_those_that_get_them(tmp_path: Path) -> None:
    known = DescribedTensor((7,), DTYPES["int64"], ())
    base = with_headers(write_folder(tiny_model("llama"), tmp_path, tokenizer=False))
    checkpoint = checkpoint_of(Names({"lm_head.weight": (1,)}), counter=known)
    found = with_shapes(checkpoint, base, accept_inferred=False)
    assert {name: tensor.shape for name, tensor in found.tensors.items()} == {
        "lm_head.weight": (515, 48),
        "counter": (7,),
    }
    assert found.unshaped is None
    assert found.storages.keys() >= {"lm_head.weight"}


def test_a_base_with_nothing_but_a_configuration_tells_no_shapes(tmp_path: Path) -> None:
    base = base_of(write_folder(tiny_model("llama"), tmp_path, tokenizer=False))
    with pytest.raises(BaseModelError, match="saw only the configuration of") as caught:
        with_shapes(checkpoint_of(Names({"a": (3,)})), base, accept_inferred=False)
    assert "unshard[hf]" in str(caught.value.hint)
    found = with_shapes(checkpoint_of(Names({"a": (3,)})), base, accept_inferred=True)
    assert [finding.code for finding in found.findings] == ["U114"]


def test_inferred_shapes_are_not_taken_where_the_base_tells_them(tmp_path: Path) -> None:
    base = with_headers(write_folder(tiny_model("llama"), tmp_path, tokenizer=False))
    found = with_shapes(checkpoint_of(Names({"lm_head.weight": (3, 48)})), base, accept_inferred=True)
    assert found.tensors["lm_head.weight"].shape == (515, 48)
    assert not found.findings


def test_what_is_missing_is_an_error_whatever_is_accepted(tmp_path: Path) -> None:
    base = with_headers(write_folder(tiny_model("llama"), tmp_path, tokenizer=False))
    for accept in (True, False):
        with pytest.raises(IncompleteCheckpointError):
            with_shapes(checkpoint_of(Names({"a": (1,)}, incomplete=True)), base, accept_inferred=accept)


def test_the_class_registers_in_order_and_headers_do_not(tmp_path: Path) -> None:
    model = tiny_model("gemma2")
    folder = write_folder(model, tmp_path, tokenizer=False)
    headers = with_headers(folder)
    assert not headers.expected_in_order
    (folder / "model.safetensors").unlink()
    by_class = with_headers(folder)
    assert by_class.expected_in_order
    registered = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for base in (headers, by_class):
        unshaped = Names({})
        with_shapes(checkpoint_of(unshaped), base, accept_inferred=False)
        assert unshaped.known is not None
        assert list((unshaped.known.registered() or {}).items()) == list(registered.items())
        assert unshaped.known.parameters() == registered


@pytest.mark.parametrize("family", ["mixtral", "vision-language", "encoder-decoder", "encoder"])
def test_a_class_that_no_table_lists_is_asked_for_the_order(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    base = with_headers(write_folder(model, tmp_path, tokenizer=False))
    unshaped = Names({})
    with_shapes(checkpoint_of(unshaped), base, accept_inferred=False)
    assert unshaped.known is not None
    registered = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert list((unshaped.known.registered() or {}).items()) == list(registered.items())


def test_a_pair_that_the_base_holds_twice_is_a_parameter_once(tmp_path: Path) -> None:
    model = tiny_model("llama-tied")
    folder = write_folder(model, tmp_path, tokenizer=False)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    unshaped = Names({})
    with_shapes(checkpoint_of(unshaped), with_headers(folder), accept_inferred=False)
    assert unshaped.known is not None
    assert "lm_head.weight" not in unshaped.known.parameters()
    assert "lm_head.weight" not in (unshaped.known.registered() or {"lm_head.weight": ()})


def test_a_class_that_is_not_known_has_no_order(tmp_path: Path) -> None:
    folder = write_folder(tiny_model("mixtral"), tmp_path, tokenizer=False)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["NobodysForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    unshaped = Names({})
    with_shapes(checkpoint_of(unshaped), with_headers(folder), accept_inferred=False)
    assert unshaped.known is not None
    assert unshaped.known.registered() is None


def test_names_that_are_lacking_are_told(tmp_path: Path) -> None:
    model = tiny_model("llama")
    base = with_headers(write_folder(model, tmp_path, tokenizer=False))
    unshaped = Names({})
    with_shapes(checkpoint_of(unshaped), base, accept_inferred=False)
    assert unshaped.known is not None
    names = list(shapes_in(model))
    gone = random.Random(5).choice(names)
    assert unshaped.known.lacking([f"module.{name}" for name in names if name != gone]) == (gone,)


def test_inspection_shows_what_lies_there_where_nothing_fits() -> None:
    found = with_shapes_to_show(checkpoint_of(Names({"a": (3,), "b": (4,)})), None)
    assert {name: tensor.shape for name, tensor in found.tensors.items()} == {"a": (3,), "b": (4,)}
    assert [finding.code for finding in found.findings] == ["U114"]
