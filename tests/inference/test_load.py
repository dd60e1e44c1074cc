"""`load`: from whatever training left to a model in memory, in one call."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tiny_models import FAMILIES, logits_of, same_bits, tiny_model, write_folder
from trainers.catalogue import TrainedCheckpoint
from unshard.errors import BaseModelError, InferenceError, MatchError, MissingExtraError
from unshard.inference import load

TOKENS = torch.tensor([[5, 17, 400, 33, 8, 514, 12]])


def saved(state: Any, folder: Path, **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / "checkpoint.pt", **options)
    return folder / "checkpoint.pt"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_state_dict_gives_the_logits_of_the_trained_model(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    base = write_folder(tiny_model(family, dtype), tmp_path / "base")
    trained = tiny_model(family, dtype, seed=8)
    model, tokenizer = load(saved(trained.state_dict(), tmp_path / "run"), base=base, device="cpu")
    assert same_bits(logits_of(model, TOKENS), logits_of(trained, TOKENS))
    assert tokenizer is not None
    assert not model.training


def test_experts_are_stacked_as_transformers_holds_them(tmp_path: Path) -> None:
    trained = tiny_model("mixtral")
    base = write_folder(trained, tmp_path / "base")
    model, _ = load(saved(load_file(base / "model.safetensors"), tmp_path / "run"), base=base, device="cpu")
    assert same_bits(logits_of(model, TOKENS), logits_of(trained, TOKENS))


def test_a_real_training_run_is_loaded(recipes_run: TrainedCheckpoint) -> None:
    model, tokenizer = load(recipes_run.path, base=recipes_run.base, dtype="keep", device="cpu")
    truth = load_file(recipes_run.truth)
    assert all(same_bits(tensor, truth[name]) for name, tensor in model.state_dict().items())
    assert tokenizer is not None


def test_a_model_folder_is_loaded_without_a_base(tmp_path: Path) -> None:
    trained = tiny_model("qwen2")
    model, _ = load(write_folder(trained, tmp_path), device="cpu")
    assert same_bits(logits_of(model, TOKENS), logits_of(trained, TOKENS))


def test_the_device_a_file_was_saved_on_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = tiny_model("llama")
    base = write_folder(trained, tmp_path / "base")
    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", lambda storage: "cuda:7")
        file = saved(trained.state_dict(), tmp_path / "run")
    assert b"cuda:7" in file.read_bytes()
    model, _ = load(file, base=base)
    assert same_bits(logits_of(model.cpu(), TOKENS), logits_of(trained, TOKENS))


def test_the_legacy_format_is_loaded(tmp_path: Path) -> None:
    trained = tiny_model("llama")
    base = write_folder(trained, tmp_path / "base")
    file = saved(trained.state_dict(), tmp_path / "run", _use_new_zipfile_serialization=False)
    with pytest.warns(UserWarning, match="U103"):  # that format has no checksums
        model, _ = load(file, base=base, device="cpu")
    assert same_bits(logits_of(model, TOKENS), logits_of(trained, TOKENS))


@pytest.mark.parametrize(
    ("policy", "expected"), [("base", "bfloat16"), ("keep", "float32"), ("float16", "float16")]
)
def test_the_dtype_policy_decides(policy: str, expected: str, tmp_path: Path) -> None:
    base = write_folder(tiny_model("llama", torch.bfloat16), tmp_path / "base")
    trained = tiny_model("llama")
    file = saved(trained.state_dict(), tmp_path / "run")
    model, _ = load(file, base=base, dtype=policy, device="cpu")
    state = trained.to(getattr(torch, expected)).state_dict()
    assert all(same_bits(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert str(model.config.dtype) == f"torch.{expected}"


def test_diverged_ties_are_loaded_apart_and_warned_of(tmp_path: Path) -> None:
    trained = tiny_model("llama-tied")
    base = write_folder(trained, tmp_path / "base")
    state = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    state["lm_head.weight"][7] += 1
    with pytest.warns(UserWarning, match="U302"):
        model, _ = load(saved(state, tmp_path / "run"), base=base, device="cpu")
    assert same_bits(model.lm_head.weight, state["lm_head.weight"])
    assert same_bits(model.model.embed_tokens.weight, state["model.embed_tokens.weight"])


def test_without_a_tokenizer_there_is_none_and_a_warning(tmp_path: Path) -> None:
    trained = tiny_model("llama")
    base = write_folder(trained, tmp_path / "base", tokenizer=False)
    with pytest.warns(UserWarning, match="U602"):
        model, tokenizer = load(saved(trained.state_dict(), tmp_path / "run"), base=base, device="cpu")
    assert tokenizer is None
    assert same_bits(logits_of(model, TOKENS), logits_of(trained, TOKENS))


def test_a_checkpoint_that_diverged_is_refused(tmp_path: Path) -> None:
    trained = tiny_model("llama")
    base = write_folder(trained, tmp_path / "base")
    with torch.no_grad():
        trained.model.norm.weight[3] = float("inf")
    with pytest.raises(InferenceError, match=r"NaN or infinity lies in `model\.norm\.weight`"):
        load(saved(trained.state_dict(), tmp_path / "run"), base=base, device="cpu")


def test_a_missing_tensor_is_refused(tmp_path: Path) -> None:
    trained = tiny_model("llama")
    base = write_folder(trained, tmp_path / "base")
    state = trained.state_dict()
    del state["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(MatchError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        load(saved(state, tmp_path / "run"), base=base, device="cpu")


def test_without_a_base_the_next_action_is_told(tmp_path: Path) -> None:
    file = saved(tiny_model("llama").state_dict(), tmp_path / "run")
    with pytest.raises(BaseModelError, match="no base was found") as raised:
        load(file, download=False)
    assert "--base" in (raised.value.hint or "")


def test_the_base_is_left_as_it_was(tmp_path: Path) -> None:
    trained = tiny_model("llama")
    base = write_folder(trained, tmp_path / "base")
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    load(saved(trained.state_dict(), tmp_path / "run"), base=base, dtype="float16", device="cpu")
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before
    assert json.loads(before["config.json"])["dtype"] == "float32"


def test_a_package_that_is_missing_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtraError, match="needs the package `accelerate`") as raised:
        load(tmp_path)
    assert raised.value.hint == 'pip install "unshard[hf]"'


def test_importing_the_room_imports_no_torch() -> None:
    code = (
        "import sys, unshard.inference, unshard.proof.forward\n"
        "print({'torch', 'transformers'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
