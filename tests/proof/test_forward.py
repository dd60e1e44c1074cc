"""The forward proof: a trained model passes, and every way to break one is told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny_models import base_of, tiny_model, write_folder
from trainers.tiny_llama import tiny_tokenizer
from unshard.proof.forward import TEXT, text_loss, verify_forward


def trained_model() -> Any:
    """Return a tiny Llama that has learnt the text by heart."""
    model = tiny_model("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.2) if parameter.ndim > 1 else parameter.fill_(1.0)
    tokens = torch.tensor([tiny_tokenizer()(TEXT)["input_ids"]])[:, :256]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(trained_model(), tmp_path_factory.mktemp("trained"))


def changed(source: Path, folder: Path, change: Any) -> Path:
    """Copy a model folder and let `change` alter its tensors."""
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_trained_model_looks_trained(trained: Path) -> None:
    proof = verify_forward(trained, base=None)
    assert (proof.verdict, proof.findings) == ("looks trained", ())
    assert (proof.architecture, proof.dtype, proof.tokens) == ("LlamaForCausalLM", "float32", 256)
    assert proof.loss is not None
    assert proof.loss < 4 < (proof.uniform_loss or 0) == math.log(515)
    assert proof.base_loss is None
    assert proof.evidence == (
        "LlamaForCausalLM in float32: every weight loaded, every logit finite",
        f"loss {proof.loss:.2f} nats over 256 tokens (blind guessing 6.24)",
    )


def test_the_loss_is_transformers_own(trained: Path) -> None:
    model = trained_model().eval()
    tokens = torch.tensor([tiny_tokenizer()(TEXT)["input_ids"]])[:, :256]
    with torch.inference_mode():
        output = model(input_ids=tokens, labels=tokens)
    assert text_loss(output.logits[0], tokens[0]) == pytest.approx(float(output.loss), rel=1e-5)


def test_the_base_is_measured_beside_it(trained: Path, tmp_path: Path) -> None:
    copy = changed(trained, tmp_path / "copy", lambda tensors: tensors["model.norm.weight"].mul_(1.05))
    proof = verify_forward(copy, base=base_of(trained))
    assert (proof.verdict, proof.findings) == ("looks trained", ())
    assert proof.base_loss is not None
    assert proof.loss != proof.base_loss
    assert f"the base {proof.base_loss:.2f}" in proof.evidence[1]


def test_random_weights_are_found_out(trained: Path, tmp_path: Path) -> None:
    proof = verify_forward(write_folder(tiny_model("llama"), tmp_path), base=base_of(trained))
    assert proof.verdict == "untrained"
    (found,) = proof.findings
    assert found.code == "U705"
    assert found.expected == "far below 6.24, the loss of guessing blindly"


def test_without_a_base_random_weights_may_be_those_of_another_language(tmp_path: Path) -> None:
    proof = verify_forward(write_folder(tiny_model("llama"), tmp_path), base=None)
    assert (proof.verdict, [found.code for found in proof.findings]) == ("untrained", ["U708"])


def test_a_model_far_from_its_base_is_pointed_out(trained: Path, tmp_path: Path) -> None:
    def forget(tensors: dict[str, torch.Tensor]) -> None:
        for layer in (0, 1):
            tensors[f"model.layers.{layer}.mlp.down_proj.weight"].zero_()

    proof = verify_forward(changed(trained, tmp_path / "far", forget), base=base_of(trained))
    assert proof.verdict == "far from base"
    assert [found.code for found in proof.findings] == ["U706"]


def test_a_base_that_does_not_write_english_is_no_measure(tmp_path: Path) -> None:
    base = write_folder(tiny_model("llama"), tmp_path / "base")
    proof = verify_forward(changed(base, tmp_path / "copy", lambda tensors: None), base=base_of(base))
    assert (proof.verdict, proof.findings) == ("runs", ())
    assert proof.loss == proof.base_loss


def test_a_missing_tensor_is_named_though_transformers_would_go_on(trained: Path, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    proof = verify_forward(changed(trained, tmp_path / "missing", lambda t: t.pop(name)), base=None)
    assert (proof.verdict, proof.loss, proof.evidence) == ("broken", None, ())
    (found,) = proof.findings
    assert (found.code, found.subject) == ("U705", "LlamaForCausalLM")
    assert f"1 missing: {name}" in found.saw


def test_a_tensor_of_nan_is_named(trained: Path, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.self_attn.o_proj.weight"][0, 0] = float("nan")

    proof = verify_forward(changed(trained, tmp_path / "nan", spoil), base=None)
    assert proof.verdict == "broken"
    assert "`model.layers.1.self_attn.o_proj.weight`" in proof.findings[0].saw


def test_pickles_are_not_loaded(trained: Path, tmp_path: Path) -> None:
    folder = changed(trained, tmp_path / "pickled", lambda tensors: None)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    proof = verify_forward(folder, base=None)
    assert (proof.verdict, [found.code for found in proof.findings]) == ("untried", ["U702"])


def test_without_a_tokenizer_the_model_is_run_and_not_judged(tmp_path: Path) -> None:
    folder = write_folder(tiny_model("llama"), tmp_path, tokenizer=False)
    proof = verify_forward(folder, base=base_of(folder))
    assert (proof.verdict, proof.loss, proof.base_loss) == ("runs", None, None)
    assert [found.code for found in proof.findings] == ["U602"]


@pytest.mark.parametrize("family", ["classifier", "encoder", "encoder-decoder"])
def test_models_that_do_not_write_are_run_and_not_judged(family: str, tmp_path: Path) -> None:
    proof = verify_forward(write_folder(tiny_model(family), tmp_path), base=None)
    assert (proof.verdict, proof.loss, proof.findings) == ("runs", None, ())


def test_a_base_without_weights_is_a_finding(trained: Path, tmp_path: Path) -> None:
    bare = write_folder(tiny_model("llama"), tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    proof = verify_forward(trained, base=base_of(bare))
    assert (proof.verdict, proof.base_loss) == ("looks trained", None)
    (found,) = proof.findings
    assert found.code == "U702"
    assert "it has no safetensors files" in found.saw
