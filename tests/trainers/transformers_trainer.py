"""Runs of transformers' own Trainer."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments

from trainers.accelerate_on_cpu import fsdp_on_cpu
from trainers.models import model_of
from trainers.run import Run


def leave(run: Run, folder: Path, base: Path) -> None:
    """Leave the checkpoints of two steps, each of the weights that training began with."""
    model = model_of(run, folder)
    row = torch.arange(3, 11)
    rows = [{"input_ids": row, "labels": row} for _ in range(8)]
    with fsdp_on_cpu():
        arguments = TrainingArguments(
            output_dir=str(folder / run.path),
            use_cpu=True,
            fsdp=True,
            fsdp_config={
                "version": run.wrapping.fsdp,
                "state_dict_type": "SHARDED_STATE_DICT",
                "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
                "use_orig_params": run.wrapping.use_orig_params,
                "sync_module_states": False,
            },
            learning_rate=0.0,
            weight_decay=0.0,
            max_steps=2,
            save_steps=1,
            per_device_train_batch_size=1,
            report_to=[],
            disable_tqdm=True,
        )
        Trainer(model=model, args=arguments, train_dataset=rows).train()
