"""What a training run of the tests is, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wrapping:
    """How a model is distributed before it is trained.

    Attributes:
        fsdp: 1 for FullyShardedDataParallel, 2 for fully_shard, 0 for a model that is not distributed.
        mesh: Names of the mesh's dimensions: ("fsdp",), ("ddp", "fsdp") or ("fsdp", "tp"); of two
            dimensions the first has two ranks. Empty for FSDP1 over the default process group.
        use_orig_params: FSDP1's option of that name.
        activation_checkpoints: Whether every layer is wrapped in an activation checkpoint.
        mixed_precision: Whether FSDP computes in bfloat16.
    """

    fsdp: int = 2
    mesh: tuple[str, ...] = ("fsdp",)
    use_orig_params: bool = False
    activation_checkpoints: bool = False
    mixed_precision: bool = False


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
        layout: How the checkpoint lies on disk: "full", "dcp", "hugging-face-sharded", "per-rank" or "flat".
        model: What is trained: "llama", "mixtral", "qwen3-moe" or "awkward".
        world_size: How many ranks train and save it.
        wrapping: How the model is distributed; state dicts of whole models choose for themselves.
    """

    name: str
    trainer: str
    path: str
    notes: str
    tied: bool = False
    dtype: str = "float32"
    model_name: str | None = "tiny-llama"
    epochs: int = 1
    layout: str = "full"
    model: str = "llama"
    world_size: int = 2
    wrapping: Wrapping = Wrapping()

    @property
    def based(self) -> bool:
        """Whether the model is one that a base folder describes."""
        return self.model != "awkward"
