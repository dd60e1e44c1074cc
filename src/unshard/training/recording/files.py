"""The files of a record on disk: written whole or not at all, and once more with the fingerprint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch.nn import Module

from unshard.readers.record_files import record_name
from unshard.record.description import RECORD_NAME
from unshard.record.writing import record_to_bytes
from unshard.storage.folders import new_files
from unshard.training.ranks.protocol import Ranks
from unshard.training.recording.building import Recorded
from unshard.training.recording.fingerprinting import take_fingerprint
from unshard.writers.torch_file import is_torch_file_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def contents_of(target: Path, recorded: Recorded) -> dict[str, bytes]:
    """Return the content of the files of a record, the record last, by their names in the folder.

    Args:
        target: The checkpoint: a folder, or one file of torch, which has its record alone beside it.
        recorded: The record.
    """
    if is_torch_file_name(target):
        return {record_name(target, is_file=True): recorded.files[RECORD_NAME]}
    beside = {name: content for name, content in recorded.files.items() if name != RECORD_NAME}
    return {**beside, RECORD_NAME: recorded.files[RECORD_NAME]}


def write_record(target: Path, recorded: Recorded, ranks: Ranks, *, durable: bool) -> None:
    """Put the files of a record into a folder, or beside a file; an earlier record is replaced.

    Every rank calls it; rank 0 writes.

    Raises:
        OutputError: They cannot be written; the same on every rank.
    """

    def write() -> None:
        if ranks.rank == 0:
            contents = contents_of(target, recorded)
            folder = target.parent if is_torch_file_name(target) else target
            with new_files(folder, list(contents), overwrite=True, durable=durable) as staged:
                for name, content in contents.items():
                    (staged / name).write_bytes(content)

    ranks.together("writing the record", write)


def add_fingerprint(
    model: Module,
    target: Path,
    recorded: Recorded,
    tokenizer: PreTrainedTokenizerBase | str | Path | None,
    prompts: Sequence[str],
    *,
    ranks: Ranks,
    durable: bool,
) -> Recorded:
    """Run a model whose weights are safely written, and write its record again, with how it behaved.

    Every rank calls it. Where the model cannot be run, the record stays as it is, and a finding says why.

    Args:
        model: The model, wrapped as it is trained.
        target: The folder or the file that it was saved in.
        recorded: The record that lies there.
        tokenizer: Makes tokens of texts; the folder of one makes none.
        prompts: Texts beside the built-in ones.
        ranks: All ranks.
        durable: Whether to wait until the disk has it.
    """
    maker = None if isinstance(tokenizer, str | Path) else tokenizer
    found, told = take_fingerprint(model, tokenizer=maker, prompts=prompts, ranks=ranks)
    if found is None:
        return replace(recorded, findings=(*recorded.findings, *told))
    record = replace(recorded.record, fingerprint=found)
    files = {**recorded.files, RECORD_NAME: record_to_bytes(record)}
    again = Recorded(record, files, (*recorded.findings, *told))
    write_record(target, again, ranks, durable=durable)
    return again
