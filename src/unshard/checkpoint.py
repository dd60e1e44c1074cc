"""What a reader found: the tensors of one checkpoint, described but not read, and what lies around them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, KeysView, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from unshard.findings import Finding, finding
from unshard.record.description import Record
from unshard.storage.checksums import Checksums
from unshard.storage.files import InputFile
from unshard.tensors import Box, DescribedTensor, Source


@dataclass(frozen=True, slots=True)
class Layout:
    """How a checkpoint lies on disk, and how that was recognised.

    Attributes:
        name: The layout's word in code, `--json` and the docs, for example `full-state-dict`.
        title: The same for people, for example "FULL_STATE_DICT of FSDP1 in torch's zip format".
        writer: Who wrote it, or None where nothing tells.
        evidence: What it was recognised by, one fact each.
    """

    name: str
    title: str
    writer: str | None
    evidence: tuple[str, ...]

    @property
    def is_model_folder(self) -> bool:
        """Whether it is made for inference, and not for resuming."""
        return self.name == "hugging-face"


@dataclass(frozen=True, slots=True)
class Traces:
    """What the files tell of the program that wrote them, and of the devices that it ran on.

    Attributes:
        names: Full names of all classes and functions that pickles mention, torch's own among them.
        devices: Where tensors lay when they were saved: `cpu`, `cuda:3`.
        parts: What containers have besides tensors, which tells their version: `.format_version` of an
            archive, `metadata.storage_meta` of DCP.
    """

    names: frozenset[str] = frozenset()
    devices: frozenset[str] = frozenset()
    parts: frozenset[str] = frozenset()

    @classmethod
    def of_all(cls, traces: Iterable[Traces]) -> Traces:
        """Return the traces of several files together."""
        names, devices, parts = set[str](), set[str](), set[str]()
        for each in traces:
            names |= each.names
            devices |= each.devices
            parts |= each.parts
        return cls(frozenset(names), frozenset(devices), frozenset(parts))


ExtraKind = Literal["optimizer", "scheduler", "rng", "step", "value", "file"]


@dataclass(frozen=True, slots=True)
class Extra:
    """Something in or beside the checkpoint that is not the model.

    Attributes:
        name: A path inside the file (`optimizer.state`) or the name of a file beside it.
        kind: What it is: `optimizer`, `scheduler`, `rng`, `step`, `value`, `file`.
        size: Bytes it takes, which are never read.
        value: A short rendering of a plain value (a step, an epoch), else None.
    """

    name: str
    kind: ExtraKind
    size: int
    value: str | None = None


@dataclass(frozen=True, slots=True)
class TrainingParameters:
    """What a training script wrote about itself, as it wrote it.

    Attributes:
        path: The file.
        values: Every key and value, as text.
    """

    path: Path
    values: Mapping[str, str]

    def get(self, key: str) -> str | None:
        """Return a value, or None where it is absent, empty or the text `None`."""
        value = self.values.get(key)
        return None if value in (None, "", "None") else value


@dataclass(frozen=True, slots=True)
class BaseHint:
    """A place where the base may be, found in or beside the checkpoint.

    Attributes:
        reference: A folder, or a name on a model hub.
        origin: Where the hint stands, in words fit for a message.
        revision: The commit on the hub, where it is known.
    """

    reference: str
    origin: str
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One of several checkpoints that lie side by side."""

    path: Path
    number: int | None
    size: int


@dataclass(frozen=True, slots=True)
class Replica:
    """Part of a tensor that the checkpoint holds twice.

    Attributes:
        name: The tensor.
        box: Which part of it.
        kept: Where it is read from.
        other: Where it lies, too, in the same order.
    """

    name: str
    box: Box
    kept: Source
    other: Source


def told_of_replicas(path: Path, replicas: Sequence[Replica]) -> list[Finding]:
    """Return what a person should know of parts that lie in several places, if there are any."""
    if not replicas:
        return []
    saw = f"{len(replicas):,} parts are there again, and read from one place"
    return [finding("U116", subject=path.name, saw=saw, remedy="Compare them: --compare-replicas")]


@dataclass(frozen=True, slots=True)
class Shaped:
    """Tensors that have got their shapes.

    Attributes:
        tensors: By their names in the checkpoint.
        replicas: Parts of them that lie in a second place.
        findings: What a person should know.
    """

    tensors: Mapping[str, DescribedTensor]
    replicas: Sequence[Replica] = ()
    findings: tuple[Finding, ...] = ()


