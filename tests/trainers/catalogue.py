"""Every checkpoint that the tests have real trainers leave, as data: importing this imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

WORLD_SIZE = 2


@dataclass(frozen=True, slots=True)
class Run:
    """One training run.

    Attributes:
        name: Its word in the tests.
        trainer: The function that trains and saves, as "module.function" of this package.
        path: What a person would give to a command, below the run's folder; "" for the folder itself.
        notes: What is particular about it.
        tied: Whether the model's output layer is its embedding.
        dtype: Number format of the trained weights.
        model_name: What the trainer calls the model; None for the absolute path of its base.
        epochs: How many checkpoints lie side by side, each of other weights.
        based: Whether the model is one that a base folder describes.
    """

    name: str
    trainer: str
    path: str
    notes: str
    tied: bool = False
    dtype: str = "float32"
    model_name: str | None = "tiny-llama"
    epochs: int = 1
    based: bool = True


@dataclass(frozen=True, slots=True)
class TrainedCheckpoint:
    """A checkpoint that a real trainer left, and the truth about it.

    Attributes:
        run: The training run it comes from.
        folder: The run's folder.
        path: What a person would give to a command.
        truths: The model's unsharded state dict before it was wrapped, by epoch, as safetensors files.
        base: The model folder training started from: the same architecture with other weights.
    """

    run: Run
    folder: Path
    path: Path
    truths: tuple[Path, ...]
    base: Path | None

    @property
    def truth(self) -> Path:
        """The truth about the newest checkpoint."""
        return self.truths[-1]


RUNS = (
    Run(
        "recipes-two-epochs",
        "llama_recipes.leave_full_state_dict",
        "model_checkpoints",
        "two epochs in nested folders, activation checkpointing, train_params.yaml",
        model_name="tiny-org/Tiny-Llama",
        epochs=2,
    ),
    Run(
        "recipes-tied-bf16",
        "llama_recipes.leave_full_state_dict_and_optimizer",
        "model_checkpoints/fine-tuned-tiny-llama",
        "a tied pair as two storages, the optimizer's files beside the model's",
        tied=True,
        dtype="bfloat16",
        epochs=2,
    ),
    Run(
        "recipes-absolute-name",
        "llama_recipes.leave_full_state_dict",
        "model_checkpoints",
        "the model is named by its base's absolute path, so file names begin with dashes",
        tied=True,
        model_name=None,
    ),
    Run(
        "recipes-interrupted-bf16",
        "llama_recipes.leave_full_state_dict_without_parameters",
        "model_checkpoints",
        "stopped before train_params.yaml was written",
        dtype="bfloat16",
        model_name="tiny-org/Tiny-Llama",
    ),
    Run("recipes-one-device", "llama_recipes.leave_model_pt", "", "model.pt of a run without FSDP"),
    Run(
        "fsdp1-compiled",
        "torch_fsdp.leave_compiled_fsdp1",
        "full.pt",
        "the state dict of torch.compile(FSDP(model)): names begin with _orig_mod",
    ),
    Run(
        "fsdp1-raw-names",
        "torch_fsdp.leave_raw_names",
        "model.pt",
        "summoned parameters under the names of FSDP's and the activation checkpoints' wrappers",
    ),
    Run("fsdp1-awkward", "torch_fsdp.leave_awkward_fsdp1", "full.pt", "odd buffers", based=False),
    Run(
        "fsdp2-full",
        "torch_fsdp.leave_fsdp2",
        "full.pt",
        "get_model_state_dict of fully_shard, with the optimizer's state in a file beside it",
    ),
    Run(
        "fsdp2-tied-compiled",
        "torch_fsdp.leave_compiled_fsdp2",
        "full.pt",
        "parameters gathered one by one from a compiled module with activation checkpoints",
        tied=True,
        dtype="bfloat16",
    ),
    Run("fsdp2-awkward", "torch_fsdp.leave_awkward_fsdp2", "full.pt", "odd buffers", based=False),
    Run("ddp", "plain_torch.leave_ddp", "ddp.pt", "names begin with module"),
    Run(
        "accelerate-full",
        "accelerate_fsdp.leave_full",
        "checkpoint_0",
        "pytorch_model_fsdp.bin of accelerate's save_fsdp_model",
    ),
    Run("plain", "plain_torch.leave_state_dict", "model.pt", "torch.save(model.state_dict())", tied=True),
    Run(
        "legacy",
        "plain_torch.leave_legacy",
        "model.bin",
        "torch.save without the zip format",
        dtype="bfloat16",
    ),
    Run("container-model", "plain_torch.leave_container_model", "step-3.pt", "model, optimizer, step"),
    Run(
        "container-state-dict",
        "plain_torch.leave_container_state_dict",
        "last.ckpt",
        "state_dict and what a trainer's .ckpt holds beside it, names below an attribute",
    ),
    Run("container-module", "plain_torch.leave_container_module", "model_states.pt", "module, epoch"),
    Run(
        "hugging-face",
        "hugging_face.leave_one_file",
        "",
        "save_pretrained, one file, tied",
        tied=True,
        dtype="bfloat16",
    ),
    Run("hugging-face-many", "hugging_face.leave_many_files", "", "save_pretrained, several files"),
    Run("hugging-face-bin", "hugging_face.leave_torch_files", "", "pytorch_model-*.bin and their index"),
)


def base_folder(folder: Path, *, tied: bool) -> Path:
    """Return where the base of tied or untied models lies below the session's folder."""
    return folder / "bases" / ("tied" if tied else "untied")


def locate(folder: Path) -> Mapping[str, TrainedCheckpoint]:
    """Return every checkpoint below the session's folder, by the name of its run."""
    return {
        run.name: TrainedCheckpoint(
            run,
            folder / run.name,
            folder / run.name / run.path,
            tuple(truth_file(folder / run.name, epoch) for epoch in range(run.epochs)),
            base_folder(folder, tied=run.tied) if run.based else None,
        )
        for run in RUNS
    }


def truth_file(folder: Path, epoch: int) -> Path:
    """Return where the truth about an epoch lies: outside everything a command would be given."""
    return folder.parent / "truths" / f"{folder.name}-{epoch}.safetensors"


def quiet_environment() -> None:
    """Keep two ranks from fighting over two cores, and every library from looking for a network."""
    os.environ.update(
        OMP_NUM_THREADS="1",
        HF_HUB_OFFLINE="1",
        TRANSFORMERS_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
    )
