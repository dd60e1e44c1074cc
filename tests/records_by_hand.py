"""Environments and records made by hand: one GPU machine of 2025, and what a test changes in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from unshard.environment.comparing import compare
from unshard.environment.description import EnvironmentComparison, Fact, Line, Training
from unshard.environment.recorded import training_of_record
from unshard.record.description import (
    RECORD_NAME,
    Code,
    Device,
    Distribution,
    Environment,
    ModelOfTraining,
    Record,
    RecordTensor,
)
from unshard.record.writing import record_to_bytes

H100 = Device("NVIDIA H100 80GB HBM3", "9.0", 85_899_345_920, 8)
T4 = Device("Tesla T4", "7.5", 16_106_127_360, 1)
ON_GPUS = Environment(
    python="3.11.9",
    system="Linux 5.15 x86_64, glibc 2.35",
    packages={
        "torch": "2.6.0+cu124",
        "transformers": "4.57.3",
        "tokenizers": "0.22.1",
        "accelerate": "1.10.0",
        "safetensors": "0.6.2",
    },
    accelerator="cuda",
    runtimes={"cuda": "12.4", "cudnn": "90100", "nccl": "2.21.5", "driver": "550.54.15"},
    devices=(H100,),
    bfloat16=True,
    default_dtype="float32",
    settings={"allow_tf32": "False", "deterministic_algorithms": "False"},
)
ON_CPU = replace(ON_GPUS, accelerator="cpu", runtimes={}, devices=(), bfloat16=False)
MODEL = ModelOfTraining("LlamaForCausalLM", {"model_type": "llama"}, "sdpa", 8, 8)
MEMORY = 64 << 30


def with_packages(environment: Environment, **versions: str | None) -> Environment:
    """Return an environment with packages of other versions, without those that are None."""
    named = {name.replace("_", "-"): version for name, version in versions.items()}
    packages: Mapping[str, str | None] = {**environment.packages, **named}
    return replace(environment, packages={n: v for n, v in packages.items() if v is not None})


def record(environment: Environment = ON_GPUS, **fields: Any) -> Record:
    """Return the record of a training in an environment."""
    made = Record(
        unshard="0.1.0",
        created="2026-01-01T00:00:00Z",
        step=None,
        seed=None,
        data=None,
        training=None,
        base=None,
        model=MODEL,
        tokenizer=None,
        code=Code((), None, None),
        environment=environment,
        distribution=Distribution("fsdp2", world_size=8),
        tensors={"model.norm.weight": RecordTensor((8,), "bfloat16", {})},
        fingerprint=None,
    )
    return replace(made, **fields)


def write_record(folder: Path, made: Record) -> Path:
    """Write a record into a folder; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD_NAME).write_bytes(record_to_bytes(made))
    return folder


def compared(
    training: Training | Record, here: Environment, *, memory: int | None = MEMORY
) -> EnvironmentComparison:
    """Return a training beside a machine."""
    if isinstance(training, Record):
        training = training_of_record(training, Path("run") / RECORD_NAME)
    return compare(training, here, memory=memory)


def codes(training: Training | Record, here: Environment, *, memory: int | None = MEMORY) -> set[str]:
    """Return the codes of what differences mean."""
    return {found.code for found in compared(training, here, memory=memory).findings}


def line(comparison: EnvironmentComparison, aspect: str) -> Line:
    """Return the line of an aspect."""
    return next(one for one in comparison.lines if one.aspect == aspect)


def inferred(**facts: str) -> Training:
    """Return what was inferred of a training; underscores in names stand for spaces."""
    told = {name.replace("_", " "): Fact(value, "a test") for name, value in facts.items()}
    return Training(path=Path("run"), facts=told)
