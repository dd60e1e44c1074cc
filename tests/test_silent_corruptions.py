"""Models that load, talk and are wrong: each is named, with its numbers and its remedy; healthy ones are not.

Every specimen is a real model, fine-tuned for a moment, whose files are then broken in one way.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from command_line import Unshard
from healthy_models import FAMILIES
from unshard.findings import RULES, Severity

State = dict[str, torch.Tensor]
Config = dict[str, Any]


@dataclass(frozen=True)
class Corruption:
    """One way in which a folder is silently wrong.

    Attributes:
        family: The model that is broken.
        spoil: Breaks its tensors and its configuration in place.
        codes: The findings of which one must name it.
        words: What the answer must say, in this order.
        deep: Whether tensors must be read to see it.
        with_base: Whether only a base shows it.
        is_problem: Whether it is more than a fact.
    """

    family: str
    spoil: Callable[[State, Config], None]
    codes: tuple[str, ...]
    words: tuple[str, ...]
    deep: bool = True
    with_base: bool = True
    is_problem: bool = True


def layer(number: int, module: str) -> str:
    return f"model.layers.{number}.{module}.weight"


def exchange(state: State, one: str, other: str) -> None:
    state[one], state[other] = state[other], state[one]


def prefixed(state: State, _: Config) -> None:
    for name in list(state):
        state[f"_orig_mod.{name}"] = state.pop(name)


def headless(state: State, config: Config) -> None:
    del state["lm_head.weight"]
    config["tie_word_embeddings"] = False


def falsely_tied(state: State, config: Config) -> None:
    config["tie_word_embeddings"] = True


def tied_twice_diverged(state: State, config: Config) -> None:
    """A tied model whose gathered copies were trained as two."""
    state["lm_head.weight"] = state["model.embed_tokens.weight"] + 0.01


def tied_and_copied_untied(state: State, config: Config) -> None:
    """Both copies are there and equal, and the flag says that they are two weights."""
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    config["tie_word_embeddings"] = False


def swapped_gate_and_up(state: State, _: Config) -> None:
    for number in range(2):
        exchange(state, layer(number, "mlp.gate_proj"), layer(number, "mlp.up_proj"))


def empty_norm(state: State, _: Config) -> None:
    state["model.norm.weight"] = torch.empty(0, dtype=torch.bfloat16)


def unpermuted(state: State, config: Config) -> None:
    """Queries and keys in the order of Meta's files, whose halves of a head alternate."""
    for number in range(2):
        for module, heads in (("q_proj", 3), ("k_proj", 1)):
            name = layer(number, f"self_attn.{module}")
            rows, columns = state[name].shape
            halves = state[name].view(heads, 2, rows // heads // 2, columns)
            state[name] = halves.transpose(1, 2).reshape(rows, columns).contiguous()


def shuffled_layers(state: State, _: Config) -> None:
    for name in [n for n in state if n.startswith("model.layers.0.")]:
        exchange(state, name, name.replace("layers.0", "layers.1"))


def dropped_experts(state: State, _: Config) -> None:
    for name in [n for n in state if ".experts.3." in n]:
        del state[name]


def copied_experts(state: State, _: Config) -> None:
    for name in [n for n in state if ".experts.3." in n]:
        state[name] = state[name.replace("experts.3", "experts.0")].clone()


def other_rope(_: State, config: Config) -> None:
    config["rope_parameters"]["rope_theta"] = 10000.0


def not_a_number(state: State, _: Config) -> None:
    state[layer(1, "mlp.down_proj")][3, 5] = torch.nan


CORRUPTIONS: dict[str, Corruption] = {
    "wrapper segments in every name": Corruption(
        "llama", prefixed, ("U220",), ("_orig_mod", "21"), deep=False, with_base=False
    ),
    "no head, and no tie": Corruption(
        "llama", headless, ("U304",), ("lm_head.weight",), deep=False, with_base=False
    ),
    "tied by the flag, and not by value": Corruption(
        "llama", falsely_tied, ("U303",), ("lm_head.weight", "tie_word_embeddings"), with_base=False
    ),
    "tied, gathered and diverged": Corruption(
        "llama-tied", tied_twice_diverged, ("U303",), ("lm_head.weight",), with_base=False
    ),
    "equal, and not tied by the flag": Corruption(
        "llama-tied",
        tied_and_copied_untied,
        ("U306",),
        ("lm_head.weight",),
        with_base=False,
        is_problem=False,
    ),
    "gate and up exchanged": Corruption("llama", swapped_gate_and_up, ("U815",), ("gate_proj", "up_proj")),
    "an empty placeholder": Corruption(
        "llama", empty_norm, ("U531",), ("model.norm.weight",), deep=False, with_base=False
    ),
    "queries and keys in another rotary order": Corruption("llama", unpermuted, ("U818",), ("q_proj",)),
    "layers exchanged": Corruption("llama", shuffled_layers, ("U816",), ("layer",)),
    "an expert left out": Corruption(
        "mixtral",
        dropped_experts,
        ("U238",),
        ("experts", "no expert 3", "3 of 4"),
        deep=False,
        with_base=False,
    ),
    "an expert copied over another": Corruption(
        "mixtral", copied_experts, ("U806", "U814", "U817"), ("experts",)
    ),
    "another rotary base": Corruption("llama", other_rope, ("U517",), ("rope_theta", "10000"), deep=False),
    "not a number": Corruption(
        "llama", not_a_number, ("U801",), ("model.layers.1.mlp.down_proj.weight", "1"), with_base=False
    ),
}


def broken_copy(folder: Path, target: Path, spoil: Callable[[State, Config], None]) -> Path:
    """Copy a model folder, and break the copy."""
    shutil.copytree(folder, target)
    state = load_file(target / "model.safetensors")
    config = json.loads((target / "config.json").read_text())
    spoil(state, config)
    save_file({n: t.contiguous() for n, t in state.items()}, target / "model.safetensors", {"format": "pt"})
    (target / "config.json").write_text(json.dumps(config, indent=2))
    return target


def problems(findings: Iterable[dict[str, str]]) -> list[str]:
    """Return what is a warning or worse, for a person to read."""
    return [
        f"{f['code']} {f['title']}: {f['subject']}: {f['saw']}" for f in findings if f["severity"] != "info"
    ]


Folders = Callable[[str], Path]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_silent_corruption_is_named(
    name: str, fine_tuned_folder: Folders, healthy_folder: Folders, tmp_path: Path, unshard: Unshard
) -> None:
    corruption = CORRUPTIONS[name]
    folder = broken_copy(fine_tuned_folder(corruption.family), tmp_path / "model", corruption.spoil)
    options = ["--deep"] if corruption.deep else []
    options += ["--base", str(healthy_folder(corruption.family))] if corruption.with_base else []
    said = unshard("check", folder, "--json", "--fail-on", "warning", *options)
    named = [f for f in said.json["findings"] if f["code"] in corruption.codes]
    assert said.code == (3 if corruption.is_problem else 0)
    assert named, problems(said.json["findings"])
    text = " ".join(str(named[0][key]) for key in ("subject", "saw", "expected", "remedy"))
    assert all(word in text for word in corruption.words), text
    assert named[0]["remedy"] or not corruption.is_problem


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_wrong_with_a_healthy_model(
    family: str, healthy_folder: Folders, unshard: Unshard
) -> None:
    for options in ([], ["--deep"]):
        said = unshard("check", healthy_folder(family), "--json", "--fail-on", "warning", *options)
        assert problems(said.json["findings"]) == []
        assert said.code == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_wrong_with_a_fine_tune_beside_its_base(
    family: str, fine_tuned_folder: Folders, healthy_folder: Folders, unshard: Unshard
) -> None:
    base = healthy_folder(family)
    for options in ([], ["--deep"]):
        said = unshard(
            "check", fine_tuned_folder(family), "--base", base, "--json", "--fail-on", "warning", *options
        )
        assert problems(said.json["findings"]) == []
        assert said.code == 0


def test_every_finding_has_a_page(unshard: Unshard) -> None:
    for code, rule in RULES.items():
        said = unshard("explain", code)
        assert said.code == 0
        assert rule.title in said.out
        assert "## How it comes about" in said.out
        assert "## What to do" in said.out


def test_a_model_that_was_never_trained_is_told_by_its_base(
    healthy_folder: Folders, tmp_path: Path, unshard: Unshard
) -> None:
    same = broken_copy(healthy_folder("llama"), tmp_path / "same", lambda state, config: None)
    said = unshard("check", same, "--base", healthy_folder("llama"), "--deep", "--json")
    (found,) = [f for f in said.json["findings"] if f["code"] == "U811"]
    assert found["severity"] == Severity.WARNING
    assert "0 of 21" in found["saw"]


def test_a_flipped_bit_is_found_by_the_checksums_of_the_file(
    healthy_folder: Folders, tmp_path: Path, unshard: Unshard
) -> None:
    state = load_file(healthy_folder("llama") / "model.safetensors")
    path = tmp_path / "run" / "model.pt"
    path.parent.mkdir()
    torch.save(state, path)
    content = bytearray(path.read_bytes())
    at = content.index(state["model.norm.weight"].view(torch.uint8).numpy().tobytes())
    content[at] ^= 1
    path.write_bytes(content)
    assert torch.load(path)["model.norm.weight"].shape == (48,)  # as if nothing were wrong
    said = unshard("check", path, "--base", healthy_folder("llama"), "--deep", "--json")
    (found,) = [f for f in said.json["findings"] if f["code"] == "U119"]
    assert said.code == 3
    assert "disagree with their checksums" in found["saw"]
    assert "Copy the file again" in found["remedy"]


def test_what_rounding_takes_of_a_small_change_is_counted(
    healthy_folder: Folders, tmp_path: Path, unshard: Unshard
) -> None:
    base = load_file(healthy_folder("llama") / "model.safetensors")
    torch.manual_seed(1)
    state = {name: tensor.float() + 1e-6 * torch.randn(tensor.shape) for name, tensor in base.items()}
    torch.save(state, tmp_path / "model.pt")
    lost = sum(
        int((state[name].bfloat16() == base[name]).sum() - (state[name] == base[name]).sum()) for name in base
    )
    changed = sum(int((state[name] != base[name]).sum()) for name in base)
    said = unshard("check", tmp_path / "model.pt", "--base", healthy_folder("llama"), "--deep", "--json")
    (found,) = [f for f in said.json["findings"] if f["code"] == "U405"]
    assert f"{100 * lost / changed:.1f}%" in found["saw"]
    assert "--dtype keep" in found["remedy"]


def test_an_adapter_merged_at_another_scale_is_told_with_both(
    healthy_folder: Folders, tmp_path: Path, unshard: Unshard
) -> None:
    base = healthy_folder("llama")
    merged = tmp_path / "merged"
    torch.manual_seed(2)
    rows, columns, rank = 48, 48, 4
    name = layer(0, "self_attn.q_proj")
    down, up = torch.randn(rank, columns) * 0.05, torch.randn(rows, rank) * 0.05

    def merge_without_scale(state: State, _: Config) -> None:
        state[name] = (state[name].float() + up @ down).bfloat16()  # alpha / r is 4, and was forgotten

    broken_copy(base, merged, merge_without_scale)
    prefix = f"base_model.model.{name.removesuffix('.weight')}"
    adapter = {f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up}
    save_file(adapter, merged / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "target_modules": ["q_proj"]}
    (merged / "adapter_config.json").write_text(json.dumps(settings))
    said = unshard("check", merged, "--base", base, "--deep", "--json")
    (found,) = [f for f in said.json["findings"] if f["code"] == "U255"]
    assert said.code == 3
    text = f"{found['saw']} {found['expected']}"
    assert "merged with scale 1," in text
    assert "4: alpha 16 / rank 4" in text
