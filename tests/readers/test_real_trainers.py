"""What real trainers left is read bit for bit, wherever in the run a person points."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainers.catalogue import RUNS, TrainedCheckpoint
from unshard.base import find_base
from unshard.checkpoint import Checkpoint
from unshard.errors import TrainingStateError
from unshard.findings import Severity
from unshard.match import with_shapes
from unshard.readers import open_checkpoint
from unshard.tensors import DescribedTensor

# Flat parameters have no shapes but those of a base: their own tests hold the rest.
SHAPED = [run.name for run in RUNS if run.based or run.layout != "flat"]
of_every_run = pytest.mark.parametrize("trained_checkpoint", SHAPED, indirect=True)

WRAPPERS = re.compile(r"_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.|_orig_mod\.")
# What the trainers of these runs put before every name.
PREFIXES = {
    "ddp": "module.",
    "container-state-dict": "model.",
    "lightning": "model.",
    "lightning-model-parallel": "model.",
}


def opened(path: Path, step: int | None = None) -> Checkpoint:
    return open_checkpoint(path, step=step, select=None)


def shaped(run: TrainedCheckpoint, place: Path | None = None) -> Checkpoint:
    """Return a run's checkpoint, whose tensors have the base's shapes where no file tells any."""
    checkpoint = opened(place or run.path)
    if run.base is None:
        return with_shapes(checkpoint, None, accept_inferred=True)
    base, _ = find_base(checkpoint, reference=str(run.base), download=False)
    return with_shapes(checkpoint, base, accept_inferred=False)


def values_of(tensor: DescribedTensor) -> tuple[tuple[int, ...], str, bytes]:
    buffer = bytearray(tensor.nbytes)
    tensor.read(0, tensor.nbytes // tensor.dtype.itemsize, memoryview(buffer))
    return tensor.shape, tensor.dtype.name, bytes(buffer)


def true_values_of(tensor: torch.Tensor) -> tuple[tuple[int, ...], str, bytes]:
    raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    return tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), raw


def truth_in(file: Path) -> dict[str, tuple[tuple[int, ...], str, bytes]]:
    return {name: true_values_of(tensor) for name, tensor in load_file(file).items()}


def named_as_the_model_does(checkpoint: Checkpoint, prefix: str) -> Mapping[str, DescribedTensor]:
    names = {name: WRAPPERS.sub("", name).removeprefix(prefix) for name in checkpoint}
    assert len(set(names.values())) == len(names)
    return {names[name]: tensor for name, tensor in checkpoint.tensors.items()}


def second_names(run: TrainedCheckpoint) -> set[str]:
    """Return the names that a saver may leave out, because another one is of the same tensor."""
    if run.run.model == "awkward":
        return {"tied.weight"} if run.run.layout == "hugging-face-sharded" else set()
    return {"lm_head.weight"} if run.run.tied else set()


@of_every_run
def test_every_value_is_bit_for_bit_what_training_held(trained_checkpoint: TrainedCheckpoint) -> None:
    checkpoint = shaped(trained_checkpoint)
    tensors = named_as_the_model_does(checkpoint, PREFIXES.get(trained_checkpoint.run.name, ""))
    truth = truth_in(trained_checkpoint.truth)
    # Savers that go through parameters, and transformers itself, leave the second name of a tied pair out.
    unsaved = truth.keys() - tensors.keys()
    assert unsaved <= second_names(trained_checkpoint)
    assert {name: values_of(tensor) for name, tensor in tensors.items()} == {
        name: values for name, values in truth.items() if name not in unsaved
    }


@of_every_run
def test_nothing_is_warned_of_but_what_cannot_be_proven(trained_checkpoint: TrainedCheckpoint) -> None:
    run = trained_checkpoint.run
    unproven = {"U114"} if run.layout == "hugging-face-sharded" and not run.based else set()
    unchecked = {"U103"} if run.name == "legacy" else set()
    findings = shaped(trained_checkpoint).findings
    warned = {found.code for found in findings if found.severity is not Severity.INFO}
    assert warned == unproven | unchecked


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("recipes-two-epochs", [0, 1]),
        ("recipes-tied-bf16", [0, 1]),
        ("dcp-torchtitan", [10, 20]),
        ("fabric", [100, 200]),
    ],
)
@pytest.mark.parametrize("epoch", [0, 1])
def test_a_step_is_opened_by_its_number(
    name: str, numbers: list[int], epoch: int, trained_checkpoints: Mapping[str, TrainedCheckpoint]
) -> None:
    run = trained_checkpoints[name]
    checkpoint = opened(run.path, step=numbers[epoch])
    assert [step.number for step in checkpoint.steps] == numbers
    assert {n: values_of(t) for n, t in checkpoint.tensors.items()} == truth_in(run.truths[epoch])


@pytest.mark.parametrize(
    "below",
    [
        "",
        "model_checkpoints",
        "model_checkpoints/fine-tuned-tiny-org",
        "model_checkpoints/fine-tuned-tiny-org/Tiny-Llama",
        "model_checkpoints/fine-tuned-tiny-org/Tiny-Llama/tiny-org--Tiny-Llama-1.pt",
    ],
)
def test_any_folder_of_a_run_leads_to_the_newest_checkpoint(
    below: str, recipes_run: TrainedCheckpoint
) -> None:
    checkpoint = opened(recipes_run.folder / below)
    assert checkpoint.path.name == "tiny-org--Tiny-Llama-1.pt"
    assert {n: values_of(t) for n, t in checkpoint.tensors.items()} == truth_in(recipes_run.truth)


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("recipes-sharded", ["", "model_checkpoints", "model_checkpoints/fine-tuned-tiny-org/Tiny-Llama"]),
        ("accelerate", ["", "checkpoints", "checkpoints/checkpoint_7/pytorch_model_fsdp_0"]),
        ("trainer", ["", "output", "output/checkpoint-2", "output/checkpoint-2/pytorch_model_fsdp_0"]),
        ("lightning", ["", "checkpoints", "checkpoints/epoch=1-step=2.ckpt"]),
        ("dcp-torchtitan", ["", "checkpoint", "checkpoint/step-20", "checkpoint/step-20/__1_0.distcp"]),
        ("dcp-prime-rl", ["", "checkpoint/step_7", "checkpoint/step_7/trainer/.metadata"]),
        ("verl-fsdp2", ["", "global_step_7", "global_step_7/actor/model_world_size_2_rank_1.pt"]),
        ("accelerate-per-rank", ["", "checkpoint_0", "checkpoint_0/pytorch_model_fsdp_0_rank1.bin"]),
        ("accelerate-flat", ["", "checkpoint_0", "checkpoint_0/pytorch_model_fsdp_rank1.bin"]),
        ("consolidated", ["", "checkpoint", "checkpoint/sharded"]),
    ],
)
def test_any_place_in_a_run_leads_to_its_parts(
    name: str, places: list[str], trained_checkpoints: Mapping[str, TrainedCheckpoint]
) -> None:
    run = trained_checkpoints[name]
    truth = truth_in(run.truth)
    for place in places:
        tensors = named_as_the_model_does(shaped(run, run.folder / place), PREFIXES.get(name, ""))
        assert {n: values_of(t) for n, t in tensors.items()} == truth, place


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("accelerate", "checkpoints/checkpoint_7/optimizer_0"),
        ("trainer", "output/checkpoint-1/optimizer_0"),
        ("accelerate-per-rank", "checkpoint_0/optimizer_0_rank1.bin"),
        ("verl-fsdp2", "global_step_7/actor/optim_world_size_2_rank_0.pt"),
    ],
)
def test_the_optimizers_part_is_not_taken_for_a_model(
    name: str, place: str, trained_checkpoints: Mapping[str, TrainedCheckpoint]
) -> None:
    with pytest.raises(TrainingStateError):
        opened(trained_checkpoints[name].folder / place)


@pytest.mark.parametrize(
    ("name", "container", "optimizer"),
    [
        ("recipes-sharded", ("model",), "optim"),
        ("fabric", ("model",), "optimizer"),
        ("lightning", ("model",), "optimizer_0"),
        ("lightning-model-parallel", ("state_dict",), "optimizer_0"),
        ("dcp-torchtitan", (), "optimizer"),
        ("dcp-prime-rl", ("app", "model"), "app.optimizers"),
        ("dcp-torchtune", ("model",), "optimizer"),
    ],
)
def test_the_model_is_found_beside_the_optimizer_in_the_same_files(
    name: str,
    container: tuple[str, ...],
    optimizer: str,
    trained_checkpoints: Mapping[str, TrainedCheckpoint],
) -> None:
    checkpoint = opened(trained_checkpoints[name].path)
    assert checkpoint.container == container
    assert (optimizer, "optimizer") in {(extra.name, extra.kind) for extra in checkpoint.extras}
    assert len({extra.name for extra in checkpoint.extras}) == len(checkpoint.extras)


def test_training_parameters_are_found_beside_the_file(recipes_run: TrainedCheckpoint) -> None:
    training = opened(recipes_run.path).training
    assert training is not None
    assert training.get("model_name") == "tiny-org/Tiny-Llama"
    assert training.get("checkpoint_type") == "StateDictType.FULL_STATE_DICT"


def test_a_run_that_was_interrupted_has_no_training_parameters(
    trained_checkpoints: Mapping[str, TrainedCheckpoint],
) -> None:
    assert opened(trained_checkpoints["recipes-interrupted-bf16"].path).training is None


def test_a_base_named_by_its_path_is_a_hint(trained_checkpoints: Mapping[str, TrainedCheckpoint]) -> None:
    run = trained_checkpoints["recipes-absolute-name"]
    assert str(run.base) in [hint.reference for hint in opened(run.path).base_hints]


def test_the_optimizer_beside_a_model_is_told_and_not_taken_for_one(
    tied_recipes_run: TrainedCheckpoint,
) -> None:
    beside = [extra for extra in opened(tied_recipes_run.path).extras if extra.kind == "optimizer"]
    assert "optimizer-tiny-llama-1.pt" in {Path(extra.name).name for extra in beside}
    with pytest.raises(TrainingStateError):
        opened(tied_recipes_run.path / "optimizer-tiny-llama-1.pt")


def test_what_a_container_holds_besides_the_model_is_told(
    trained_checkpoints: Mapping[str, TrainedCheckpoint],
) -> None:
    checkpoint = opened(trained_checkpoints["container-model"].path)
    assert checkpoint.container == ("model",)
    assert {(extra.name, extra.kind) for extra in checkpoint.extras} >= {
        ("optimizer", "optimizer"),
        ("step", "step"),
    }
