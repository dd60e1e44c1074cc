"""Fine-tune a model of transformers with FSDP1 as llama-recipes does, and leave its FULL_STATE_DICT file.

    torchrun --nproc-per-node 2 examples/finetune_fsdp1.py --model_name BASE --dist_checkpoint_root_folder RUN

The configuration, the folders and the files are those of llama-recipes (llama-cookbook). It leaves

    RUN/fine-tuned-BASE/BASE-<epoch>.pt   the full state dict, which no rank has gathered
    RUN/fine-tuned-BASE/train_params.yaml   the configuration, every value as text
    RUN/fine-tuned-BASE/BASE-<epoch>.pt.unshard.record.json   what training was and the model computed

and `unshard convert RUN MODEL` makes a folder of it that can be served.
"""

from __future__ import annotations

import argparse
import functools
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, ShardingStrategy, StateDictType
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from conversations import batch_of, example_of, read_pairs, share_of
from unshard.training import load_full
from unshard.training.integrations.llama_recipes import save_fsdp_model_checkpoint_full, save_train_params


@dataclass
class TrainConfig:
    """What llama-recipes calls `train_config`, as far as it is used here; each is an option."""

    model_name: str = ""
    tokenizer_name: str = ""
    dataset: str = ""  # a file of JSON lines with question and answer; without it, a few are built in
    enable_fsdp: bool = True
    num_epochs: int = 1
    max_train_step: int = 8  # of each epoch
    batch_size_training: int = 8
    lr: float = 1e-4
    weight_decay: float = 0.0
    seed: int = 42
    from_checkpoint: str = ""  # a file or a folder that an earlier run has left
    use_peft: bool = False
    save_model: bool = True
    save_optimizer: bool = False
    dist_checkpoint_root_folder: str = "model_checkpoints"
    dist_checkpoint_folder: str = "fine-tuned"


@dataclass
class FsdpConfig:
    """What llama-recipes calls `fsdp_config`, as far as it is used here."""

    mixed_precision: bool = torch.cuda.is_available()
    use_fp16: bool = False
    pure_bf16: bool = False
    sharding_strategy: ShardingStrategy = ShardingStrategy.FULL_SHARD
    checkpoint_type: StateDictType = StateDictType.FULL_STATE_DICT
    fsdp_activation_checkpointing: bool = False
    fsdp_cpu_offload: bool = False
    optimizer: str = "AdamW"


def parse_arguments() -> TrainConfig:
    """Return what the command line says, in llama-recipes' spelling."""
    parser = argparse.ArgumentParser(description="Fine-tune a model with FSDP1.")
    for field in fields(TrainConfig):
        if not isinstance(field.default, bool):
            parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    return TrainConfig(**vars(parser.parse_args()))


def main() -> None:
    """Train, and save after every epoch; every rank runs this."""
    train_config, fsdp_config = parse_arguments(), FsdpConfig()
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")  # FSDP1 is told to be old
    device = join_ranks()
    rank = dist.get_rank()
    torch.manual_seed(train_config.seed)
    tokenizer = AutoTokenizer.from_pretrained(train_config.tokenizer_name or train_config.model_name)
    model = AutoModelForCausalLM.from_pretrained(train_config.model_name, dtype=torch.float32)
    model = shard(model, fsdp_config, device)
    if train_config.from_checkpoint:
        # Every rank reads its own part of the weights and nothing else.
        load_full(model, train_config.from_checkpoint)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=train_config.lr, weight_decay=train_config.weight_decay
    )
    for epoch in range(train_config.num_epochs):
        for step, loss in enumerate(train_epoch(model, optimizer, tokenizer, train_config, device), 1):
            if rank == 0:
                print(f"step {step}/{train_config.max_train_step}   loss {loss:.4f}", flush=True)
        save_fsdp_model_checkpoint_full(model, optimizer, rank, train_config, epoch=epoch)
    if rank == 0:
        save_train_params(train_config, fsdp_config, rank)
    dist.destroy_process_group()


def join_ranks() -> torch.device:
    """Return the device of this rank, which `torchrun` has given a place among the others."""
    if not torch.cuda.is_available():
        dist.init_process_group("gloo")
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    return device


def shard(model: torch.nn.Module, config: FsdpConfig, device: torch.device) -> FullyShardedDataParallel:
    """Return the model in FSDP, every decoder layer a unit, the embeddings in the root unit."""
    layers = {type(module) for module in model.modules() if type(module).__name__.endswith("DecoderLayer")}
    bfloat16 = MixedPrecision(torch.bfloat16, torch.bfloat16, torch.bfloat16)
    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=functools.partial(transformer_auto_wrap_policy, transformer_layer_cls=layers),
        mixed_precision=bfloat16 if config.mixed_precision else None,
        sharding_strategy=config.sharding_strategy,
        device_id=device,
        limit_all_gathers=True,
    )


def train_epoch(
    model: FullyShardedDataParallel,
    optimizer: torch.optim.Optimizer,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainConfig,
    device: torch.device,
) -> Iterator[float]:
    """Do the steps of an epoch, and yield the mean loss of all ranks before each."""
    pairs = read_pairs(Path(config.dataset) if config.dataset else None)
    share = share_of(pairs, rank=dist.get_rank(), world_size=dist.get_world_size(), seed=config.seed)
    examples = [example_of(pair, tokenizer) for pair in share]
    model.train()
    for step in range(config.max_train_step):
        start = step * config.batch_size_training % len(examples)
        rows = examples[start : start + config.batch_size_training]
        batch = batch_of(rows, padding=tokenizer.pad_token_id or 0, device=device)
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach() / dist.get_world_size()
        dist.all_reduce(mean)
        yield float(mean)


if __name__ == "__main__":
    main()
