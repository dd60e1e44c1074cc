"""`diff`: any two things that are read, held to what torch computes from whole tensors."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from command_line import Unshard
from peft_models import matched_in, values_of, write_scene
from tiny_models import tiny_model, write_folder
from trainers.catalogue import TrainedCheckpoint
from unshard import diff
from unshard.errors import OptionError
from unshard.recipes.modules import ModulePlace, module_place

FLOAT32 = 1024 * 2**-24  # numbers of 16 bits are summed in float32, in rows of 1024

Change = Callable[[dict[str, torch.Tensor]], None]


def changed_copy(folder: Path, target: Path, change: Change) -> Path:
    """Return a copy of a model folder whose tensors were changed."""
    copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tiny_model("llama"), tmp_path_factory.mktemp("llama") / "model", tokenizer=False)


def relative(new: torch.Tensor, old: torch.Tensor) -> float:
    return float((new.double() - old.double()).norm() / old.double().norm())


def test_a_model_does_not_differ_from_itself(llama: Path) -> None:
    result = diff(llama, llama)
    assert result.is_equal
    assert (result.total.changed_tensors, result.total.relative) == (0, 0.0)
    assert result.total.cosine == pytest.approx(1.0)
    assert result.total.tensors == len(load_file(llama / "model.safetensors"))


def test_what_came_went_and_changed_is_told(llama: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][0, 0] += 1.0
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:-1].clone()
        tensors["extra"] = tensors.pop("model.norm.weight")

    old, result = (
        load_file(llama / "model.safetensors"),
        diff(llama, changed_copy(llama, tmp_path / "b", change)),
    )
    assert (result.added, result.removed) == (("extra",), ("model.norm.weight",))
    assert list(result.reshaped) == ["model.embed_tokens.weight"]
    assert [name for name, each in result.tensors.items() if each.delta.changed] == [
        "model.layers.1.mlp.up_proj.weight"
    ]
    up = old["model.layers.1.mlp.up_proj.weight"]
    layer = next(group for group in result.layers if group.name == "model.layers.1")
    assert (layer.changed_tensors, layer.changed) == (1, 1)
    whole = math.sqrt(sum(t.double().square().sum().item() for n, t in old.items() if ".layers.1." in n))
    assert layer.relative == pytest.approx(1 / whole, rel=1e-6)
    assert result.kinds[0].name == "mlp.up_proj.weight"
    assert (result.kinds[0].tensors, result.kinds[0].elements) == (2, 2 * up.numel())
    assert not result.is_equal


def test_distances_are_in_units_of_the_first_one(llama: Path, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    doubled = changed_copy(llama, tmp_path / "b", lambda tensors: tensors[name].mul_(2))
    assert diff(llama, doubled, tensors=name).total.relative == pytest.approx(1.0)
    assert diff(doubled, llama, tensors=name).total.relative == pytest.approx(0.5)


def test_values_count_and_not_dtypes(llama: Path, tmp_path: Path) -> None:
    def halve(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})

    def widen(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: tensor.float() for name, tensor in tensors.items()})

    half = changed_copy(llama, tmp_path / "half", halve)
    result = diff(half, changed_copy(half, tmp_path / "wide", widen))
    assert result.is_equal
    assert {(each.old_dtype, each.new_dtype) for each in result.tensors.values()} == {("bfloat16", "float32")}
    assert not diff(llama, half).is_equal


@pytest.mark.parametrize("name", ["recipes-two-epochs", "recipes-tied-bf16"])
def test_a_run_is_compared_with_its_base(
    name: str, trained_checkpoints: Mapping[str, TrainedCheckpoint]
) -> None:
    run = trained_checkpoints[name]
    assert run.base is not None
    published = load_file(run.published)
    base = load_file(run.base / "model.safetensors")
    for old, new in ((run.base, run.path), (run.path, run.base)):
        result = diff(old, new)
        assert (result.added, result.removed, dict(result.reshaped)) == ((), (), {})
        assert base.keys() <= result.tensors.keys()
        for each in base:
            pair = (published[each], base[each]) if new == run.path else (base[each], published[each])
            assert result.tensors[each].delta.changed == int((pair[0].double() != pair[1].double()).sum())
            assert result.tensors[each].delta.relative == pytest.approx(relative(*pair), rel=FLOAT32)


def test_experts_are_compared_by_the_names_of_the_model(
    trained_checkpoints: Mapping[str, TrainedCheckpoint],
) -> None:
    run = trained_checkpoints["verl-qwen3-moe"]
    assert run.base is not None
    result = diff(run.base, run.path)
    assert (result.added, result.removed, dict(result.reshaped)) == ((), (), {})
    assert any("experts.*." in group.name for group in result.kinds)


@pytest.mark.parametrize("kept", ["adapter", "full"])
def test_an_adapter_is_compared_with_a_full_fine_tune(kept: str, tmp_path: Path) -> None:
    scene = write_scene(tmp_path, "llama", r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"])
    base, full = load_file(scene.base / "model.safetensors"), tmp_path / "tuned"
    tuned = {name: tensor + 0.01 for name, tensor in base.items()}
    copytree(scene.base, full)
    save_file(tuned, full / "model.safetensors", metadata={"format": "pt"})
    merged = {n: values_of(t) for n, t in matched_in(getattr(scene, kept), scene.base).tensors.items()}
    result = diff(getattr(scene, kept), full, base=scene.base)
    assert (result.added, result.removed, result.notes) == ((), (), ())
    for name, change in result.tensors.items():
        assert change.delta.relative == pytest.approx(relative(tuned[name], merged[name]), rel=1e-9)
    assert diff(scene.base, getattr(scene, kept), base=scene.base).total.changed_tensors == 4


def test_two_steps_of_a_run_are_compared(recipes_run: TrainedCheckpoint) -> None:
    first, last = (load_file(truth) for truth in recipes_run.truths)
    result = diff(recipes_run.path, recipes_run.path, old_step=0, new_step=1)
    assert result.total.changed_tensors == sum(not torch.equal(first[name], last[name]) for name in first) > 0


def test_a_pattern_chooses_tensors_and_one_that_fits_none_is_told(llama: Path) -> None:
    result = diff(llama, llama, tensors="*.self_attn.*")
    assert {group.name.split(".")[0] for group in result.kinds} == {"self_attn"}
    with pytest.raises(OptionError, match="is like the name of no tensor"):
        diff(llama, llama, tensors="*.atention.*")


def test_the_command_tells_the_verdict_first_and_fits_any_width(
    llama: Path, tmp_path: Path, unshard: Unshard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"] += 0.01
        tensors["a<b>"] = torch.ones(2)

    other = changed_copy(llama, tmp_path / "b", change)
    for columns in (40, 88, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        said = unshard("diff", llama, other)
        assert said.code == 0
        assert said.out.startswith("1 of ")
        paths = (str(llama), str(other))
        lines = [line for line in said.out.splitlines() if not any(path in line for path in paths)]
        assert max(map(len, lines)) <= max(columns, 56)
    assert unshard("diff", llama, other, "--quiet").out.count("\n") == 1


def test_exit_codes_are_as_asked(llama: Path, tmp_path: Path, unshard: Unshard) -> None:
    other = changed_copy(llama, tmp_path / "b", lambda tensors: tensors["lm_head.weight"].add_(1))
    assert unshard("diff", llama, other).code == 0
    assert unshard("diff", llama, other, "--exit-code").code == 3
    assert unshard("diff", llama, llama, "--exit-code").code == 0
    assert unshard("diff", llama, tmp_path / "missing", "--exit-code").code == 1


def test_json_has_every_tensor(llama: Path, unshard: Unshard) -> None:
    told: Any = json.loads(unshard("diff", llama, llama, "--json").out)
    assert told["total"]["changed_tensors"] == 0
    assert told["tensors"].keys() == load_file(llama / "model.safetensors").keys()


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.7.self_attn.q_proj.weight", ("model.layers", 7, "self_attn.q_proj.weight")),
        ("model.layers.3.mlp.experts.12.up_proj.weight", ("model.layers", 3, "mlp.experts.*.up_proj.weight")),
        ("transformer.h.0.attn.c_attn.bias", ("transformer.h", 0, "attn.c_attn.bias")),
        ("visual.blocks.31.norm1.weight", ("visual.blocks", 31, "norm1.weight")),
        ("decoder.layers.2.fc1.weight", ("decoder.layers", 2, "fc1.weight")),
        (
            "encoder.block.1.layer.0.SelfAttention.q.weight",
            ("encoder.block", 1, "layer.0.SelfAttention.q.weight"),
        ),
        ("layers.4.attention.wq.weight", ("layers", 4, "attention.wq.weight")),
        ("model.embed_tokens.weight", ("", None, "model.embed_tokens.weight")),
        ("model.layers.99999999999.x", ("", None, "model.layers.99999999999.x")),
    ],
)
def test_names_tell_the_place_in_the_model(name: str, place: tuple[str, int | None, str]) -> None:
    assert module_place(name) == ModulePlace(*place)
