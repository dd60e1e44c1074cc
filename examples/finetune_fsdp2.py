"""Fine-tune a model of transformers with FSDP2, and leave a folder that can be served.

    torchrun --nproc-per-node 2 examples/finetune_fsdp2.py --model BASE --out RUN
    torchrun --nproc-per-node 2 examples/finetune_fsdp2.py --model BASE --out RUN --resume RUN/step-8

Runs on GPUs where there are some, with bfloat16 for the products, and on the CPU otherwise. It leaves

    RUN/step-N    a model folder (weights, config.json, tokenizer), the record of the training, and the
                  state of the optimizer

and `vllm serve RUN/step-N` needs nothing else. `unshard verify RUN/step-N` shows that the model computes
what it computed here.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from conversations import batch_of, example_of, read_pairs, share_of
from unshard.training import load_full, save_full


@dataclass(frozen=True)
class Config:
    """How to train; the record keeps all of it."""

    model: str
    out: Path
    data: Path | None
    resume: Path | None
    steps: int
    save_every: int
    batch_size: int
    lr: float
    weight_decay: float
    seed: int


def parse_arguments() -> Config:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description="Fine-tune a model with FSDP2.")
    parser.add_argument("--model", required=True, help="the base: a folder, or a name on the hub")
    parser.add_argument("--out", required=True, type=Path, help="where the steps go")
    parser.add_argument("--data", type=Path, help="JSON lines with question and answer (a few are built in)")
    parser.add_argument("--resume", type=Path, help="go on from this step: RUN/step-N")
    parser.add_argument("--steps", type=int, default=8, help="how many steps to train in all")
    parser.add_argument("--save-every", type=int, default=0, help="save after so many steps; 0: at the end")
    parser.add_argument("--batch-size", type=int, default=8, help="conversations for each rank and step")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    return Config(**vars(parser.parse_args()))


def main() -> None:
    """Train, and save; every rank runs this."""
    config = parse_arguments()
    device = join_ranks()
    torch.manual_seed(config.seed)
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    model = shard(AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32), device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    done = 0
    if config.resume is not None:
        # Every rank reads its own part of the weights and of the optimizer's state, and nothing else.
        loaded = load_full(model, config.resume, optimizer=optimizer)
        done = loaded.record.step or 0 if loaded.record else 0
    model.train()
    batches = repeat(config, tokenizer, device)
    for step, batch in zip(range(1, config.steps + 1), batches, strict=False):
        if step <= done:
            continue  # the batches that an earlier run has seen
        loss = train_step(model, optimizer, batch)
        if dist.get_rank() == 0:
            print(f"step {step}/{config.steps}   loss {loss:.4f}", flush=True)
        if step == config.steps or (config.save_every and step % config.save_every == 0):
            save(model, optimizer, tokenizer, config, step)
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


def shard(model: torch.nn.Module, device: torch.device) -> Any:  # noqa: ANN401  torch has no types
    """Return the model, every decoder layer and what is left over spread over all ranks."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    on_gpu = device.type == "cuda"
    precision = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if on_gpu else MixedPrecisionPolicy()
    layers = [module for module in model.modules() if type(module).__name__.endswith("DecoderLayer")]
    for module in (*layers, model):
        fully_shard(module, mesh=mesh, mp_policy=precision)
    return model


def repeat(
    config: Config, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield this rank's batches, over and over."""
    pairs = share_of(
        read_pairs(config.data), rank=dist.get_rank(), world_size=dist.get_world_size(), seed=config.seed
    )
    examples = [example_of(pair, tokenizer) for pair in pairs]
    padding = tokenizer.pad_token_id or 0
    while True:
        for start in range(0, len(examples), config.batch_size):
            yield batch_of(examples[start : start + config.batch_size], padding=padding, device=device)


def train_step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor]
) -> float:
    """Do one step, and return the mean loss of all ranks before it."""
    loss = model(**batch, use_cache=False).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    mean = loss.detach() / dist.get_world_size()
    dist.all_reduce(mean)
    return float(mean)


def save(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    tokenizer: PreTrainedTokenizerBase,
    config: Config,
    step: int,
) -> None:
    """Leave the model, the record and what resuming needs; every rank calls this, and none gathers."""
    saved = save_full(
        model,
        config.out / f"step-{step}",
        tokenizer=tokenizer,
        config=config,
        base=config.model,
        optimizer=optimizer,
        step=step,
        seed=config.seed,
        data="the built-in conversations" if config.data is None else str(config.data),
    )
    if dist.get_rank() == 0:
        print(f"saved {saved.path} in {saved.seconds:.1f} s", flush=True)
        for found in saved.findings:
            print(f"  {found.code} {found.title}: {found.subject} ({found.saw})", flush=True)


if __name__ == "__main__":
    main()
