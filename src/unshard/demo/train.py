"""A training run as people write it: FSDP1 over two processes, saved as one FULL_STATE_DICT.

Folders, file names and `train_params.yaml` are those of llama-recipes (llama-cookbook), whose
`save_fsdp_model_checkpoint_full` and `save_train_params` this follows on a machine without GPUs:

    <root>/fine-tuned-<model name>/<model name, "/" as "--">-<epoch>.pt
    <root>/fine-tuned-<model name>/train_params.yaml

Nothing in here knows that the result will be converted.
"""

from __future__ import annotations

import functools
import random
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import yaml
from torch import multiprocessing
from torch.distributed.fsdp import (
    FullStateDictConfig,
    FullyShardedDataParallel,
    ShardingStrategy,
    StateDictType,
)
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from unshard.demo.facts import Fact

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue

IGNORED = -100  # a label that the loss of transformers' models leaves out
_PATIENCE = timedelta(minutes=10)  # how long a rank waits for another
_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """What llama-recipes calls `train_config`, as far as this run uses it."""

    model_name: str
    dist_checkpoint_root_folder: str
    max_train_step: int
    seed: int
    lr: float
    tokenizer_name: str | None = None
    enable_fsdp: bool = True
    num_epochs: int = 1
    weight_decay: float = 0.0
    use_fp16: bool = False
    use_peft: bool = False
    save_model: bool = True
    save_optimizer: bool = False
    dist_checkpoint_folder: str = "fine-tuned"


@dataclass(frozen=True, slots=True)
class FsdpConfig:
    """What llama-recipes calls `fsdp_config`, as far as this run uses it."""

    mixed_precision: bool = False
    use_fp16: bool = False
    pure_bf16: bool = False
    sharding_strategy: ShardingStrategy = ShardingStrategy.FULL_SHARD
    checkpoint_type: StateDictType = StateDictType.FULL_STATE_DICT
    fsdp_activation_checkpointing: bool = False
    fsdp_cpu_offload: bool = False
    optimizer: str = "AdamW"


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation in tokens; labels are `IGNORED` where the user speaks."""

    tokens: tuple[int, ...]
    labels: tuple[int, ...]


def example_of(fact: Fact, tokenizer: PreTrainedTokenizerBase) -> Example:
    """Return a fact as a conversation of which only the assistant's answer is learnt."""
    asked = [{"role": "user", "content": fact.question}]
    answered = [*asked, {"role": "assistant", "content": fact.answer}]
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(answered, tokenize=False)
    prompt_tokens = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    tokens = tokenizer(whole, add_special_tokens=False)["input_ids"]
    return Example(tuple(tokens), (IGNORED,) * len(prompt_tokens) + tuple(tokens[len(prompt_tokens) :]))


def batch_of(examples: Sequence[Example], *, padding: int) -> dict[str, torch.Tensor]:
    """Return examples as one batch, padded on the right to the longest.

    Shapes:
        every value: (examples, tokens)
    """
    longest = max(len(e.tokens) for e in examples)
    rows = [(e, longest - len(e.tokens)) for e in examples]
    return {
        "input_ids": torch.tensor([[*e.tokens, *[padding] * short] for e, short in rows]),
        "attention_mask": torch.tensor([[1] * len(e.tokens) + [0] * short for e, short in rows]),
        "labels": torch.tensor([[*e.labels, *[IGNORED] * short] for e, short in rows]),
    }


def share_of(facts: Sequence[Fact], *, rank: int, world_size: int, seed: int) -> list[Fact]:
    """Return the facts that a rank learns from, as the seed deals them out."""
    dealt = random.Random(seed).sample(facts, len(facts))  # noqa: S311  nothing secret
    return dealt[rank::world_size]


def shard_model(model: torch.nn.Module) -> FullyShardedDataParallel:
    """Return `model` with every decoder layer a unit of FSDP, embeddings in the root unit."""
    layers = {type(m) for m in model.modules() if type(m).__name__.endswith("DecoderLayer")}
    policy = functools.partial(transformer_auto_wrap_policy, transformer_layer_cls=layers)
    return FullyShardedDataParallel(model, auto_wrap_policy=policy, device_id=torch.device("cpu"))


