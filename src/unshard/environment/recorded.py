"""What is known of the training of a checkpoint: what was recorded, and for the rest what can be inferred."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from unshard.base.configuration import parse_config, read_config
from unshard.checkpoint import Checkpoint
from unshard.dtypes import DTYPES, DType
from unshard.environment.description import Fact, Training
from unshard.environment.inferring import facts_of_checkpoint, quantisation_method
from unshard.environment.inferring_versions import needs_of_files
from unshard.environment.this_machine import PACKAGES, RUNTIMES, SETTINGS
from unshard.errors import BaseModelError, InputError
from unshard.readers import open_checkpoint
from unshard.readers.rendering import cut, listed
from unshard.record.description import RECORD_NAME, Device, Distribution, Environment, Record
from unshard.record.reading import read_record
from unshard.sizes import counted, format_size
from unshard.tensors import element_count

# What the readers tell of a record that lies there and cannot be read.
_OF_RECORDS = frozenset(("U724",))


def find_training(path: Path, *, step: int | None = None) -> Training:
    """Return what is known of the training that left the checkpoint or the model at `path`.

    A record tells of it even where the checkpoint itself cannot be read.

    Args:
        path: A run, a checkpoint, a file, or a model folder.
        step: Which of several steps; the newest without it.

    Raises:
        DamagedFileError: The record that lies there is none.
        InputError: There is no record, and no checkpoint that can be read.
    """
    try:
        checkpoint = open_checkpoint(path, step=step)
    except InputError:
        place = path / RECORD_NAME
        record = read_record(place) if path.is_dir() else None
        if record is None:
            raise
        return training_of_record(record, place)
    return training_of_checkpoint(checkpoint)


def training_of_checkpoint(checkpoint: Checkpoint) -> Training:
    """Return what is known of the training that left a checkpoint."""
    config = _config(checkpoint)
    inferred = Training(
        path=checkpoint.path,
        facts=facts_of_checkpoint(checkpoint, config),
        needs=dict(needs_of_files(checkpoint)),
        config=config,
        weights_bytes=checkpoint.nbytes or None,
        halved_bytes=_halved((t.dtype, element_count(t)) for t in checkpoint.tensors.values()) or None,
        findings=tuple(found for found in checkpoint.findings if found.code in _OF_RECORDS),
    )
    if checkpoint.record is None:
        return inferred
    told = training_of_record(checkpoint.record, checkpoint.record_path)
    return replace(
        inferred,
        record=told.record,
        facts={**inferred.facts, **told.facts},
        config=config or told.config,
        devices=told.devices,
    )


def training_of_record(record: Record, place: Path | None) -> Training:
    """Return what a record tells of the training."""
    sizes = [(DTYPES[t.dtype], math.prod(t.shape)) for t in record.tensors.values()]
    return Training(
        path=None if place is None else place.parent,
        record=place,
        facts={aspect: Fact(value) for aspect, value in _told(record)},
        config=record.model.config or {},
        weights_bytes=sum(dtype.itemsize * count for dtype, count in sizes) or None,
        halved_bytes=_halved(sizes) or None,
        devices=record.environment.devices,
    )


def aspects_of(environment: Environment) -> Iterator[tuple[str, str]]:
    """Yield everything that an environment tells, as texts by aspect; packages by their names."""
    yield "python", cut(environment.python)
    yield "system", cut(environment.system)
    yield from _known(environment.packages, PACKAGES)
    if environment.accelerator is not None:
        yield "accelerator", cut(environment.accelerator)
    if environment.devices:
        yield "devices", listed([_device(device) for device in environment.devices], at_most=8)
    yield from _known(environment.runtimes, RUNTIMES)
    if environment.bfloat16 is not None:
        yield "bfloat16", "by hardware" if environment.bfloat16 else "by software"
    if environment.default_dtype is not None:
        yield "default dtype", cut(environment.default_dtype)
    yield from _known(environment.settings, SETTINGS)


def _known(values: Mapping[str, str], names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield those of some values that have a known name, in the order of these."""
    return ((name, cut(values[name])) for name in names if name in values)


def _told(record: Record) -> Iterator[tuple[str, str]]:
    """Yield what a record tells, as texts fit for a line, by aspect."""
    yield from aspects_of(record.environment)
    if (weights := _main_dtype(record)) is not None:
        yield "dtype of weights", weights
    if (computed := _computed(record)) is not None:
        yield "dtype of computing", computed
    if attention := record.model.attention or (record.fingerprint and record.fingerprint.attention):
        yield "attention", cut(attention)
    if isinstance(model_type := (record.model.config or {}).get("model_type"), str):
        yield "model type", cut(model_type)
    if (method := quantisation_method(record.model.config or {})) is not None:
        yield "quantisation", method
    if record.model.adapter:
        yield "adapter", "PEFT"
    yield "distribution", _spread(record.distribution)
    yield "torch.compile", "yes" if record.distribution.compiled else "no"


def _computed(record: Record) -> str | None:
    """Return the dtype that training computed in."""
    precision = record.distribution.precision
    ran = record.fingerprint.computed if record.fingerprint else None
    told = precision.autocast or precision.parameters or ran or _main_dtype(record)
    return None if told is None else cut(told)


def _main_dtype(record: Record) -> str | None:
    """Return the floating dtype that most numbers had in training."""
    counts: dict[str, int] = {}
    for tensor in record.tensors.values():
        if DTYPES[tensor.dtype].kind == "float":
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + math.prod(tensor.shape)
    return max(counts, key=lambda name: counts[name], default=None)


def _spread(distribution: Distribution) -> str:
    how = "" if distribution.strategy is None else f" ({cut(distribution.strategy)})"
    return f"{distribution.kind}{how}, {counted(distribution.world_size, 'rank')}"


def _device(device: Device) -> str:
    size = None if device.memory_bytes is None else format_size(device.memory_bytes)
    facts = [f"capability {cut(device.capability)}" if device.capability else None, size]
    told = ", ".join(fact for fact in facts if fact)
    return f"{device.count} x {cut(device.name)}" + (f" ({told})" if told else "")


def _halved(sizes: Iterable[tuple[DType, int]]) -> int:
    """Return the bytes of so many numbers, those of more than 16 bits cut to that where they are floating."""
    return sum((min(d.itemsize, 2) if d.kind == "float" else d.itemsize) * count for d, count in sizes)


def _config(checkpoint: Checkpoint) -> Mapping[str, object]:
    """Return the config.json that lies with a checkpoint; an empty one where there is none to be read."""
    try:
        if "config.json" in checkpoint.side_files:
            return read_config(checkpoint.side_files["config.json"])[1]
        if "config.json" in checkpoint.embedded:
            return parse_config(checkpoint.embedded["config.json"], checkpoint.path)
    except BaseModelError:  # `check` tells what is wrong with it
        pass
    return {}
