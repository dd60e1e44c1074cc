"""Shapes and ties of a model folder: each contradiction is told with both numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from broken_folders import State, codes, copied, found, only, reconfigured, rewritten

import specimens
import tiny_experts
import tiny_models
from unshard.base.configuration import text_levels
from unshard.recipes.implied_shapes import _FAMILIES, implied_shape, sizes_said

Folder = Callable[[str], Path]
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def folder(tiny_folder: Folder, tmp_path: Path) -> Path:
    return copied(tiny_folder("llama"), tmp_path / "model")


@pytest.fixture
def tied(tiny_folder: Folder, tmp_path: Path) -> Path:
    return copied(tiny_folder("llama-tied"), tmp_path / "tied")


def each(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[State], State]:
    return lambda state: {n: change(t) if part in n else t for n, t in state.items()}


def test_empty_tensors_are_told_with_what_is_missing(folder: Path) -> None:
    told = only(found(rewritten(folder, each("mlp.", lambda t: t.flatten()[:0]))))
    assert told.code == "U531"
    assert told.saw == "6 tensors empty, as (0,): a rank's own part of a tensor, 0 of 3,840 elements"


def test_flat_tensors_are_told_with_what_is_missing(folder: Path) -> None:
    half = 515 * 48 // 2
    told = only(found(rewritten(folder, each("embed_tokens", lambda t: t.flatten()[:half]))))
    assert (told.code, told.subject) == ("U531", f"`{EMBED}`")
    assert (
        told.saw
        == f"1 tensor flat, as ({half},): a rank's own part of a tensor, {half:,} of {2 * half:,} elements"
    )


def test_flat_tensors_are_told_without_a_configuration(folder: Path) -> None:
    rewritten(folder, each("q_proj", lambda t: t.flatten()[:100]))
    (folder / "config.json").unlink()
    told = next(item for item in found(folder) if item.code == "U531")
    assert told.saw == "2 tensors flat, as (100,): a rank's own part of a tensor, 100 elements of it"


@pytest.mark.parametrize("ranks", [2, 4])
def test_parts_of_a_tensor_parallel_run_are_told(ranks: int, folder: Path) -> None:
    def cut(state: State) -> State:
        rows, columns = ("q_proj", "gate_proj", "up_proj"), ("o_proj", "down_proj")
        cut = {n: t[: t.shape[0] // ranks] if any(r in n for r in rows) else t for n, t in state.items()}
        return {n: t[:, : t.shape[1] // ranks] if any(c in n for c in columns) else t for n, t in cut.items()}

    told = only(found(rewritten(folder, cut)))
    assert told.code == "U532"
    assert told.saw.startswith(f"10 tensors have 1/{ranks} of their rows or columns")
    assert (
        f"({80 // ranks}, 48)" in told.saw
        or f"({48 // ranks}, 48)" in told.saw
        or f"(48, {80 // ranks})" in told.saw
    )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_transposed_matrices_are_told(family: str, tiny_folder: Folder, tmp_path: Path) -> None:
    folder = copied(tiny_folder(family), tmp_path / family)
    part = "c_attn.weight" if family == "gpt2" else "gate_proj"
    told = only(found(rewritten(folder, each(part, lambda t: t.T.contiguous()))))
    assert (told.code, told.saw.partition(":")[0]) == ("U533", "2 tensors lie transposed")
    assert found(rewritten(folder, each(part, lambda t: t.T.contiguous()))) == []


@pytest.mark.parametrize(
    ("key", "value", "parts", "saw", "expected"),
    [
        ("intermediate_size", 96, 3, "(80, 48)", "(96, 48), which is intermediate_size x hidden_size"),
        (
            "num_attention_heads",
            4,
            2,
            "(48, 48)",
            "(64, 48), which is num_attention_heads x head_dim x hidden_size",
        ),
        (
            "num_key_value_heads",
            3,
            2,
            "(16, 48)",
            "(48, 48), which is num_key_value_heads x head_dim x hidden_size",
        ),
    ],
)
def test_sizes_of_another_model_are_told_with_both_numbers(
    key: str, value: int, parts: int, saw: str, expected: str, folder: Path
) -> None:
    told = found(reconfigured(folder, **{key: value}))
    assert codes(told) == ["U530"] * parts
    assert f"{saw}, in 2 tensors" in [item.saw for item in told]
    assert any((item.expected or "").startswith(expected) for item in told)


def test_the_known_model_whose_sizes_these_are_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "unshard.checks.shapes.nearest_model", lambda sizes: f"a model of {sizes.layers} layers"
    )
    told = found(reconfigured(folder, intermediate_size=96))
    assert told[0].remedy == "These are the sizes of a model of 2 layers: take its config.json."


def test_shapes_are_told_by_the_class_and_by_the_base(folder: Path, tiny_folder: Folder) -> None:
    rewritten(folder, each("input_layernorm", lambda t: t[:40]))
    assert "U530" in codes(found(folder))
    assert next(item for item in found(folder, deep=True) if item.code == "U535").saw.startswith("2 tensors")
    told = next(item for item in found(folder, base=tiny_folder("llama")) if item.code == "U536")
    assert (told.saw.rpartition(" as ")[2], (told.expected or "")[:5]) == ("(40,)", "(48,)")


def test_a_vocabulary_of_other_rows_is_no_other_size(folder: Path) -> None:
    told = only(found(reconfigured(folder, vocab_size=600)))
    assert (told.code, told.saw) == ("U511", f"600, and `{HEAD}` has 515 rows")
    assert told.remedy == "Set vocab_size to 515 in config.json: unshard mend FOLDER --in-place"
    assert found(reconfigured(folder, vocab_size=515)) == []


def _on_meta(make: Callable[[], Any]) -> Any:
    with torch.device("meta"):
        return make()


MODELS = {
    **{f"specimens {name}": make for name, make in specimens.MAKERS.items()},
    **{f"tiny {name}": make for name, make in tiny_models.FAMILIES.items()},
    **{
        f"experts {name}": (
            lambda name=name, needed=needed, cls=cls: getattr(transformers, f"{cls}ForCausalLM")(
                getattr(transformers, f"{cls}Config")(**{**tiny_experts._SIZES, **needed})
            )
        )
        for name, (cls, needed) in tiny_experts.FAMILIES.items()
    },
    **{
        cls: (lambda cls=cls: specimens._causal(cls, head_dim=8))
        for cls in ("Granite", "SmolLM3", "Cohere", "Olmo", "Olmo2", "Gemma", "Ministral", "Qwen2Moe")
    },
}


def test_every_implied_shape_is_the_one_that_transformers_has() -> None:
    seen: set[str] = set()
    for name, make in MODELS.items():
        model = _on_meta(make)
        config = model.config.to_dict()
        _, level = text_levels(config)[-1]
        family = str(level["model_type"])
        sizes = sizes_said(family, level)
        for tensor, shape in ((n, tuple(p.shape)) for n, p in model.state_dict().items()):
            if "vis" not in tensor and (implied := implied_shape(family, sizes, tensor)) is not None:
                assert implied.shape == shape, (name, tensor)
                seen.add(family)
    assert _FAMILIES.keys() - seen <= {"qwen2_vl", "qwen2_5_vl"}


def test_a_tied_head_that_differs_is_told(folder: Path) -> None:
    told = only(found(reconfigured(folder, tie_word_embeddings=True)))
    assert (told.code, told.subject) == ("U303", f"`{HEAD}`")
    assert told.saw.startswith(
        f"tie_word_embeddings is true, and it is not `{EMBED}`: they differ from element 0"
    )
    assert told.remedy == "Set tie_word_embeddings to false in config.json: unshard mend FOLDER --in-place"
    assert found(reconfigured(folder, tie_word_embeddings=False)) == []


def test_an_untied_model_without_a_head_is_told(tied: Path) -> None:
    told = only(found(reconfigured(tied, tie_word_embeddings=False)))
    assert (told.code, told.subject) == ("U304", f"`{HEAD}`")
    assert told.saw == "missing, and tie_word_embeddings is false; engines make it up at random"
    assert found(reconfigured(tied, tie_word_embeddings=True)) == []


def test_a_flag_that_is_not_there_means_the_default_of_the_class(tied: Path) -> None:
    told = only(found(reconfigured(tied, tie_word_embeddings=None)))
    assert told.saw.startswith(
        "missing, and tie_word_embeddings is not there, which means false for this class"
    )


def test_a_head_that_is_a_copy_is_a_fact(folder: Path) -> None:
    rewritten(folder, lambda state: state | {HEAD: state[EMBED].clone()})
    told = only(found(folder))
    assert (told.code, told.saw.rpartition("; ")[2]) == ("U306", "tie_word_embeddings is false")


@pytest.mark.parametrize(("top", "inner", "wrong"), [(False, True, "text_config."), (True, False, "")])
def test_levels_that_disagree_are_told_with_the_one_to_change(
    top: bool, inner: bool, wrong: str, tiny_folder: Folder, tmp_path: Path
) -> None:
    folder = copied(tiny_folder("vision-language"), tmp_path / "model")
    (folder / "preprocessor_config.json").write_text("{}")
    assert found(folder) == []
    text = {**_config(folder)["text_config"], "tie_word_embeddings": inner}
    told = next(
        item
        for item in found(reconfigured(folder, tie_word_embeddings=top, text_config=text))
        if item.code == "U305"
    )
    assert told.saw.endswith("lm_head.weight` is there")
    assert told.remedy == f"Set `{wrong}tie_word_embeddings` to false: unshard mend FOLDER --in-place"


def _config(folder: Path) -> dict[str, Any]:
    import json

    return dict(json.loads((folder / "config.json").read_text()))
