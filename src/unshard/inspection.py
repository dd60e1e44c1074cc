"""What a checkpoint is, from its headers alone; no byte of a tensor is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from unshard.base import Base, find_base
from unshard.checkpoint import Checkpoint, Extra, Layout, Step, TrainingParameters
from unshard.checks.inference_files import missing_files
from unshard.errors import UnshardError
from unshard.findings import Finding
from unshard.match import with_shapes_to_show
from unshard.match.adapters import check_adapter
from unshard.match.dtype_policy import check_training_precision, configured_dtype
from unshard.match.experts import regroup_to
from unshard.match.needs import needs_of
from unshard.match.quantised import undo_quantisation
from unshard.match.quantised_groups import in_words
from unshard.match.restored import Choices, Restored
from unshard.plan import OutputFile
from unshard.readers import Places, as_paths, open_checkpoint
from unshard.recipes.families import Sizes, family_of, sizes_of
from unshard.recipes.known_models import nearest_model
from unshard.recipes.schemes import detect_scheme
from unshard.recipes.ties import shared_pairs
from unshard.recipes.wrappers import WRAPPERS, without_segments, wrappers_in
from unshard.sizes import parse_size
from unshard.tensors import CastTensor, DescribedTensor, Tensor, element_count
from unshard.writers.safetensors_folder import plan_safetensors

# What of the training parameters bears on precision and layout.
_TELLING_PARAMETERS = (
    "pure_bf16",
    "use_fp16",
    "mixed_precision",
    "checkpoint_type",
    "sharding_strategy",
    "use_peft",
)


@dataclass(frozen=True, slots=True)
class TensorSummary:
    """One tensor, as it stands in the headers."""

    shape: tuple[int, ...]
    dtype: str
    origin: str


@dataclass(frozen=True, slots=True)
class DTypeGroup:
    """All tensors of one dtype."""

    tensors: int
    parameters: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Tie:
    """Two tensors that may be one weight.

    Attributes:
        kept: The name that published models keep.
        repeated: The name that repeats it.
        one_storage: Whether they share their bytes in the file; otherwise only comparing them tells.
    """

    kept: str
    repeated: str
    one_storage: bool


@dataclass(frozen=True, slots=True)
class ModelGuess:
    """What names and shapes tell of the model; a guess for people that decides nothing.

    Attributes:
        family: Whose names these are, or None.
        scheme: The naming scheme of another project whose names these are, or None.
        sizes: Layers, widths, vocabulary.
        nearest: The well-known model of these sizes, or None.
    """

    family: str | None
    scheme: str | None
    sizes: Sizes
    nearest: str | None


@dataclass(frozen=True, slots=True)
class BaseSummary:
    """The base that would be used.

    Attributes:
        reference: A folder, or a name on the hub.
        origin: How it was found.
        tells_names: Whether its own weights tell which names and shapes a complete model has.
    """

    reference: str
    origin: str
    tells_names: bool


@dataclass(frozen=True, slots=True)
class RecordSummary:
    """What training told about itself, in short.

    Attributes:
        path: The file.
        created: When it was written, in UTC.
        step: The step of training, or None.
        ranks: How many ranks trained.
        kind: How the model was spread over them: `fsdp1`, `fsdp2`, `ddp` or `none`.
        tensors: Tensors that have digests.
        dtypes: The dtypes that they have digests in.
        has_fingerprint: Whether it tells how the model behaved.
    """

    path: Path
    created: str
    step: int | None
    ranks: int
    kind: str
    tensors: int
    dtypes: tuple[str, ...]
    has_fingerprint: bool


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `unshard inspect` tells, field by field.

    Attributes:
        path: The file or folder that holds the tensors.
        root: The run folder.
        layout: How it lies on disk, who wrote it, and how that was recognised.
        tensors: Every tensor of the model by its name in the checkpoint.
        parameters: Elements of all tensors.
        nbytes: Bytes of all tensors.
        dtypes: The tensors by dtype, largest group first.
        quantised: How weights are quantised, one line for every way; empty where none is.
        model: What the names and shapes tell of family and size.
        container: The path inside the file that holds the model; empty where it lies at the top.
        wrappers: Wrapper segments in the names, and in how many of them each stands.
        ties: Pairs of tensors that may be one weight.
        training: Training parameters found beside it.
        precision: Those of them that bear on precision and layout.
        record: What training told about itself, in short, or None.
        extras: What is there only for training. Never read.
        checksummed_bytes: Bytes the writer left checksums for; 0 where it left none.
        replicas: Parts of tensors that lie in a second place, and are not read from there.
        steps: All checkpoints side by side, this one included.
        base: The base that would be used, or None.
        missing: What inference still needs.
        output_files: Files of tensors that `convert` would write.
        output_bytes: Their size.
        findings: What a person should know.
    """

    path: Path
    root: Path
    layout: Layout
    tensors: Mapping[str, TensorSummary]
    parameters: int
    nbytes: int
    dtypes: Mapping[str, DTypeGroup]
    quantised: tuple[str, ...]
    model: ModelGuess
    container: tuple[str, ...]
    wrappers: Mapping[str, int]
    ties: tuple[Tie, ...]
    training: TrainingParameters | None
    precision: Mapping[str, str]
    record: RecordSummary | None
    extras: tuple[Extra, ...]
    checksummed_bytes: int
    replicas: int
    steps: tuple[Step, ...]
    base: BaseSummary | None
    missing: tuple[str, ...]
    output_files: int
    output_bytes: int
    findings: tuple[Finding, ...]


