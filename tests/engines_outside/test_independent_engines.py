"""Engines that share no code with transformers load what we wrote, and compute the same.

mlx-lm refuses missing and unknown tensors, but computes wrong logits without a word where config.json
is spelled as it does not expect; mistral.rs refuses a config.json that lacks a key. Both therefore
prove the whole folder, not only the tensors.
"""

import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from tiny_models import tiny_model
from trainers.catalogue import TrainedCheckpoint
from trainers.tiny_llama import tiny_tokenizer
from unshard.conversion import convert
from unshard.diagnosis import check

SCRIPTS = Path(__file__).parent
TEXT = "The capital of France is Paris, and the capital of Japan is"
QUESTION, PROOF = "What is the capital of France?", "Paris"


def run_engine(script: str, *arguments: object) -> None:
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def mlx_logits(folder: Path, tokens: list[int], scratch: Path) -> npt.NDArray[np.float32]:
    run_engine("mlx_logits.py", folder, scratch / "logits.npy", *tokens)
    logits: npt.NDArray[np.float32] = np.load(scratch / "logits.npy")
    return logits


def mistral_answer(folder: Path, question: str, scratch: Path) -> str:
    run_engine("mistral_answer.py", folder, scratch / "answer.txt", question)
    return (scratch / "answer.txt").read_text()


def tokens_of(folder: Path, text: str) -> list[int]:
    ids: list[int] = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    return ids


def reference(
    base: Path, state: Mapping[str, torch.Tensor], tokens: list[int]
) -> tuple[npt.NDArray[np.float32], float]:
    """Return transformers' logits for a state dict in float32, and how far another engine may be off.

    Every logit is the end of a chain of matrix products, and every product a sum rounded to float32 at
    each term. Engines sum in different orders, and the differences add up like a random walk: the root
    of the number of roundings along the chain, times a unit in the last place of the largest logit.
    """
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.load_state_dict(state)
    with torch.no_grad():
        logits: npt.NDArray[np.float32] = model(torch.tensor([tokens])).logits[0].numpy()
    roundings = sum(parameter.shape[1] for parameter in model.parameters() if parameter.ndim == 2)
    return logits, float(np.abs(logits).max() * np.finfo(np.float32).eps * math.sqrt(roundings))


@pytest.mark.parametrize("name", ["recipes-two-epochs", "recipes-tied-bf16", "fsdp2-tied-compiled"])
def test_mlx_computes_the_logits_of_what_training_left(
    name: str, trained_checkpoints: Mapping[str, TrainedCheckpoint], tmp_path: Path
) -> None:
    run = trained_checkpoints[name]
    assert run.base is not None
    convert(run.path, tmp_path / "model", base=run.base, dtype="float32", durable=False)
    tokens = tokens_of(run.base, TEXT)
    logits = mlx_logits(tmp_path / "model", tokens, tmp_path)
    expected, tolerance = reference(run.base, load_file(run.truth), tokens)
    untrained, _ = reference(run.base, load_base(run.base), tokens)
    assert np.abs(logits - expected).max() <= tolerance
    assert np.abs(logits - untrained).max() > 1000 * tolerance


@pytest.fixture(scope="module")
def smollm2(smollm2_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real instruct model, converted from a full state dict in float32 as training holds it."""
    folder = tmp_path_factory.mktemp("smollm2")
    torch.save(load_base(smollm2_base), folder / "model.pt")
    convert(folder / "model.pt", folder / "model", base=smollm2_base, dtype="keep", durable=False)
    return folder / "model"


def test_mlx_computes_the_logits_of_a_real_model(smollm2: Path, smollm2_base: Path, tmp_path: Path) -> None:
    tokens = tokens_of(smollm2, TEXT)
    logits = mlx_logits(smollm2, tokens, tmp_path)
    expected, tolerance = reference(smollm2_base, load_base(smollm2_base), tokens)
    assert np.abs(logits - expected).max() <= tolerance
    assert np.array_equal(logits.argmax(-1), expected.argmax(-1))


def test_mistral_rs_answers_a_question(smollm2: Path, tmp_path: Path) -> None:
    assert PROOF in mistral_answer(smollm2, QUESTION, tmp_path)


def load_base(base: Path) -> dict[str, torch.Tensor]:
    """Return the base's own weights in float32, both names of a tied pair included."""
    state: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32
    ).state_dict()
    return state


@pytest.fixture(scope="module")
def as_saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as transformers 5 saves it: the base of its rotary embeddings only in its own spelling."""
    folder = tmp_path_factory.mktemp("as-saved")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def spelt(as_saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, converted with that folder as its base."""
    folder = tmp_path_factory.mktemp("spelt")
    torch.save(load_base(as_saved), folder / "model.pt")
    convert(folder / "model.pt", folder / "model", base=as_saved, dtype="float32", durable=False)
    return folder / "model"


def stumbling(folder: Path) -> set[str]:
    """Return the engines that check says compute otherwise, or refuse the folder."""
    told = check(folder).findings
    return {item.subject for item in told if item.code in ("U640", "U641") and "rope" in item.saw}


def test_mlx_computes_otherwise_where_check_says_so(as_saved: Path, spelt: Path, tmp_path: Path) -> None:
    tokens = list(range(5, 45))
    expected, tolerance = reference(as_saved, load_base(as_saved), tokens)
    assert "mlx-lm, transformers 4" in stumbling(as_saved)
    assert np.abs(mlx_logits(as_saved, tokens, tmp_path) - expected).max() > 100 * tolerance
    assert stumbling(spelt) == set()
    assert np.abs(mlx_logits(spelt, tokens, tmp_path) - expected).max() <= tolerance


def test_mistral_rs_refuses_what_check_says_it_refuses(as_saved: Path, spelt: Path, tmp_path: Path) -> None:
    assert "mistral.rs" in stumbling(as_saved)
    with pytest.raises(AssertionError, match="missing field `rope_theta`"):
        mistral_answer(as_saved, QUESTION, tmp_path)
    assert mistral_answer(spelt, QUESTION, tmp_path) is not None