class KnownShapes(Protocol):
    """What the base knows of shapes; a checkpoint may lack these, or the names of its tensors, too."""

    @property
    def said_by(self) -> str:
        """Who says so, in words fit for a message."""

    def named(self, extents: Mapping[str, tuple[int, ...]]) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of tensors by their names in the checkpoint, without those it does not know.

        Args:
            extents: The names, and the smallest shapes that hold what is there.
        """

    def lacking(self, names: Collection[str]) -> Sequence[str]:
        """Return names of the base for which there is no tensor among those of a checkpoint.

        Args:
            names: The names in the checkpoint.
        """

    def parameters(self) -> Mapping[str, tuple[int, ...]]:
        """Return every parameter of the model once, by its name in the base, in any order."""

    def registered(self) -> Mapping[str, tuple[int, ...]] | None:
        """Return the parameters in the order in which the model registers them, or None if unknown."""


class Unshaped(Protocol):
    """Tensors of which the checkpoint holds the elements and not the shapes; the base has these."""

    def shaped(self, known: KnownShapes) -> Shaped:
        """Return the tensors in the shapes of the base.

        Raises:
            IncompleteCheckpointError: Elements of them are missing.
            BaseModelError: The shapes do not fit what is there.
        """

    def inferred(self) -> Shaped:
        """Return the tensors in the shapes that what is there suggests, which may be less than there was.

        Raises:
            BaseModelError: Nothing suggests any.
            IncompleteCheckpointError: Elements of them are missing even so.
        """

    def as_found(self) -> Mapping[str, DescribedTensor]:
        """Return what lies there by its names there, in the shapes in which it does; for people."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One model as training left it. Tensor bytes have not been touched.

    Attributes:
        path: The file or folder the tensors are in.
        root: The folder a person would call the run; it may be `path` itself.
        layout: How it lies on disk.
        tensors: Every tensor of the model by its name in the checkpoint, without the container, in
            the checkpoint's order.
        container: The path inside the file that holds the model, `()` where it lies at the top.
        selected: The prefix that `--select` named, already removed from the names, or "".
        storages: For every tensor, a token that is equal for tensors sharing storage; ties that
            survived saving show here.
        files: Every file that holds tensor bytes of the model.
        checksums: What the writer left to check them with; empty where it left none.
        replicas: Parts of tensors that lie in a second place, and are not read from there.
        unshaped: Tensors that no file tells the shape of, or None where every tensor is in `tensors`.
        extras: What else is there. Never read.
        classes: Classes named by a pickle that are neither torch's nor Python's own, by full name.
        traces: What the files tell of the program that wrote them.
        steps: All checkpoints found side by side, oldest first, this one included.
        training: Training parameters found beside it, or in its record.
        record: What training told about itself, or None.
        record_path: Where that lies, or None.
        base_hints: Where the base may be, best first.
        side_files: Files of a model folder that lie beside the tensors (configuration, tokenizer,
            ...), by name.
        embedded: Content of such files that lies inside the checkpoint, by name.
        scratch_bytes: Room that reading the tensors takes where temporary files go; 0 unless they are
            compressed.
        findings: What a person should know so far.
    """

    path: Path
    root: Path
    layout: Layout
    tensors: Mapping[str, DescribedTensor]
    container: tuple[str, ...] = ()
    selected: str = ""
    storages: Mapping[str, object] = field(default_factory=dict)
    files: tuple[InputFile, ...] = ()
    checksums: Checksums = field(default_factory=lambda: Checksums.listed(()))
    replicas: Sequence[Replica] = ()
    unshaped: Unshaped | None = None
    extras: tuple[Extra, ...] = ()
    classes: tuple[str, ...] = ()
    traces: Traces = Traces()
    steps: tuple[Step, ...] = ()
    training: TrainingParameters | None = None
    record: Record | None = None
    record_path: Path | None = None
    base_hints: tuple[BaseHint, ...] = ()
    side_files: Mapping[str, Path] = field(default_factory=dict)
    embedded: Mapping[str, bytes] = field(default_factory=dict)
    scratch_bytes: int = 0
    findings: tuple[Finding, ...] = ()

    def __getitem__(self, name: str) -> DescribedTensor:
        """Return a tensor by its name in the checkpoint."""
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def keys(self) -> KeysView[str]:
        """Return the names of the tensors."""
        return self.tensors.keys()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the model."""
        return sum(tensor.nbytes for tensor in self.tensors.values())
