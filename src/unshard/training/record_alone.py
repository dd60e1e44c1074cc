"""`record`: what training tells about itself, put beside a checkpoint that something else has saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch.nn import Module

from unshard.record.description import Record
from unshard.training.publishing.options import SaveOptions
from unshard.training.publishing.published import published
from unshard.training.ranks.process_group import TIMEOUT_SECONDS, ranks_of
from unshard.training.recording.building import Telling, build_record, require_telling, texts_of
from unshard.training.recording.files import add_fingerprint, write_record

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def record(
    model: Module,
    path: str | Path,
    *,
    config: object = None,
    model_config: PreTrainedConfig | Mapping[str, object] | str | Path | None = None,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    base: str | Path | None = None,
    step: int | None = None,
    seed: int | None = None,
    data: str | None = None,
    prompts: Sequence[str] = (),
    serve_dtypes: Sequence[str] = ("base",),
    digests: bool = True,
    fingerprint: bool = True,
    durable: bool = True,
    timeout_seconds: float = TIMEOUT_SECONDS,
    group: dist.ProcessGroup | None = None,
) -> Record:
    """Write `unshard.record.json` into a folder, beside what training saved there; return the record.

    Every rank calls it, with the same arguments, after the checkpoint is complete.

    Args:
        model: The model, wrapped or not, as it was saved.
        path: The folder; it is made if it is not there.
        config: The training configuration: a dataclass, a namespace, a mapping, TrainingArguments, the path
            of a YAML or JSON file, or a tuple of several of these. It is kept beside the record.
        model_config: The configuration of the model where it is not the model's own.
        tokenizer: A tokenizer, a processor, or the folder of one.
        base: What training started from: a folder, or a name on the hub; by default what the model's
            configuration says it was loaded from.
        step: The step of training.
        seed: The seed; by default the one that the configuration names.
        data: What the model was trained on, in words.
        prompts: Texts for the fingerprint, beside the built-in ones.
        serve_dtypes: Dtypes that the model will be served in and gets digests in, beside its own: `base` for
            those of the base, or a dtype's name.
        digests: Whether to hash the tensors, each rank what it holds.
        fingerprint: Whether to run the model on a few sequences, after everything else is written.
        durable: Whether to wait until the disk has it.
        timeout_seconds: How long ranks wait for one another.
        group: The ranks; all of them by default.

    Memory:
        4 MiB for every thread, of which a rank has one or two.

    Raises:
        UnshardError: The record cannot be made or written; the same on every rank.
    """
    texts_of("prompts", prompts)
    served = texts_of("serve_dtypes", serve_dtypes)
    telling = Telling(config, model_config, tokenizer, base, step, seed, data, served, digests)
    require_telling(telling)
    with ranks_of(group, timeout_seconds=timeout_seconds) as ranks:
        with published(model, telling, SaveOptions(), ranks) as found:
            tensors = found.contents.model.tensors
            made = build_record(model, found.live, tensors, telling, ranks=ranks, base=found.base)
        write_record(Path(path), made, ranks, durable=durable)
        if fingerprint:
            made = add_fingerprint(
                model, Path(path), made, telling.tokenizer, prompts, ranks=ranks, durable=durable
            )
    return made.record
