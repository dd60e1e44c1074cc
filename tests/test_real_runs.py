"""The whole way for every real run: what training held is what transformers loads, bit for bit."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainers.catalogue import RUNS, TrainedCheckpoint
from unshard.conversion import convert
from unshard.diagnosis import check
from unshard.inference import load
from unshard.inspection import inspect
from unshard.preparation import DTypePolicy
from unshard.verification import verify

BASED = [run for run in RUNS if run.based]

of_every_run = pytest.mark.parametrize("trained_checkpoint", [run.name for run in BASED], indirect=True)
of_every_state_dict = pytest.mark.parametrize(
    "trained_checkpoint", [run.name for run in BASED if run.layout == "full"], indirect=True
)

Bits = tuple[torch.dtype, tuple[int, ...], bytes]


def bits(tensor: torch.Tensor) -> Bits:
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return tensor.dtype, tuple(tensor.shape), raw


def bits_in(file: Path) -> dict[str, Bits]:
    return {name: bits(tensor) for name, tensor in load_file(file).items()}


def converted(run: TrainedCheckpoint, target: Path, dtype: DTypePolicy = "keep") -> Path:
    assert run.base is not None
    convert(run.path, target, base=run.base, dtype=dtype, durable=False)
    return target


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    """Return the state dict of the model that transformers builds, which must need nothing else."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    state: dict[str, torch.Tensor] = model.state_dict()
    return state


@of_every_run
def test_the_model_is_what_training_left(trained_checkpoint: TrainedCheckpoint, tmp_path: Path) -> None:
    state = loaded(converted(trained_checkpoint, tmp_path / "model"))
    assert {n: bits(t) for n, t in state.items()} == bits_in(trained_checkpoint.truth)


@of_every_run
def test_the_dtype_is_the_bases_own_unless_asked_otherwise(
    trained_checkpoint: TrainedCheckpoint, tmp_path: Path
) -> None:
    state = loaded(converted(trained_checkpoint, tmp_path / "model", "base"))
    truth = load_file(trained_checkpoint.truth)
    assert {n: bits(t) for n, t in state.items()} == {n: bits(t.to(torch.bfloat16)) for n, t in truth.items()}


@of_every_run
def test_the_file_is_what_transformers_saves_and_is_proven_against_the_run(
    trained_checkpoint: TrainedCheckpoint, tmp_path: Path
) -> None:
    folder = converted(trained_checkpoint, tmp_path / "model")
    assert bits_in(folder / "model.safetensors") == bits_in(trained_checkpoint.published)
    verification = verify(
        folder, against=trained_checkpoint.path, base=trained_checkpoint.base, forward=False
    )
    verdicts = {level.name: level.verdict for level in verification.levels}
    assert verdicts == {"bytes": "sound", "structure": "sound", "forward": "not checked"}


@of_every_run
def test_inspection_and_the_doctor_find_all_of_it(trained_checkpoint: TrainedCheckpoint) -> None:
    seen = inspect(trained_checkpoint.path, base=trained_checkpoint.base)
    truth = load_file(trained_checkpoint.truth)
    everything = sum(tensor.numel() for tensor in truth.values())
    once = sum(tensor.numel() for tensor in load_file(trained_checkpoint.published).values())
    assert seen.parameters in {everything, once}
    diagnosis = check(trained_checkpoint.path, base=trained_checkpoint.base)
    assert [step.verdict for step in diagnosis.steps] == ["whole"] * len(diagnosis.steps)
    assert not diagnosis.fails("error")


@of_every_state_dict
def test_the_tokenizer_is_the_bases(trained_checkpoint: TrainedCheckpoint, tmp_path: Path) -> None:
    folder = converted(trained_checkpoint, tmp_path / "model")
    text = "if x == 1:\n    return 'näïve'"
    ids = [AutoTokenizer.from_pretrained(f)(text)["input_ids"] for f in (folder, trained_checkpoint.base)]
    assert ids[0] == ids[1]


@of_every_run
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
    assert {n: bits(t) for n, t in state.items()} == bits_in(trained_checkpoint.published)


@pytest.mark.parametrize(
    "name",
    [
        "recipes-sharded",
        "accelerate-fsdp1",
        "lightning",
        "dcp-tensor-parallel",
        "dcp-compressed",
        "dcp-mixtral",
        "verl-hybrid",
        "verl-qwen3-moe",
        "flat-four",
        "flat-original-tied",
        "sharded-safetensors-four",
    ],
)
def test_a_model_is_loaded_from_parts(
    name: str, trained_checkpoints: Mapping[str, TrainedCheckpoint]
) -> None:
    run = trained_checkpoints[name]
    model, tokenizer = load(run.path, base=run.base, dtype="keep", device="cpu")
    assert tokenizer is not None
    assert {n: bits(t) for n, t in model.state_dict().items()} == bits_in(run.truth)
