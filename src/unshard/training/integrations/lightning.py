"""For Lightning's Trainer: what inference needs, every so many steps and at the end.

    trainer = Trainer(strategy="fsdp", ..., callbacks=[UnshardCallback(every_n_train_steps=1000)])

    <default_root_dir>/unshard/step-N/    a model folder that can be served, with the record

Serves `lightning.pytorch` and `pytorch_lightning`: whichever the script has imported, or is installed.

Source:
    pytorch_lightning, strategies/fsdp.py (`_setup_model`: the LightningModule is the root unit),
    strategies/model_parallel.py (the script shards parts of it in `configure_model`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module, util
from pathlib import Path
from typing import Any

from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel

from unshard.errors import MissingExtraError, OptionError
from unshard.training.integrations.saving import require_known, save_beside
from unshard.training.live.module_tree import wrapped_in

FOLDER = "unshard"
_NAMES = ("lightning.pytorch", "pytorch_lightning")


def _installed() -> Any:
    """Return Lightning's package.

    Raises:
        MissingExtraError: There is none.
    """
    for name in _NAMES:
        if (imported := sys.modules.get(name)) is not None:
            return imported
    for name in _NAMES:
        if util.find_spec(name.partition(".")[0]) is not None:
            return import_module(name)
    raise MissingExtraError(
        "UnshardCallback", extra="hf", package="lightning", command="pip install lightning"
    )


class UnshardCallback(_installed().Callback):  # type: ignore[misc]  # whichever package there is
    """Saves a model that can be served, with the record, every so many steps and when training ends.

    Works for one device, DDP, FSDPStrategy and ModelParallelStrategy.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        *,
        every_n_train_steps: int = 0,
        at_end: bool = True,
        module: str | None = None,
        strict: bool = False,
        **options: Any,
    ) -> None:
        """Check the options.

        Args:
            dirpath: Where the folders of steps go; `unshard` in the Trainer's `default_root_dir` without it.
            every_n_train_steps: Save after so many steps; 0 for never.
            at_end: Whether to save when training has ended, also by a limit or an early stop.
            module: The attribute of the LightningModule that holds the model; without it the one part of it
                that is a model of transformers, or all of it.
            strict: Whether training ends where saving fails. If not, it is warned of.
            **options: What `save_full` is to be told. The tokenizer is the attribute of that name of the
                LightningModule, and the configuration its `hparams`, where they are not given.

        Raises:
            OptionError: The options mean nothing.
        """
        super().__init__()
        if every_n_train_steps < 0:
            raise OptionError("every_n_train_steps", "must not be below 0", saw=every_n_train_steps)
        require_known(options, Path(FOLDER))
        self.dirpath = dirpath
        self.every_n_train_steps = every_n_train_steps
        self.at_end = at_end
        self.module = module
        self.strict = strict
        self.options = options
        self._saved_step = -1

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        """Save, where as many steps have been done; batches of one step are one."""
        every = self.every_n_train_steps
        if every and trainer.global_step and trainer.global_step % every == 0:
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Save the model that training ends with, where that was asked for."""
        if self.at_end:
            self._save(trainer, pl_module)

    def _save(self, trainer: Any, pl_module: Any) -> None:
        step = int(trainer.global_step)
        if step == self._saved_step or trainer.fast_dev_run:
            return
        self._saved_step = step
        folder = Path(trainer.default_root_dir, FOLDER) if self.dirpath is None else Path(self.dirpath)
        inner = part_of(pl_module, self.module)
        told: dict[str, Any] = {"step": step, "overwrite": True}
        if hasattr(tokenizer := getattr(pl_module, "tokenizer", None), "save_pretrained"):
            told["tokenizer"] = tokenizer
        if pl_module.hparams:
            told["config"] = dict(pl_module.hparams)
        with _alone(trainer.strategy.model, inner) as model:
            save_beside(model, folder / f"step-{step}", {**told, **self.options}, strict=self.strict)


def part_of(pl_module: Any, name: str | None) -> Module:
    """Return the model in a LightningModule.

    Raises:
        OptionError: It has no such part.
    """
    if name is not None:
        found = pl_module.get_submodule(name) if name in dict(pl_module.named_modules()) else None
        if not isinstance(found, Module):
            parts = ", ".join(key for key, _ in pl_module.named_children())
            raise OptionError("module", "is no part of the LightningModule", saw=name, expected=parts)
        return found
    models = [child for _, child in pl_module.named_children() if hasattr(child, "save_pretrained")]
    return models[0] if len(models) == 1 else pl_module


@contextmanager
def _alone(root: Module, inner: Module) -> Iterator[Module]:
    """Yield the model without the LightningModule around it, in the wrapper around that where there is one.

    The root unit of FSDP1 holds the parameters of the model that no other unit has, and takes part in every
    forward pass; it goes on as it was.
    """
    wrapped = wrapped_in(root)
    if wrapped is None or not isinstance(root, (FullyShardedDataParallel, DistributedDataParallel)):
        yield inner
        return
    name, whole = wrapped
    root._modules[name] = inner
    try:
        yield root
    finally:
        root._modules[name] = whole