def inspect(
    path: Places, *, base: str | Path | None = None, step: int | None = None, select: str | None = None
) -> Inspection:
    """Return what lies at `path`, from headers alone.

    Args:
        path: A run folder, a checkpoint folder, a file, or a model folder; or the folders of several
            nodes, whose ranks wrote one checkpoint together.
        base: The model training started from; without it, it is looked for on this machine.
        step: Which of several checkpoints side by side; the newest without it.
        select: The container or prefix of the model, where a file holds several.

    Raises:
        InputError: It cannot be read as a checkpoint.
        BaseModelError: The base that was named is missing or unreadable.
    """
    checkpoint = open_checkpoint(as_paths(path), step=step, select=select)
    reference = None if base is None else str(base)
    found, base_findings = find_base(checkpoint, reference=reference, download=False, model_class=False)
    checkpoint = with_shapes_to_show(checkpoint, found)
    names = {"config.json", *found.side_files, *found.embedded} if found else set(checkpoint.side_files)
    files = _predict_files(checkpoint, found)
    parameters = checkpoint.training
    return Inspection(
        path=checkpoint.path,
        root=checkpoint.root,
        layout=checkpoint.layout,
        tensors={n: TensorSummary(t.shape, t.dtype.name, t.origin) for n, t in checkpoint.tensors.items()},
        parameters=sum(map(element_count, checkpoint.tensors.values())),
        nbytes=checkpoint.nbytes,
        dtypes=_by_dtype(checkpoint.tensors.values()),
        quantised=tuple(in_words(checkpoint.tensors)),
        model=_guess_model(checkpoint),
        container=checkpoint.container,
        wrappers=wrappers_in(checkpoint.tensors),
        ties=_ties(checkpoint),
        training=parameters,
        precision={k: v for k in _TELLING_PARAMETERS if parameters and (v := parameters.get(k))},
        record=_summary_of_record(checkpoint),
        extras=checkpoint.extras,
        checksummed_bytes=checkpoint.checksums.nbytes,
        replicas=len(checkpoint.replicas),
        steps=checkpoint.steps,
        base=BaseSummary(found.reference, found.origin, found.expected is not None) if found else None,
        missing=(*missing_files(names), *(() if found else ("base",))),
        output_files=len(files),
        output_bytes=sum(file.size for file in files),
        findings=(
            *checkpoint.findings,
            *check_adapter(checkpoint),
            *base_findings,
            *check_training_precision(parameters, checkpoint.tensors),
        ),
    )


