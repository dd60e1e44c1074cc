"""`save_sharded`: a checkpoint of DCP as torch's own writer leaves it, with everything that inference needs.

    .metadata, __<rank>_<i>.distcp    the module's tensors under its own names, without wrappers
    config.json, tokenizer.json, ...  the small files of the model, as `save_full` writes them
    adapter_config.json               where the module has an adapter of PEFT
    optimizer/                        the state of the optimizer, where one was given
    unshard.record.json               what training tells of itself

Every rank writes the boxes that it holds; what several ranks hold is dealt out among them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from unshard.engines.local import write_side_file
from unshard.errors import OutputError, listed
from unshard.findings import Finding
from unshard.plan import SideFile
from unshard.recipes.adapters import CONFIG
from unshard.storage.folders import require_space
from unshard.tensors import Box
from unshard.training.filling.deciding import here
from unshard.training.live.local_parts import LocalPart
from unshard.training.live.model import LiveModel
from unshard.training.live.source import LiveSource
from unshard.training.optimizer_state import write_optimizer
from unshard.training.publishing.adapter_config import with_adapter_config
from unshard.training.publishing.options import SaveOptions
from unshard.training.publishing.published import Published, published
from unshard.training.ranks.agreeing import require_same
from unshard.training.ranks.process_group import TIMEOUT_SECONDS, ranks_of
from unshard.training.ranks.protocol import Ranks
from unshard.training.recording.building import Recorded, Telling, build_record, require_telling, texts_of
from unshard.training.recording.files import add_fingerprint
from unshard.training.saving import Saved
from unshard.training.writing.sharded import Chunk, write_chunks
from unshard.training.writing.staging import find_writers, staged_output

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

_INDEX = ".index.json"


@dataclass(frozen=True, slots=True)
class _Asked:
    """What was asked for; `save_sharded` says what each means."""

    target: Path
    telling: Telling
    optimizer: torch.optim.Optimizer | None
    record: bool
    overwrite: bool
    durable: bool


def save_sharded(
    model: torch.nn.Module,
    path: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    config: object = None,
    model_config: PreTrainedConfig | Mapping[str, object] | str | Path | None = None,
    base: str | Path | None = None,
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
) -> Saved:
    """Write a checkpoint of DCP, with the record and the model's small files. Every rank calls it.

    torch loads it with `torch.distributed.checkpoint.load`, `load_full` on any number of ranks, and
    `unshard convert` makes a model of it without being told anything more.

    Args:
        model: The model, wrapped as it is trained.
        path: The folder to write, on a file system that all ranks share.
        tokenizer: A tokenizer, a processor, or the folder of one; without it, the base's files are taken.
        config: The training configuration, as `save_full` takes it.
        model_config: The configuration of the model where it is not the model's own.
        base: What training started from: a folder, or a name on the hub; by default what the model's
            configuration says it was loaded from.
        optimizer: An optimizer of the model, whose state is written beside it for resuming.
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

    Memory:
        What torch's writer copies: one part of a tensor at a time where it is not the whole of its storage.
        The optimizer of FSDP1: torch gathers one unit after the other.

    Raises:
        OutputError: Ranks do not share the folder, or it cannot be written.
        UnshardError: Every class of it, the same on all ranks; what was at `path` is there unchanged.
        RankError: A rank failed, died, or did not come in time; the error names it.
    """
    began = time.monotonic()
    told = dict(locals())
    with ranks_of(group, timeout_seconds=timeout_seconds) as ranks:

        def ask() -> _Asked:
            texts_of("prompts", prompts)
            served = texts_of("serve_dtypes", serve_dtypes)
            telling = Telling(config, model_config, tokenizer, base, step, seed, data, served)
            require_telling(telling)
            return _Asked(Path(path), telling, optimizer, record, overwrite, durable)

        asked = here(ranks, "reading the options", ask)
        require_same(ranks, _compared(told))
        findings, made, size = _save(model, asked, ranks)
        if made is not None and fingerprint:
            before = len(made.findings)
            made = add_fingerprint(
                model, asked.target, made, tokenizer, prompts, ranks=ranks, durable=durable
            )
            findings = (*findings, *made.findings[before:])
        seconds = ranks.broadcast("finishing", time.monotonic() - began)
    return Saved(asked.target, None if made is None else made.record, findings, size, seconds)


_COMPARED = (
    *("path", "step", "seed", "data", "prompts", "serve_dtypes", "record", "fingerprint", "overwrite"),
    *("durable", "base", "timeout_seconds"),
)


def _compared(told: Mapping[str, Any]) -> dict[str, str]:
    """Return the arguments that must be alike, in words; of an optimizer, whether there is one."""
    words = {name: str(told[name]) for name in _COMPARED}
    return {**words, "optimizer": "none" if told["optimizer"] is None else "given"}


def _save(
    model: torch.nn.Module, asked: _Asked, ranks: Ranks
) -> tuple[tuple[Finding, ...], Recorded | None, int]:
    """Write, record and commit; return what is told, the record, and the bytes of the model."""
    with published(model, asked.telling, SaveOptions(), ranks) as found:
        beside = here(ranks, "describing the adapter", lambda: _side_files(model, found))
        size = found.live.checkpoint.nbytes + sum(each.size for each in beside)
        with ExitStack() as stack:
            folder = here(ranks, "making the folder", lambda: _stage(asked, size, ranks, stack))
            place = _require_shared(folder, asked.target, ranks)
            write_chunks(place, _chunks(found.live, ranks.rank), ranks)
            told = () if asked.optimizer is None else write_optimizer(model, asked.optimizer, place, ranks)
            made = _record(model, asked, found, ranks)

            def finish() -> None:
                if folder is not None:
                    files = {} if made is None else made.files
                    own = [SideFile(name, content, None, "training") for name, content in files.items()]
                    for each in (*beside, *own):
                        write_side_file(each, folder, subject=asked.target)

            ranks.together("finishing the files", finish)
            ranks.together("committing", stack.close)
    recorded = () if made is None else made.findings
    return (*found.findings, *told, *recorded), made, size


def _stage(asked: _Asked, size: int, ranks: Ranks, stack: ExitStack) -> Path | None:
    """Make the hidden folder, on rank 0; return it there."""
    if ranks.rank != 0:
        return None
    require_space(asked.target, size)
    return stack.enter_context(
        staged_output(asked.target, [], is_file=False, overwrite=asked.overwrite, durable=asked.durable)
    )


def _require_shared(folder: Path | None, target: Path, ranks: Ranks) -> Path:
    """Return the hidden folder as this rank sees it.

    Raises:
        OutputError: Not all ranks do.
    """
    place, writers = find_writers(folder, target, ranks)
    blind = [str(rank) for rank in range(ranks.size) if rank not in writers]
    if blind:
        raise OutputError(
            target,
            "is not seen by all ranks, and every rank of DCP writes its own files",
            saw=f"rank {listed(blind, at_most=8)} of {ranks.size} without the folder that rank 0 made",
            expected="a file system that all ranks share",
            hint="Save to a shared disk; or use save_full, whose ranks send what they cannot write.",
        )
    return place


def _chunks(live: LiveModel, rank: int) -> Iterator[Chunk]:
    """Yield what this rank writes of a model: what it owns, and, on rank 0, tensors without elements."""
    held = live.holdings.held
    for name, tensor in live.checkpoint.tensors.items():
        dtype = getattr(torch, tensor.dtype.name)
        for piece in tensor.pieces:
            assert isinstance(piece.source, LiveSource)
            if piece.source.rank == rank and piece.box.volume:
                elements = held[piece.source.slot].to(dtype)
                yield Chunk(name, tensor.shape, LocalPart(piece.box, elements))
        if rank == 0 and 0 in tensor.shape:
            nothing = LocalPart(Box.whole(tensor.shape), torch.empty(tensor.shape, dtype=dtype))
            yield Chunk(name, tensor.shape, nothing)


def _side_files(model: torch.nn.Module, found: Published) -> list[SideFile]:
    """Return the small files that lie beside the tensors."""
    files = [each for each in found.contents.side_files if not each.name.endswith(_INDEX)]
    with tempfile.TemporaryDirectory() as folder:
        adapted = with_adapter_config(model, found.live, Path(folder))
        if (path := adapted.checkpoint.side_files.get(CONFIG)) is not None:
            files.append(SideFile(CONFIG, path.read_bytes(), None, "training"))
    return files


def _record(model: torch.nn.Module, asked: _Asked, found: Published, ranks: Ranks) -> Recorded | None:
    if not asked.record:
        return None
    tensors = found.contents.model.tensors
    return build_record(model, found.live, tensors, asked.telling, ranks=ranks, base=found.base)
