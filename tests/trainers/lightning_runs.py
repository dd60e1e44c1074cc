"""Runs of Lightning's Fabric and Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning_fabric
import pytorch_lightning
import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.strategies import FSDPStrategy as FabricFSDP
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import FSDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import FullyShardedDataParallel

from trainers.models import model_of
from trainers.run import Run
from trainers.tiny_llama import frozen_optimizer
from trainers.wrapping import fsdp2


class _FabricFSDP(FabricFSDP):  # type: ignore[misc]  # Lightning's types are not read
    """FSDPStrategy under another name: the strategy itself is refused without GPUs."""


class _FSDP(FSDPStrategy):  # type: ignore[misc]
    """FSDPStrategy under another name."""


@contextmanager
def _fsdp1_on_cpu() -> Iterator[None]:
    """Name the device of every FSDP1 module that is made, where Lightning leaves that to torch."""
    make = FullyShardedDataParallel.__init__

    def make_on_cpu(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **{**kwargs, "device_id": torch.device("cpu")})

    with patch.object(FullyShardedDataParallel, "__init__", make_on_cpu):
        yield


class _Ranks(LightningEnvironment):  # type: ignore[misc]
    """The ranks that there are already."""

    def __init__(self) -> None:
        super().__init__()
        self.set_global_rank(dist.get_rank())
        self.set_world_size(dist.get_world_size())

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def local_rank(self) -> int:
        return int(dist.get_rank())


class _Module(pytorch_lightning.LightningModule):  # type: ignore[misc]
    """A model below an attribute, as everybody's is."""

    def __init__(self, run: Run, model: Any) -> None:
        super().__init__()
        self.save_hyperparameters({"model_name": "tiny-org/Tiny-Llama", "lr": 0.0})
        self.run = run
        self.model = model

    def configure_model(self) -> None:
        if self.run.wrapping.fsdp == 2:
            fsdp2(self.model, self.run.wrapping)

    def training_step(self, batch: torch.Tensor, index: int) -> Any:
        return self.model(input_ids=batch, labels=batch, use_cache=False).loss

    def configure_optimizers(self) -> Any:
        return frozen_optimizer(self)


def leave_fabric(run: Run, folder: Path, base: Path) -> None:
    """Leave what `fabric.save` does under FSDP: the keys are the script's own."""
    fabric = lightning_fabric.Fabric(
        accelerator="cpu",
        devices=run.world_size,
        strategy=_FabricFSDP(state_dict_type="sharded"),
        plugins=[_Ranks()],
    )
    fabric.launch()
    (folder / run.path).mkdir(exist_ok=True)
    tokens = torch.arange(3, 19).reshape(2, 8)
    for epoch in range(run.epochs):
        with _fsdp1_on_cpu():
            prepared = fabric.setup_module(model_of(run, folder, epoch))
        optimizer = fabric.setup_optimizers(frozen_optimizer(prepared))
        fabric.backward(prepared(input_ids=tokens, labels=tokens, use_cache=False).loss)
        optimizer.step()
        step = 100 * (epoch + 1)
        state = {"model": prepared, "optimizer": optimizer, "step": step, "lr": 0.0}
        fabric.save(folder / run.path / f"step-{step}.ckpt", state)


def leave_trainer(run: Run, folder: Path, base: Path) -> None:
    """Leave what `ModelCheckpoint` does after each of two steps."""
    strategy = (
        _FSDP(state_dict_type="sharded")
        if run.wrapping.fsdp == 1
        else ModelParallelStrategy(save_distributed_checkpoint=True)
    )
    trainer = pytorch_lightning.Trainer(
        accelerator="cpu",
        devices=run.world_size,
        strategy=strategy,
        plugins=[_Ranks()],
        max_steps=2,
        logger=False,
        callbacks=[ModelCheckpoint(folder / run.path, every_n_train_steps=1, save_top_k=-1)],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
    )
    batches = torch.utils.data.DataLoader([torch.arange(3, 11) for _ in range(4)], batch_size=2)
    with _fsdp1_on_cpu():
        trainer.fit(_Module(run, model_of(run, folder)), batches)
