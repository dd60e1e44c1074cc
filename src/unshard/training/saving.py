"""`save_full`: a model in training saved whole by all its ranks, without ever being gathered.

    describe ──▶ match, plan ──▶ agree ──▶ every rank writes its bytes ──▶ record ──▶ one rename

The files are planned to the byte from the shapes that all ranks know. Every rank writes what it holds to
its place in a hidden folder beside the output, which one rename makes visible: whatever fails, on whatever
rank, leaves nothing, and ends the call on all ranks with the same error.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from unshard.engines.local import write_side_file
from unshard.errors import OptionError, OutputExistsError
from unshard.findings import Finding
from unshard.plan import SideFile
from unshard.progress import Progress, Silence
from unshard.readers.record_files import record_name
from unshard.record.description import Record
from unshard.storage.folders import require_space
from unshard.training.filling.deciding import here
from unshard.training.optimizer_state import write_optimizer
from unshard.training.publishing.options import DTypeChoice, SaveOptions, require_options
from unshard.training.publishing.published import Published, published
from unshard.training.ranks.agreeing import agree, require_same
from unshard.training.ranks.process_group import TIMEOUT_SECONDS, ranks_of
from unshard.training.ranks.protocol import Ranks
from unshard.training.recording.building import Recorded, Telling, build_record, require_telling, texts_of
from unshard.training.recording.files import add_fingerprint, contents_of
from unshard.training.writing.assembling import AssembledFile
from unshard.training.writing.files import create_files, seal_files, write_files
from unshard.training.writing.giving import Seen, check_seen
from unshard.training.writing.staging import check_writers, find_writers, staged_output
from unshard.writers.model_card import plan_model_card
from unshard.writers.torch_file import is_torch_file_name

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Saved:
    """A finished save; equal on every rank.

    Attributes:
        path: The output: a folder, or one file.
        record: What training told of itself, or None where no record was asked for.
        findings: What a person should know.
        output_bytes: Size of the model: tensors, and the small files beside them.
        seconds: How long it took, on rank 0.
    """

    path: Path
    record: Record | None = field(repr=False)
    findings: tuple[Finding, ...]
    output_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Asked:
    """What was asked for, checked; `save_full` says what each means."""

    target: Path
    options: SaveOptions
    telling: Telling
    optimizer: torch.optim.Optimizer | None
    record: bool
    overwrite: bool
    durable: bool
    progress: Progress

    @property
    def is_file(self) -> bool:
        """Whether one file is written, and no folder."""
        return is_torch_file_name(self.target)


def save_full(
    model: torch.nn.Module,
    path: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    config: object = None,
    model_config: PreTrainedConfig | Mapping[str, object] | str | Path | None = None,
    base: str | Path | None = None,
    format: str = "safetensors",  # noqa: A002 - the word that users know
    dtype: DTypeChoice = "keep",
    adapter: str = "merge",
    max_shard_size: str | int = "5GB",
    optimizer: torch.optim.Optimizer | None = None,
    step: int | None = None,
    seed: int | None = None,
    data: str | None = None,
    prompts: Sequence[str] = (),
    serve_dtypes: Sequence[str] = ("base",),
    record: bool = True,
    fingerprint: bool = True,
    overwrite: bool = False,
    durable: bool = True,
    timeout_seconds: float = TIMEOUT_SECONDS,
    group: dist.ProcessGroup | None = None,
    progress: Progress | None = None,
) -> Saved:
    """Write a complete model that inference can load. Every rank calls it, with the same arguments.

    The model may be in FSDP1, FSDP2, HSDP, DDP, tensor-parallel, compiled, with adapters of PEFT, or plain,
    and is not changed. Nothing is gathered: every rank writes its own bytes into the final files.

    Args:
        model: The model, wrapped as it is trained.
        path: The folder to write; with `format="pt"` also a file that ends in .pt, .pth or .bin. Where ranks
            do not share it, those that see the folder of rank 0 write for the others.
        tokenizer: A tokenizer, a processor, or the folder of one; without it, the base's files are taken.
        config: The training configuration: a dataclass, a namespace, a mapping, TrainingArguments, the path
            of a YAML or JSON file, or a tuple of several of these. It is kept beside the record.
        model_config: The configuration of the model where it is not the model's own.
        base: What training started from: a folder, or a name on the hub; by default what the model's
            configuration says it was loaded from.
        format: `safetensors`, or `pt` for a plain state dict in torch's own format.
        dtype: `keep`, `base` for the dtypes of the base, a dtype, or a mapping from patterns of names to
            dtypes.
        adapter: `merge` puts an adapter into the weights, `keep` writes it by itself as PEFT does, `both`
            writes the merged model and the adapter in the folder `adapter/` inside it.
        max_shard_size: The largest file of tensors, as "5GB", "512MiB" or a number of bytes.
        optimizer: An optimizer of the model, whose state is written beside it, as DCP, for resuming.
        step: The step of training.
        seed: The seed; by default the one that the configuration names.
        data: What the model was trained on, in words.
        prompts: Texts that the fingerprint is taken of beside the built-in ones; they stand in the record.
        serve_dtypes: Dtypes that the model will be served in and gets digests in, beside its own.
        record: Whether to write `unshard.record.json`: what training tells of itself, and digests.
        fingerprint: Whether to run the model once the weights are safely written, in eval mode, and record
            its logits for a few sequences; without a record there is none.
        overwrite: Replace `path` if it exists; the old one is deleted after the new one is whole.
        durable: Wait until the disk has it all before the result appears.
        timeout_seconds: How long a rank waits for the others.
        group: The ranks that hold the model; all of them without it.
        progress: Told of the bytes that this rank writes.

    Memory:
        At most 32 MiB on every rank beyond the model's own, and metadata; a temporary file with the factors
        of an adapter that is merged. The optimizer of FSDP1: torch gathers one unit after the other.

    Raises:
        UnshardError: Every class of it, the same on all ranks; what was at `path` is there unchanged.
        RankError: A rank failed, died, or did not come in time; the error names it.
    """
    began = time.monotonic()
    told = dict(locals())
    with ranks_of(group, timeout_seconds=timeout_seconds) as ranks:

        def ask() -> _Asked:
            options = require_options(
                Path(path), format=format, dtype=dtype, adapter=adapter, max_shard_size=max_shard_size
            )
            texts_of("prompts", prompts)
            served = texts_of("serve_dtypes", serve_dtypes)
            telling = Telling(config, model_config, tokenizer, base, step, seed, data, served)
            require_telling(telling)
            if optimizer is not None and is_torch_file_name(Path(path)):
                hint = "Name a folder, or save the optimizer by itself."
                raise OptionError("optimizer", "is written into a folder", saw=Path(path).name, hint=hint)
            return _Asked(
                Path(path), options, telling, optimizer, record, overwrite, durable, progress or Silence()
            )

        asked = here(ranks, "reading the options", ask)
        require_same(ranks, _compared(told))
        findings, made, size = _save(model, asked, ranks)
        if made is not None and fingerprint:
            before = made
            made = add_fingerprint(
                model, asked.target, made, tokenizer, prompts, ranks=ranks, durable=durable
            )
            findings = (*findings, *made.findings[len(before.findings) :])
        seconds = ranks.broadcast("finishing", time.monotonic() - began)
    return Saved(asked.target, None if made is None else made.record, findings, size, seconds)


_COMPARED = (
    *("path", "format", "dtype", "adapter", "max_shard_size", "step", "seed", "data", "serve_dtypes"),
    *("prompts", "record", "fingerprint", "overwrite", "durable", "base", "timeout_seconds"),
)


def _compared(told: Mapping[str, Any]) -> dict[str, str]:
    """Return the arguments that must be alike, in words; of objects, whether there is one."""
    words = {name: str(told[name]) for name in _COMPARED}
    return {**words, "optimizer": "none" if told["optimizer"] is None else "given"}


def _save(
    model: torch.nn.Module, asked: _Asked, ranks: Ranks
) -> tuple[tuple[Finding, ...], Recorded | None, int]:
    """Write, record and commit; return what is told, the record, and the bytes of the model."""
    file_name = asked.target.name if asked.is_file else None
    with published(model, asked.telling, asked.options, ranks, file_name=file_name) as found:
        seen = Seen()
        files = here(
            ranks, "planning", lambda: [AssembledFile(planned, seen) for planned in found.contents.files]
        )
        agree(ranks, found.contents)
        contents = found.contents
        size = sum(f.size for f in contents.files) + sum(f.size for f in contents.side_files)
        with ExitStack() as stack:
            folder = here(ranks, "making the folder", lambda: _stage(asked, files, size, ranks, stack))
            place, writers = find_writers(folder, asked.target, ranks)
            checksums = write_files(
                files,
                place,
                ranks,
                writers=writers,
                subject=asked.target,
                durable=asked.durable,
                progress=asked.progress,
            )
            losses = ranks.gather("telling what was seen", seen.losses())
            told = _write_state(model, asked, ranks, place)
            made = _record(model, asked, found, ranks)

            def finish() -> None:
                if folder is not None:
                    seal_files(files, folder, checksums, subject=asked.target)
                    _write_beside(folder, asked, found, made)

            ranks.together("finishing the files", finish)
            # What follows is one rename. Before it, all ranks have done their part.
            ranks.together("committing", stack.close)
        recorded = () if made is None else made.findings
        seen_findings = check_seen(losses, found.live.buffers)
        written = check_writers(writers, asked.target, ranks)
    return (*found.findings, *seen_findings, *written, *told, *recorded), made, size


def _stage(
    asked: _Asked, files: Sequence[AssembledFile], size: int, ranks: Ranks, stack: ExitStack
) -> Path | None:
    """Make the hidden folder and the empty files in it, on rank 0; return it there."""
    if ranks.rank != 0:
        return None
    require_space(asked.target, size)
    beside = [record_name(asked.target, is_file=True)] if asked.is_file and asked.record else []
    staged = staged_output(
        asked.target, beside, is_file=asked.is_file, overwrite=asked.overwrite, durable=asked.durable
    )
    try:
        folder = stack.enter_context(staged)
    except OutputExistsError as error:
        error.hint = "Choose another output, or replace this one with overwrite=True."
        raise
    create_files(files, folder, asked.target)
    return folder


def _write_state(model: torch.nn.Module, asked: _Asked, ranks: Ranks, place: Path) -> tuple[Finding, ...]:
    """Write the state of the optimizer, where one is given."""
    if asked.optimizer is None:
        return ()
    return write_optimizer(model, asked.optimizer, place, ranks)


def _record(model: torch.nn.Module, asked: _Asked, found: Published, ranks: Ranks) -> Recorded | None:
    if not asked.record:
        return None
    tensors = found.contents.model.tensors  # an adapter beside them has no place in the published model
    return build_record(model, found.live, tensors, asked.telling, ranks=ranks, base=found.base)


def _write_beside(folder: Path, asked: _Asked, found: Published, made: Recorded | None) -> None:
    """Write the small files, the record among them."""
    content = {} if made is None else contents_of(asked.target, made)
    made_here = [SideFile(name, text, None, "training") for name, text in content.items()]
    side_files = (*found.contents.side_files, *made_here)
    if made is not None and not asked.is_file:
        side_files += plan_model_card(made.record, {file.name for file in side_files})
    for side_file in side_files:
        write_side_file(side_file, folder, subject=asked.target)
