"""What a record is, as data: everything inference needs to know of the training that left a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

RECORD_NAME = "unshard.record.json"
VERSION = 1


@dataclass(frozen=True, slots=True)
class BoxDigest:
    """The SHA-256 of a box of a tensor: of its elements in row-major order, little-endian.

    Attributes:
        start: Its first index in every dimension.
        stop: The index after its last one in every dimension.
        sha256: The digest, in hexadecimal digits.
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]
    sha256: str


@dataclass(frozen=True, slots=True)
class RecordTensor:
    """A tensor as training held it, under the name that it has in a published model.

    Attributes:
        shape: Its shape.
        dtype: Its dtype in training, by torch's name.
        digests: For that dtype, and for every other one it will be served in, boxes that cover the
            tensor exactly once, each with the digest of its elements in that dtype.
    """

    shape: tuple[int, ...]
    dtype: str
    digests: Mapping[str, tuple[BoxDigest, ...]]


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """What training was asked to do, as data.

    Attributes:
        kind: What it was given as: `dataclass`, `namespace`, `mapping`, `yaml`, `json`,
            `TrainingArguments`; or `several`, whose values then are those of each by its name.
        values: Its values, nested as they were; what has no plain form is told by the name of its class.
            Values whose names are those of secrets are left out.
        files: Names of the files beside the record that hold it: the file that was given, unchanged, or
            its values as JSON. A file that holds secrets is not copied.
    """

    kind: str
    values: Mapping[str, Any]
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BaseOfTraining:
    """The model that training started from.

    Attributes:
        reference: A folder, or a name on the hub.
        revision: The commit on the hub, where it is known.
    """

    reference: str
    revision: str | None


@dataclass(frozen=True, slots=True)
class ModelOfTraining:
    """The model's class and configuration.

    Attributes:
        class_name: The full name of its class, wrappers of training aside.
        config: Its config.json, or None where it has none.
        attention: Which implementation of attention it ran with, or None where it has no choice.
        parameters: How many numbers are trained or frozen in it, every tied one counted once.
        trainable: How many of them were trained.
        ties: Names that are the same parameter as another one, and that one.
        adapter: The configuration of every adapter of low rank, as PEFT has it, by name.
    """

    class_name: str
    config: Mapping[str, Any] | None
    attention: str | None
    parameters: int
    trainable: int
    ties: Mapping[str, str] = field(default_factory=dict)
    adapter: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenizerOfTraining:
    """The tokenizer's class, size and files.

    Attributes:
        class_name: Its class.
        tokens: How many tokens it knows, added ones counted.
        files: The SHA-256 of every file of it, by name.
    """

    class_name: str
    tokens: int
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Code:
    """The program that trained.

    Attributes:
        command_line: The words it was started with; those of secrets are replaced by `***`.
        commit: The commit of the git work tree that its main file lies in, or None.
        dirty: Whether that tree had changes; None where there is no commit.
    """

    command_line: tuple[str, ...]
    commit: str | None
    dirty: bool | None


@dataclass(frozen=True, slots=True)
class Device:
    """Devices of one kind.

    Attributes:
        name: What its driver calls it: "NVIDIA H100 80GB HBM3".
        capability: Its compute capability, as "9.0", or None where it has none.
        memory_bytes: Memory of one.
        count: How many of them there are, on all machines of the training together.
    """

    name: str
    capability: str | None
    memory_bytes: int | None
    count: int


@dataclass(frozen=True, slots=True)
class Environment:
    """The software and hardware of one machine, or of a training: an allow-list, without any secret.

    Attributes:
        python: Its version.
        system: Operating system, machine and C library: "Linux 6.1 x86_64, glibc 2.36".
        packages: Versions of the packages that matter to a model, by name.
        accelerator: `cuda`, `rocm`, `xpu`, `mps` or `cpu`.
        runtimes: Versions of what lies between torch and its devices: `cuda`, `rocm`, `cudnn`, `nccl`,
            `driver`.
        devices: The devices, by kind.
        bfloat16: Whether the devices compute in bfloat16 by themselves; None where it is not known.
        default_dtype: torch's default dtype, or None where torch is not there.
        settings: Other switches of torch that change numbers: `allow_tf32`, `deterministic_algorithms`, ...
    """

    python: str
    system: str
    packages: Mapping[str, str]
    accelerator: str | None = None
    runtimes: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[Device, ...] = ()
    bfloat16: bool | None = None
    default_dtype: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Precision:
    """What mixed precision computes in, by torch's names; None where it leaves dtypes alone."""

    parameters: str | None = None
    reduction: str | None = None
    buffers: str | None = None
    output: str | None = None
    autocast: str | None = None


