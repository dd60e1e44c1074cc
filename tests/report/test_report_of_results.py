"""Reports of what the commands really found: written beside the answer, whatever the answer is."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch

from browser import Visiting
from command_line import Unshard
from tiny_models import tiny_model, write_folder


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and a run whose training moved its MLPs far, its attention a little, and its norms not."""
    root = tmp_path_factory.mktemp("scene")
    model = tiny_model("llama-tied", torch.bfloat16)
    write_folder(model, root / "base")
    state = {name: tensor.float() for name, tensor in model.state_dict().items()}
    for name, tensor in state.items():
        if "norm" not in name:
            tensor += torch.full_like(tensor, 0.1 if "mlp" in name else 0.02)
    (root / "run").mkdir()
    wrapped = {f"_fsdp_wrapped_module.{name}": tensor for name, tensor in state.items()}
    torch.save({"model": wrapped}, root / "run" / "epoch_1.pt")
    return root


@pytest.fixture
def converted(scene: Path, tmp_path: Path, unshard: Unshard) -> Path:
    """The run as a model, with its report beside it."""
    words = ("--base", scene / "base", "--report", tmp_path / "convert.html")
    said = unshard("convert", scene / "run" / "epoch_1.pt", tmp_path / "out", *words)
    assert said.code == 0, said.err
    assert f"report: {tmp_path / 'convert.html'}" in said.err
    return tmp_path