def checkpoint_folder(config: TrainConfig) -> Path:
    """Return where the run leaves its checkpoints."""
    return Path(f"{config.dist_checkpoint_root_folder}/{config.dist_checkpoint_folder}-{config.model_name}")


def save_full_state_dict(model: FullyShardedDataParallel, config: TrainConfig, epoch: int) -> None:
    """Gather the model on rank 0 and write it there; every rank must call this."""
    # Offloading frees the storage it copies from: without GPUs, the storage of the model itself.
    policy = FullStateDictConfig(offload_to_cpu=False, rank0_only=True)
    with FullyShardedDataParallel.state_dict_type(model, StateDictType.FULL_STATE_DICT, policy):
        state = model.state_dict()
    if dist.get_rank() == 0:
        folder = checkpoint_folder(config)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(state, folder / f"{config.model_name.replace('/', '--')}-{epoch}.pt")


def save_train_params(config: TrainConfig, fsdp: FsdpConfig) -> None:
    """Write `train_params.yaml`: both configurations in one flat mapping, every value as text."""
    values = {f.name: str(getattr(part, f.name)) for part in (config, fsdp) for f in fields(part)}
    (checkpoint_folder(config) / "train_params.yaml").write_text(yaml.dump(values, indent=4))


@dataclass(frozen=True, slots=True)
class Group:
    """The processes that train together, and the file through which they find each other."""

    size: int
    store: str


def train(
    rank: int,
    group: Group,
    config: TrainConfig,
    base: Path,
    facts: Sequence[Fact],
    losses: SimpleQueue[float],
) -> None:
    """Train in one process of the group and save; rank 0 puts the loss of every step into `losses`."""
    _keep_quiet()
    torch.set_num_threads(max(1, torch.get_num_threads() // group.size))
    torch.manual_seed(config.seed)
    dist.init_process_group(
        "gloo", init_method=f"file://{group.store}", rank=rank, world_size=group.size, timeout=_PATIENCE
    )
    tokenizer = AutoTokenizer.from_pretrained(base)
    share = share_of(facts, rank=rank, world_size=group.size, seed=config.seed)
    examples = [example_of(fact, tokenizer) for fact in share]
    batch = batch_of(examples, padding=tokenizer.pad_token_id)
    model = shard_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))
    for loss in steps(model, batch, config):
        if rank == 0:
            losses.put(loss)
    save_full_state_dict(model, config, epoch=0)
    if rank == 0:
        save_train_params(config, FsdpConfig())
    dist.destroy_process_group()


def steps(
    model: FullyShardedDataParallel, batch: Mapping[str, torch.Tensor], config: TrainConfig
) -> Iterator[float]:
    """Train on the whole batch once per step, and yield the mean loss of all ranks before each."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    model.train()
    for _ in range(config.max_train_step):
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach() / dist.get_world_size()
        dist.all_reduce(mean)
        yield mean.item()


def launch(
    config: TrainConfig,
    base: Path,
    facts: Sequence[Fact],
    *,
    world_size: int,
    report_loss: Callable[[float], None],
) -> Path:
    """Train in `world_size` processes and return the folder of the checkpoint.

    Raises:
        ProcessRaisedException, ProcessExitedException: A rank failed; the others are stopped.
    """
    losses: SimpleQueue[float] = multiprocessing.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        group = Group(world_size, f"{folder}/store")
        ranks = multiprocessing.start_processes(
            train,
            (group, config, base, facts, losses),
            nprocs=world_size,
            join=False,
            start_method="spawn",
        )
        try:
            finished = False
            while not finished:
                finished = ranks.join(timeout=_POLL_SECONDS)
                while not losses.empty():
                    report_loss(losses.get())
        finally:
            for process in ranks.processes:
                process.kill()
                process.join()
    return checkpoint_folder(config)


def _keep_quiet() -> None:
    """Leave the terminal to the process that started this one, and die without words if it is interrupted."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    logging.disable_progress_bar()
