"""The whole way for every real run: what training held is what transformers loads, bit for bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainers.catalogue import RUNS, TrainedCheckpoint
from unshard.conversion import convert
from unshard.preparation import DTypePolicy

pytestmark = pytest.mark.parametrize(
    "trained_checkpoint", [run.name for run in RUNS if run.based and run.layout == "full"], indirect=True
)


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return tensor.dtype, tuple(tensor.shape), raw


def converted(run: TrainedCheckpoint, target: Path, dtype: DTypePolicy) -> Path:
    assert run.base is not None
    convert(run.path, target, base=run.base, dtype=dtype, durable=False)
    return target


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    """Return the state dict of the model that transformers builds, which must need nothing else."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    state: dict[str, torch.Tensor] = model.state_dict()
    return state


def test_the_model_is_what_training_left(trained_checkpoint: TrainedCheckpoint, tmp_path: Path) -> None:
    state = loaded(converted(trained_checkpoint, tmp_path / "model", "keep"))
    truth = load_file(trained_checkpoint.truth)
    assert {n: bits(t) for n, t in state.items()} == {n: bits(t) for n, t in truth.items()}


def test_the_dtype_is_the_bases_own_unless_asked_otherwise(
    trained_checkpoint: TrainedCheckpoint, tmp_path: Path
) -> None:
    state = loaded(converted(trained_checkpoint, tmp_path / "model", "base"))
    truth = load_file(trained_checkpoint.truth)
    assert {n: bits(t) for n, t in state.items()} == {n: bits(t.to(torch.bfloat16)) for n, t in truth.items()}


def test_the_tokenizer_is_the_bases(trained_checkpoint: TrainedCheckpoint, tmp_path: Path) -> None:
    folder = converted(trained_checkpoint, tmp_path / "model", "keep")
    text = "if x == 1:\n    return 'näïve'"
    ids = [AutoTokenizer.from_pretrained(f)(text)["input_ids"] for f in (folder, trained_checkpoint.base)]
    assert ids[0] == ids[1]


def test_a_plain_state_dict_is_what_training_left(
    trained_checkpoint: TrainedCheckpoint, tmp_path: Path
) -> None:
    convert(
        trained_checkpoint.path,
        tmp_path / "model.pt",
        base=trained_checkpoint.base,
        to="pt",
        dtype="keep",
        durable=False,
    )
    state = torch.load(tmp_path / "model.pt", weights_only=True, mmap=True)
    truth = load_file(trained_checkpoint.truth)
    if trained_checkpoint.run.tied:
        state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    assert {n: bits(t) for n, t in state.items()} == {n: bits(t) for n, t in truth.items()}
