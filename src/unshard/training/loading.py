"""`load_full`: a model in training filled from any checkpoint that is read, every rank with its own parts.

    open ──▶ match to the module's own names ──▶ agree ──▶ every rank reads its boxes into its memory

All ranks look at the files and decide alike, and compare what they decided; nothing but that is sent, and
nothing of the model is touched before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
import torch.distributed as dist

from unshard.errors import InputError
from unshard.findings import Finding, finding
from unshard.progress import Progress, Silence
from unshard.readers import Places
from unshard.record.description import Record
from unshard.tensors import CastTensor
from unshard.training.filling.deciding import Request, decide, here
from unshard.training.filling.leading import Led
from unshard.training.filling.parts import Filler
from unshard.training.filling.unfilled import check_buffers, require_memory
from unshard.training.live.local_tensors import LocalModel, describe_locally
from unshard.training.live.resharding import let_go_of_copies
from unshard.training.optimizer_state import fill_optimizer
from unshard.training.ranks.process_group import TIMEOUT_SECONDS, ranks_of
from unshard.training.recording.describing_run import model_config_of


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was loaded into a model in training.

    Attributes:
        path: The checkpoint: of several steps, the one that was taken.
        tensors: How many tensors of the model were filled.
        bytes: Bytes of the parts that this rank filled, the optimizer's among them.
        findings: What a person should know; equal on every rank.
        seconds: How long it took.
        record: What training told of itself when it saved, or None where there is no record.
    """

    path: Path
    tensors: int
    bytes: int
    findings: tuple[Finding, ...]
    seconds: float
    record: Record | None


def load_full(
    model: torch.nn.Module,
    path: Places,
    *,
    base: str | Path | None = None,
    step: int | None = None,
    select: str | None = None,
    lora_alpha: float | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    model_config: object = None,
    strict: bool = True,
    timeout_seconds: float = TIMEOUT_SECONDS,
    group: dist.ProcessGroup | None = None,
    progress: Progress | None = None,
) -> Loaded:
    """Fill a model in training from a checkpoint of any layout. Every rank calls it.

    The model may be in FSDP1, FSDP2, DDP, tensor-parallel, compiled, with adapters of PEFT, or plain. Every
    rank reads the elements that it holds and no others, straight into their memory. A model that was built
    on the meta device must have got its memory before (`to_empty`).

    Args:
        model: The model, wrapped as it is trained.
        path: A run folder, a checkpoint folder, a file, or a model folder; or the folders of several nodes.
        base: The model training started from; needed where an adapter is merged into its weights.
        step: Which of several checkpoints side by side; the newest without it.
        select: The container or prefix of the model, where a file holds several.
        lora_alpha: The numerator of an adapter's scale, where no file tells it.
        optimizer: An optimizer of the model, to be filled from the state that `save_full` or `save_sharded`
            left with `optimizer=`.
        model_config: The model's configuration, where the module has none (`config`) itself.
        strict: Whether every tensor of the model must be in the checkpoint, and have a place in the model.
        timeout_seconds: How long a rank waits for the others.
        group: The ranks that hold the model; all of them without it.
        progress: Told of the bytes that this rank reads.

    Memory:
        Less than 16 MiB beyond the model's own, and metadata. The optimizer of FSDP1: torch gathers the
        state of one unit after the other.

    Raises:
        MatchError: Tensors are missing, unexpected, or of other shapes; raised on all ranks, and nothing of
            the model was changed. So are all errors below.
        InputError: The checkpoint cannot be read, or holds no state of an optimizer and one was asked for.
        OptionError: The model has parameters on the meta device, or an option means nothing.
        BaseModelError: `base` leads nowhere.
        DamagedFileError: A file is shorter than it should be, or changed while it was read: the model is
            filled in part, and must not be trained.
    """
    began = time.perf_counter()
    with ranks_of(group, timeout_seconds=timeout_seconds) as ranks:
        local = here(ranks, "looking at the model", lambda: _looked_at(model))
        config = model_config_of(model) if model_config is None else model_config
        request = Request(
            path, base, step, select, lora_alpha, config, strict=strict, with_optimizer=optimizer is not None
        )
        decided = decide(local, request, ranks)
        read = 0
        if optimizer is not None and decided.optimizer is not None:
            saved = decided.optimizer
            # Before the model: to have a state to fill, torch makes a step, which turns -0.0 into 0.0.
            read += here(ranks, "filling the optimizer", lambda: fill_optimizer(model, optimizer, saved))
        read += here(ranks, "filling the model", lambda: _fill(local, decided.led, progress or Silence()))
        lost = ranks.gather("telling what was lost", _losses(decided.led))
        told = ranks.gather("telling what was not filled", check_buffers(model))
    findings = (*decided.led.findings, *_told_of_losses(lost), *dict.fromkeys(chain.from_iterable(told)))
    seconds, filled = time.perf_counter() - began, len(decided.led.tensors)
    return Loaded(decided.checkpoint.path, filled, read, findings, seconds, decided.record)


def _looked_at(model: torch.nn.Module) -> LocalModel:
    require_memory(model)
    let_go_of_copies(model)
    return describe_locally(model, lambda _: True)


def _fill(local: LocalModel, led: Led, progress: Progress) -> int:
    """Read this rank's parts of the model; return their bytes.

    Raises:
        InputError: Files are damaged, or changed; part of the model has been overwritten.
    """
    work = [(part, tensor) for name, tensor in led.tensors.items() for part in local.tensors[name].parts]
    progress.start("load", sum(part.elements.nbytes for part, _ in work))
    filler, read = Filler(), 0
    try:
        with torch.no_grad():
            for part, tensor in work:
                count = filler.fill(part, tensor)
                progress.advance(count)
                read += count
        filler.require_unchanged()
    except InputError as error:
        error.hint = f"Part of the model has been overwritten: do not train it. {error.hint or ''}".strip()
        raise
    return read


def _losses(led: Led) -> dict[str, tuple[int, int]]:
    """Return how many values casts on this rank made infinite, and how many zero, by tensor."""
    tallies = {name: tensor.tally for name, tensor in led.tensors.items() if isinstance(tensor, CastTensor)}
    return {
        name: (t.overflowed, t.underflowed) for name, t in tallies.items() if t.overflowed or t.underflowed
    }


def _told_of_losses(by_rank: Sequence[Mapping[str, tuple[int, int]]]) -> Iterator[Finding]:
    """Yield what casts could not represent, of all ranks together."""
    for place, what in enumerate(("infinite", "zero")):
        counts = dict[str, int]()
        for losses in by_rank:
            for name, lost in losses.items():
                counts[name] = counts.get(name, 0) + lost[place]
        hit = {name: count for name, count in counts.items() if count}
        if hit:
            worst = max(hit, key=lambda name: hit[name])
            saw = f"values in {len(hit)} tensors became {what}, most of them in this one"
            yield finding("U164", subject=worst, saw=saw)