@dataclass(frozen=True, slots=True)
class Distribution:
    """How the model was spread over ranks.

    Attributes:
        kind: `fsdp1`, `fsdp2`, `ddp` or `none`.
        world_size: How many ranks there were.
        backend: The backend of the process group, or None where there was none.
        strategy: FSDP1's sharding strategy by name; for FSDP2 `reshard_after_forward` in words.
        wrapped: The classes of the modules that are units of their own.
        mesh: Sizes of the device mesh by the names of its dimensions.
        use_orig_params: FSDP1's option of that name.
        cpu_offload: Whether parameters lie in the memory of the host.
        precision: What it computes in.
        compiled: Whether the model, or a module of it, is compiled.
        checkpointed: The classes of modules under activation checkpoints.
    """

    kind: Literal["fsdp1", "fsdp2", "ddp", "none"]
    world_size: int = 1
    backend: str | None = None
    strategy: str | None = None
    wrapped: tuple[str, ...] = ()
    mesh: Mapping[str, int] = field(default_factory=dict)
    use_orig_params: bool | None = None
    cpu_offload: bool = False
    precision: Precision = Precision()
    compiled: bool = False
    checkpointed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SequencePrint:
    """What the model made of one sequence of tokens.

    Attributes:
        name: What it is called: `english`, `prompt 1`, ...
        text: The text that the tokenizer made the tokens of, or None where they were chosen as numbers.
        tokens: The tokens.
        losses: The cross entropy of every token after the first, in nats, computed in float32.
        argmax: The likeliest next token at every position.
        gaps: By how much its logit exceeds the second one, at every position.
        top_ids: The likeliest tokens at the last position, best first.
        top_logits: Their logits.
        greedy_sha256: Digest of the tokens of a greedy continuation, as little-endian 64-bit integers, or
            None where none was taken. It only informs: one near tie changes all that follows.
    """

    name: str
    text: str | None
    tokens: tuple[int, ...]
    losses: tuple[float, ...]
    argmax: tuple[int, ...]
    gaps: tuple[float, ...]
    top_ids: tuple[int, ...]
    top_logits: tuple[float, ...]
    greedy_sha256: str | None


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """How the model behaved when it was saved, computed by the sharded model itself in eval mode.

    Attributes:
        weights: The dtype that most of the weights were held in.
        computed: The dtype that it computed in.
        attention: Which implementation of attention ran, or None where it has no choice.
        device: What it ran on: "cuda (NVIDIA H100 80GB HBM3)", "cpu".
        vocabulary: How many logits every position has.
        layers: How many layers it has, or None where the configuration does not tell.
        greedy_tokens: How long greedy continuations are.
        sequences: What it made of every sequence.
    """

    weights: str
    computed: str
    attention: str | None
    device: str
    vocabulary: int
    layers: int | None
    greedy_tokens: int
    sequences: tuple[SequencePrint, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """What training told about itself.

    Attributes:
        unshard: The version of this package that wrote it.
        created: When, in UTC.
        step: The step of training, or None where it was not told.
        seed: The seed of training, or None.
        data: What the model was trained on, in the words of whoever trained it, or None.
        training: What training was asked to do, or None where it was not told.
        base: What it started from, or None.
        model: The model.
        tokenizer: The tokenizer, or None where there was none.
        code: The program that trained.
        environment: The software and hardware that it ran on.
        distribution: How the model was spread over ranks.
        tensors: Every tensor of the model as it is published, with digests.
        fingerprint: How the model behaved, or None where it was not run.
    """

    unshard: str
    created: str
    step: int | None
    seed: int | None
    data: str | None
    training: TrainingConfig | None
    base: BaseOfTraining | None
    model: ModelOfTraining
    tokenizer: TokenizerOfTraining | None
    code: Code
    environment: Environment
    distribution: Distribution
    tensors: Mapping[str, RecordTensor]
    fingerprint: Fingerprint | None