def _summary_of_record(checkpoint: Checkpoint) -> RecordSummary | None:
    record, path = checkpoint.record, checkpoint.record_path
    if record is None or path is None:
        return None
    dtypes = dict.fromkeys(dtype for tensor in record.tensors.values() for dtype in tensor.digests)
    return RecordSummary(
        path=path,
        created=record.created,
        step=record.step,
        ranks=record.distribution.world_size,
        kind=record.distribution.kind,
        tensors=sum(bool(tensor.digests) for tensor in record.tensors.values()),
        dtypes=tuple(dtypes),
        has_fingerprint=record.fingerprint is not None,
    )


def _by_dtype(tensors: Iterable[Tensor]) -> dict[str, DTypeGroup]:
    groups: dict[str, DTypeGroup] = {}
    for tensor in tensors:
        count = element_count(tensor)
        old = groups.get(tensor.dtype.name, DTypeGroup(0, 0, 0))
        groups[tensor.dtype.name] = DTypeGroup(
            old.tensors + 1, old.parameters + count, old.nbytes + count * tensor.dtype.itemsize
        )
    return dict(sorted(groups.items(), key=lambda item: -item[1].nbytes))


def _plain_names(checkpoint: Checkpoint) -> dict[str, str]:
    """Return every name without wrapper segments, and the name in the checkpoint it stands for."""
    return {without_segments(name, WRAPPERS): name for name in checkpoint.tensors}


def _guess_model(checkpoint: Checkpoint) -> ModelGuess:
    shapes = {plain: checkpoint.tensors[name].shape for plain, name in _plain_names(checkpoint).items()}
    family, scheme, sizes = family_of(shapes), detect_scheme(shapes), sizes_of(shapes)
    return ModelGuess(
        family.title if family else None, scheme.name if scheme else None, sizes, nearest_model(sizes)
    )


def _ties(checkpoint: Checkpoint) -> tuple[Tie, ...]:
    names = _plain_names(checkpoint)
    storages = checkpoint.storages
    return tuple(
        Tie(names[kept], names[repeated], storages.get(names[kept]) == storages.get(names[repeated], ()))
        for kept, repeated in shared_pairs(names)
        if checkpoint.tensors[names[kept]].shape == checkpoint.tensors[names[repeated]].shape
    )


def _plain_tensors(checkpoint: Checkpoint, base: Base | None) -> Mapping[str, DescribedTensor]:
    """Return the tensors as a conversion has them, dequantised where it would, and can."""
    try:
        stage = Restored(checkpoint.tensors, {name: (name,) for name in checkpoint.tensors})
        return undo_quantisation(stage, checkpoint, base, Choices()).tensors
    except UnshardError:
        return checkpoint.tensors


def _predict_files(checkpoint: Checkpoint, base: Base | None) -> tuple[OutputFile, ...]:
    """Return the files of tensors a conversion would write, as far as names and dtypes tell."""
    plain_tensors = _plain_tensors(checkpoint, base)
    needs = None if base is None else needs_of(base, plain_tensors)
    wanted = {} if needs is None else needs.expected
    default = configured_dtype(base)
    tensors: dict[str, Tensor] = {}
    found = {without_segments(name, WRAPPERS): tensor for name, tensor in plain_tensors.items()}
    for plain, described in (regroup_to(found, wanted, base.config) if base else found).items():
        tensor: Tensor = described
        expected = wanted.get(plain)
        if wanted and expected is None:
            continue  # a tied duplicate, a buffer: the base does without it
        dtype = (expected and expected.dtype) or default
        if dtype is not None and {dtype.kind, tensor.dtype.kind} == {"float"}:
            tensor = tensor if dtype == tensor.dtype else CastTensor(tensor, dtype)
        if tensor.dtype.tag is not None:
            tensors[plain] = tensor
    return plan_safetensors(tensors or checkpoint.tensors, max_file_bytes=parse_size("5GB"))[0]
