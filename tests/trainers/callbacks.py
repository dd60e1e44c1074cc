"""Trainings of real trainers with our callbacks, and what the models held, gathered by torch itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from trainers.accelerate_on_cpu import fsdp_on_cpu
from trainers.lightning_runs import _FSDP, _fsdp1_on_cpu, _Ranks
from trainers.run import Wrapping
from trainers.wrapping import fsdp2
from unshard.training.integrations.lightning import UnshardCallback as ForLightning
from unshard.training.integrations.transformers import UnshardCallback as ForTransformers

FULL = StateDictOptions(full_state_dict=True, cpu_offload=False)
RATE = 0.01


def leave_all(folder: Path, base: Path) -> None:
    """Leave trainings of two ranks by every trainer, each in a folder of its own."""
    for version in (1, 2):
        with fsdp_on_cpu():
            train_with_transformers(folder / f"transformers-fsdp{version}", base, _fsdp(version))
    for name, strategy in _strategies().items():
        train_with_lightning(folder / f"lightning-{name}", base, strategy)


def write_truth(model: Any, file: Path) -> None:
    """Write what torch gathers of a model, under the names of the model of transformers inside."""
    state = get_model_state_dict(model, options=FULL)
    if not dist.is_initialized() or dist.get_rank() == 0:
        save_file({name: tensor.clone() for name, tensor in state.items()}, file)


def train_with_transformers(
    folder: Path,
    base: Path,
    arguments: dict[str, Any],
    callback: ForTransformers | None = None,
    resume: Path | None = None,
) -> Trainer:
    """Train for three steps with a checkpoint of each, and leave the truth about the last."""
    row = torch.arange(3, 11)
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        args=TrainingArguments(
            output_dir=str(folder),
            use_cpu=True,
            learning_rate=RATE,
            max_steps=3,
            save_steps=1,
            save_total_limit=2,
            per_device_train_batch_size=1,
            report_to=[],
            disable_tqdm=True,
            seed=7,
            **arguments,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for _ in range(8)],
        processing_class=AutoTokenizer.from_pretrained(base),
        callbacks=[callback or ForTransformers()],
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    write_truth(trainer.model, folder / "truth.safetensors")
    return trainer


def _fsdp(version: int) -> dict[str, Any]:
    config = {
        "version": version,
        "state_dict_type": "SHARDED_STATE_DICT",
        "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
        "use_orig_params": version == 1,
        "sync_module_states": False,
    }
    return {"fsdp": True, "fsdp_config": config}


class Module(pytorch_lightning.LightningModule):  # type: ignore[misc]  # Lightning's types are not read
    """A model below an attribute, as everybody's is."""

    def __init__(self, base: Path, *, is_sharded: bool) -> None:
        super().__init__()
        self.save_hyperparameters({"lr": RATE, "is_sharded": is_sharded})
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).train()

    def configure_model(self) -> None:
        if self.hparams["is_sharded"]:
            fsdp2(self.model, Wrapping())

    def training_step(self, batch: torch.Tensor, index: int) -> Any:
        return self.model(input_ids=batch, labels=batch, use_cache=False).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=RATE, foreach=False)


def _strategies() -> dict[str, Any]:
    return {
        "fsdp1": _FSDP(state_dict_type="sharded"),
        "fsdp2": ModelParallelStrategy(save_distributed_checkpoint=True),
        "ddp": DDPStrategy(),
    }


def train_with_lightning(
    folder: Path, base: Path, strategy: Any, callback: ForLightning | None = None
) -> pytorch_lightning.Trainer:
    """Train for three steps, save after the second and at the end, and leave the truth about the last."""
    ranks = {"devices": dist.get_world_size(), "plugins": [_Ranks()]} if dist.is_initialized() else {}
    trainer = pytorch_lightning.Trainer(
        accelerator="cpu",
        strategy=strategy,
        max_steps=3,
        logger=False,
        callbacks=[callback or ForLightning(every_n_train_steps=2)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
        **{"devices": 1, **ranks},
    )
    batches = torch.utils.data.DataLoader([torch.arange(3, 11) for _ in range(8)], batch_size=2)
    module = Module(base, is_sharded=isinstance(strategy, ModelParallelStrategy))
    with _fsdp1_on_cpu():
        trainer.fit(module, batches)
    # FSDP gathers from its root, which is the LightningModule.
    write_truth(trainer.strategy.model, folder / "truth.safetensors")
    return trainer
