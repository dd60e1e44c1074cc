"""The record of a training, built by all ranks: what the script tells, what the model is, what it holds.

`build_record` is what saving calls. What may be wrong with what a script tells is found by
`require_telling`, before anything is written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch.nn import Module

from unshard import __version__
from unshard.base import Base
from unshard.dtypes import DType
from unshard.engines.workers import default_workers
from unshard.errors import OptionError
from unshard.findings import Finding
from unshard.match.dtype_policy import dtype_of, require_policy
from unshard.match.needs import needs_of
from unshard.record.description import RECORD_NAME, Environment, Record, TrainingConfig
from unshard.record.secrets import without_secrets_in_text
from unshard.record.writing import record_to_bytes
from unshard.tensors import Tensor
from unshard.training.live.model import LiveModel
from unshard.training.ranks.protocol import Ranks
from unshard.training.recording.describing_run import (
    describe_base,
    describe_code,
    describe_model,
    describe_tokenizer,
    model_config_of,
)
from unshard.training.recording.digests import Digests, hash_owned, record_tensors, uncast
from unshard.training.recording.environment import gather_environment
from unshard.training.recording.training_config import GivenConfig, read_training_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

# More threads of one rank do not make it faster: the others hash, too.
_MOST_WORKERS = 2
_BITS = 64


@dataclass(frozen=True, slots=True)
class Telling:
    """What a training script tells of itself; all of it is optional.

    Attributes:
        config: The training configuration: a dataclass, a namespace, a mapping, TrainingArguments, the path
            of a YAML or JSON file, or a tuple of several of these.
        model_config: The configuration of the model where it is not the model's own: one of transformers',
            a mapping, or the path of a config.json.
        tokenizer: A tokenizer, a processor, or the folder of one.
        base: What training started from: a folder, or a name on the hub.
        step: The step.
        seed: The seed; without it, the one that the configuration names.
        data: What the model was trained on, in words.
        serve_dtypes: Dtypes that the model will be served in: `base`, or a dtype's name.
        digests: Whether tensors get digests.
    """

    config: object = None
    model_config: PreTrainedConfig | Mapping[str, object] | str | Path | None = None
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None
    base: str | Path | None = None
    step: int | None = None
    seed: int | None = None
    data: str | None = None
    serve_dtypes: Sequence[str] = ("base",)
    digests: bool = True


@dataclass(frozen=True, slots=True)
class Recorded:
    """A record, and what lies beside it.

    Attributes:
        record: The record; equal on every rank.
        files: Content of the files that belong into the folder, the record among them, by name.
        findings: What a person should know; equal on every rank.
    """

    record: Record
    files: Mapping[str, bytes]
    findings: tuple[Finding, ...]


def texts_of(option: str, values: Sequence[str]) -> tuple[str, ...]:
    """Return several texts that an option takes.

    Raises:
        OptionError: It is one text, whose letters would be taken, or holds something else.
    """
    if isinstance(values, str) or not all(isinstance(value, str) for value in values):
        raise OptionError(option, "takes a sequence of texts", saw=repr(values)[:60], expected='["..."]')
    return tuple(values)


def require_telling(telling: Telling) -> None:
    """Raise unless a record can be made of what a script tells.

    Raises:
        OptionError: It cannot; the message says which part of it.
    """
    for dtype in telling.serve_dtypes:
        require_policy(dtype)
    told: tuple[tuple[str, object, type], ...] = (
        ("step", telling.step, int),
        ("seed", telling.seed, int),
        ("data", telling.data, str),
    )
    for name, value, kind in told:
        is_wrong = type(value) is not kind or (isinstance(value, int) and value.bit_length() > _BITS)
        if value is not None and is_wrong:
            expected = "a text" if kind is str else "an integer of 64 bits"
            raise OptionError(
                name, "has a value that cannot be recorded", saw=repr(value)[:60], expected=expected
            )
    read_training_config(telling.config)


def build_record(
    model: Module,
    live: LiveModel,
    tensors: Mapping[str, Tensor],
    telling: Telling,
    *,
    ranks: Ranks,
    base: Base | None,
) -> Recorded:
    """Return the record of a model in training, without its fingerprint. Every rank calls it.

    Args:
        model: The model, wrapped or not.
        live: The same, described.
        tensors: The published tensors by name, made of the live ones, with the casts in which they are
            written.
        telling: What the script tells.
        ranks: All ranks.
        base: The base, which tells the dtypes that it is served in; None where there is none.

    Memory:
        4 MiB for every worker, of which there are one or two.

    Raises:
        OptionError: What the script tells cannot be recorded.
    """
    environment, differences = gather_environment(ranks)
    served = _served(tensors, telling.serve_dtypes, base)
    digests: list[Digests] = []
    if telling.digests:
        hashing = partial(hash_owned, tensors, served, rank=ranks.rank, workers=_workers(ranks))
        digests = ranks.together("taking digests", hashing)
    given = ranks.together("describing the training", lambda: read_training_config(telling.config))[0]

    def described() -> Record | None:
        return _describe(model, live, telling, given, environment) if ranks.rank == 0 else None

    first = ranks.together("describing the training", described)[0]
    assert first is not None
    record = replace(first, tensors=record_tensors(tensors, digests))
    return Recorded(record, files_of(record, given.files), (*given.findings, *differences))


def files_of(record: Record, beside: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the content of the files of a record, by name.

    Args:
        record: The record.
        beside: What lies beside it: the training configuration.
    """
    return {**beside, RECORD_NAME: record_to_bytes(record)}


def _describe(
    model: Module, live: LiveModel, telling: Telling, given: GivenConfig, environment: Environment
) -> Record:
    """Return the record without tensors."""
    return Record(
        unshard=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        step=telling.step,
        seed=_seed_of(given.config) if telling.seed is None else telling.seed,
        data=None if telling.data is None else without_secrets_in_text(telling.data),
        training=given.config,
        base=describe_base(telling.base, model_config_of(model)),
        model=describe_model(model, live, telling.model_config),
        tokenizer=describe_tokenizer(telling.tokenizer),
        code=describe_code(),
        environment=environment,
        distribution=live.distribution,
        tensors={},
        fingerprint=None,
    )


def _seed_of(config: TrainingConfig | None) -> int | None:
    """Return the seed that a training configuration names, itself or in one of its parts.

    torch cannot be asked: it begins with a seed that nobody gave it, another one in every process.
    """
    if config is None:
        return None
    parts = [config.values, *(part for part in config.values.values() if isinstance(part, Mapping))]
    seeds = [part["seed"] for part in parts if type(part.get("seed")) is int]
    return seeds[0] if seeds and seeds[0].bit_length() <= _BITS else None


def _served(
    tensors: Mapping[str, Tensor], policies: Sequence[str], base: Base | None
) -> dict[str, list[DType]]:
    """Return the dtypes that each tensor is written in, and will have where the model is served."""
    needs = None if base is None else needs_of(base, tensors)

    def wanted(name: str, policy: str) -> DType:
        return dtype_of(name, uncast(tensors[name]), policy=policy, base=base, needs=needs)

    return {
        name: [tensor.dtype, *(wanted(name, policy) for policy in policies)]
        for name, tensor in tensors.items()
    }


def _workers(ranks: Ranks) -> int:
    """Return how many threads this rank may hash with: its part of the cores of its machine."""
    here = os.environ.get("LOCAL_WORLD_SIZE", "")
    beside = int(here) if here.isdecimal() and int(here) else ranks.size
    return min(max(default_workers() // beside, 1), _MOST_WORKERS)