def text_of(page: Path) -> str:
    """Return what a page says, without its tags, style, scripts and data."""
    text = page.read_text().replace("<wbr>", "")
    text = re.sub(r"<(style|script)\b.*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL)
    return re.sub(r"\s+", " ", text)


def test_a_conversion_tells_where_every_tensor_came_from_and_how_far_it_went(converted: Path) -> None:
    told = text_of(converted / "convert.html")
    assert "Verified" in told
    assert "_fsdp_wrapped_module.model.layers.0.mlp.up_proj.weight" in told
    assert "float32 → bfloat16" in told
    assert re.search(
        r"mlp\.up_proj [\d.]+ % of the norm, cosine 0\.\d+, [\d.]+ % of the elements differ", told
    )
    assert re.search(r"input_layernorm unchanged unchanged", told)
    manifest = json.loads((converted / "out" / "unshard.manifest.json").read_text())
    assert all(tensor["sha256"] in told for tensor in manifest["tensors"].values())


@pytest.mark.parametrize("columns", [360, 1280])
def test_a_real_report_can_be_read_at_every_width_by_everybody(
    converted: Path, visit: Visiting, columns: int
) -> None:
    seen = visit(converted / "convert.html", viewport={"width": columns, "height": 800})
    assert seen.complaints == []
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= columns
    assert seen.violations() == []


def test_no_folder_of_this_machine_is_told(converted: Path, scene: Path) -> None:
    page = (converted / "convert.html").read_text()
    assert str(scene) not in page
    assert str(converted) not in page


def test_a_verification_is_reported_when_it_finds_a_difference(
    converted: Path, scene: Path, unshard: Unshard
) -> None:
    weights = converted / "out" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    report = converted / "verify.html"
    said = unshard(
        "verify", converted / "out", "--no-forward", "--base", scene / "base", "--report", report, "--json"
    )
    assert said.code == 3
    assert said.json["sound"] is False
    told = text_of(report)
    assert "Differs" in told
    assert "1 error to look at" in told
    assert "bytes differs" in told
    assert "Bytes differ from the source" in told


def test_a_forward_pass_shows_the_losses_side_by_side(converted: Path, scene: Path, unshard: Unshard) -> None:
    report = converted / "verify.html"
    unshard("verify", converted / "out", "--base", scene / "base", "--forward", "--report", report)
    assert re.search(r"This model [\d.]+ Its base [\d.]+ Guessing blindly 6\.24", text_of(report))


def test_a_check_is_reported_with_numbers_only_where_it_read_them(
    scene: Path, tmp_path: Path, unshard: Unshard
) -> None:
    words = ("check", scene / "run" / "epoch_1.pt", "--base", scene / "base", "--report")
    unshard(*words, tmp_path / "headers.html")
    unshard(*words, tmp_path / "deep.html", "--deep")
    headers, deep = (text_of(tmp_path / name) for name in ("headers.html", "deep.html"))
    assert "looked at headers and small files" in headers
    assert "of the norm" not in headers
    assert "looked at every tensor" in deep
    assert "of the norm" in deep


def test_a_comparison_lists_what_only_one_side_has(
    converted: Path, scene: Path, tmp_path: Path, unshard: Unshard
) -> None:
    smaller = tmp_path / "smaller.pt"
    state = torch.load(scene / "run" / "epoch_1.pt")["model"]
    del state["_fsdp_wrapped_module.model.layers.1.mlp.up_proj.weight"]
    torch.save(state, smaller)
    said = unshard("diff", converted / "out", smaller, "--report", tmp_path / "diff.html")
    assert said.code == 0, said.err
    told = text_of(tmp_path / "diff.html")
    assert "Different" in told
    assert "Only in A (1) model.layers.1.mlp.up_proj.weight" in told
    assert "bfloat16 → float32" in told
    assert str(tmp_path) not in (tmp_path / "diff.html").read_text()


def test_a_model_beside_itself_has_no_difference(converted: Path, unshard: Unshard) -> None:
    report = converted / "diff.html"
    unshard("diff", converted / "out", converted / "out", "--report", report)
    assert "No difference 0 of 20 tensors differ." in text_of(report)


def test_a_finding_stands_beside_its_explanation(converted: Path) -> None:
    page = (converted / "convert.html").read_text()
    assert re.search(r'<article class="finding neutral" id="U301".*?What U301 means.*?<h4>', page, re.DOTALL)


def test_a_report_of_something_made_elsewhere_needs_no_manifest(
    scene: Path, tmp_path: Path, unshard: Unshard
) -> None:
    report = tmp_path / "report.html"
    said = unshard("verify", scene / "base", "--base", scene / "base", "--no-forward", "--report", report)
    assert said.code == 0, said.err
    assert "Provenance" not in text_of(report)


@pytest.mark.parametrize(
    ("place", "problem"),
    [("", "is a folder, and a report is one file"), ("no/such.html", "there is no such folder")],
)
def test_a_place_where_no_report_can_be_is_refused_before_anything_is_written(
    scene: Path, tmp_path: Path, unshard: Unshard, place: str, problem: str
) -> None:
    run, out = scene / "run" / "epoch_1.pt", tmp_path / "out"
    said = unshard("convert", run, out, "--base", scene / "base", "--report", tmp_path / place)
    assert said.code == 1
    assert problem in said.err
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_or_a_device_is_not_replaced_by_a_report(
    scene: Path, tmp_path: Path, unshard: Unshard
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    said = unshard("check", scene / "base", "--report", pipe)
    assert said.code == 1
    assert "is not a file" in said.err
    assert pipe.is_fifo()


def test_a_plan_has_no_report(scene: Path, tmp_path: Path, unshard: Unshard) -> None:
    said = unshard(
        "convert", scene / "run", tmp_path / "out", "--dry-run", "--report", tmp_path / "report.html"
    )
    assert said.code == 2
    assert not (tmp_path / "report.html").exists()


def test_tensors_with_hostile_names_are_compared_on_a_page_that_runs_none_of_them(
    unshard: Unshard, tmp_path: Path
) -> None:
    names = ["<script>alert(1)</script>", "</script>", "' onload=", "x" * 300, "__proto__", "${x}"]
    for number, side in enumerate("ab"):
        state = {name: torch.full((2, 2), float(number + k)) for k, name in enumerate(names)}
        torch.save(state, tmp_path / f"{side}.pt")
    page = tmp_path / "page.html"
    assert unshard("diff", tmp_path / "a.pt", tmp_path / "b.pt", "--report", page).code == 0
    assert page.exists()
    assert "<script>alert" not in page.read_text()
