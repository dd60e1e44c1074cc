"""The model in one file of torch.save: its container, its tensors, and what else the file holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from unshard.checkpoint import Extra
from unshard.errors import (
    TrainingStateError,
    UnknownLayoutError,
    UnsafeFileError,
    UnshardError,
    UnsupportedLayoutError,
)
from unshard.findings import Finding, finding
from unshard.readers.rendering import cut, listed, shown
from unshard.readers.selection import Selected, select_model
from unshard.readers.torch_save.contents import Contents, dotted, survey
from unshard.readers.torch_save.torch_file import describe_torch_file
from unshard.readers.torch_save.torch_objects import (
    OtherTensor,
    StoredTensor,
    describe_tensor,
    is_part,
)
from unshard.readers.torch_save.torch_storages import TorchFile
from unshard.readers.unpickling import Entries, Record, is_python
from unshard.sizes import format_size
from unshard.storage.checksums import Checksum
from unshard.storage.files import InputFile
from unshard.tensors import DescribedTensor

_TRAINING = ("optimizer", "scheduler", "rng")
# Tensors that are views of one storage may be larger than it together, within reason: tied weights,
# expanded buffers. Beyond that, a small file claims to be a large model.
_MOST_EXPANSION, _FREE_EXPANSION_BYTES = 16, 1 << 30


@dataclass(frozen=True, slots=True)
class TorchState:
    """The model in a torch file.

    Attributes:
        saved: The file.
        container: Where in it the model lies.
        selected: The prefix that was removed from its names.
        stored: Its tensors by name.
        extras: What else there is.
        findings: What a person should know.
    """

    saved: TorchFile
    container: tuple[str, ...]
    selected: str
    stored: Mapping[str, StoredTensor]
    extras: tuple[Extra, ...]
    findings: tuple[Finding, ...]

    @property
    def tensors(self) -> dict[str, DescribedTensor]:
        """The tensors of the model by name."""
        return {name: stored.tensor for name, stored in self.stored.items()}

    @property
    def storages(self) -> dict[str, object]:
        """For every tensor, what it shares with those that are views of the same storage."""
        return {name: (self.saved.file.path.name, s.storage.key) for name, s in self.stored.items()}

    @property
    def checksums(self) -> tuple[Checksum, ...]:
        """The writer's checksum of every storage that tensors of the model are views of."""
        names: dict[str, list[str]] = {}
        for name, stored in self.stored.items():
            names.setdefault(stored.storage.key, []).append(name)
        storages = (self.stored[users[0]].storage for users in names.values())
        return tuple(
            Checksum(self.saved.file, s.start, s.stop, s.crc32, ", ".join(names[s.key]))
            for s in storages
            if s.crc32 is not None and s.stop > s.start
        )

    def has_attribute(self, name: str) -> bool:
        """Return whether every tensor was saved with a Python attribute of that name."""
        return bool(self.stored) and all(name in s.attributes for s in self.stored.values())


def describe_torch_state(file: InputFile, select: str | None) -> TorchState:
    """Return the model in `file`; no tensor is read.

    Raises:
        TrainingStateError: It holds only an optimizer or other training state.
        AmbiguousModelError: It holds several models, and `select` does not name one.
        OptionError: `select` names nothing in it.
        UnsupportedLayoutError: Its tensors are of a kind that is not read.
        UnknownLayoutError: It holds no tensors.
        InputError: It cannot be read.
    """
    return torch_state_of(choose_model(describe_torch_file(file), select))


@dataclass(frozen=True, slots=True)
class ChosenModel:
    """The model in a torch file that is meant, its tensors still records.

    Attributes:
        saved: The file.
        contents: What is in it.
        chosen: The model.
        select: What `--select` said.
    """

    saved: TorchFile
    contents: Contents
    chosen: Selected[Record]
    select: str | None

    @property
    def is_part(self) -> bool:
        """Whether some of its tensors are one rank's parts of distributed ones."""
        return any(map(is_part, self.chosen.tensors.values()))


def choose_model(saved: TorchFile, select: str | None) -> ChosenModel:
    """Return the model in a torch file; `describe_torch_state` says what can go wrong."""
    contents = survey(saved)
    if not contents.groups:
        raise _no_model(saved, contents)
    return ChosenModel(saved, contents, select_model(contents.groups, select, saved.file.path), select)


def torch_state_of(model: ChosenModel) -> TorchState:
    """Return a model of plain tensors; `describe_torch_state` says what can go wrong."""
    stored = _describe_all(model.saved, model.chosen)
    require_modest(model.saved, stored)
    return TorchState(
        saved=model.saved,
        container=model.chosen.container,
        selected=model.chosen.prefix,
        stored=stored,
        extras=model.contents.extras,
        findings=tuple(_findings(model)),
    )


def _describe_all(saved: TorchFile, chosen: Selected[Record]) -> dict[str, StoredTensor]:
    """Return all tensors of the model, or raise one error that names those that are not read."""
    stored: dict[str, StoredTensor] = {}
    others: dict[str, OtherTensor] = {}
    for name, record in chosen.tensors.items():
        described = describe_tensor(record, saved, name)
        if isinstance(described, OtherTensor):
            others[name] = described
        else:
            stored[name] = described
    if others:
        raise _not_read(saved, others)
    return stored


def _not_read(saved: TorchFile, others: Mapping[str, OtherTensor]) -> UnsupportedLayoutError:
    return UnsupportedLayoutError(
        saved.file.path,
        f"holds {len(others)} tensors of kinds that are not read",
        saw=listed([f"`{cut(name)}` is {other.kind}" for name, other in others.items()]),
        expected="plain tensors",
        hint="Save them as plain tensors, or name another model in the file with --select.",
    )


def require_modest(saved: TorchFile, stored: Mapping[str, StoredTensor]) -> None:
    """Raise where tensors claim to be far larger than the storages they are views of."""
    held = sum(s.stop - s.start for s in {s.storage.key: s.storage for s in stored.values()}.values())
    claimed = sum(s.tensor.nbytes for s in stored.values())
    if claimed > _MOST_EXPANSION * held + _FREE_EXPANSION_BYTES:
        largest = max(stored, key=lambda name: stored[name].tensor.nbytes)
        raise UnsafeFileError(
            saved.file.path,
            f"claims to hold {claimed:,} bytes of tensors in {held:,} bytes",
            saw=f"`{cut(largest)}` of shape {stored[largest].tensor.shape}, whose elements repeat",
            hint="Save the tensors with .contiguous() if they are meant to be that large.",
        )


def _no_model(saved: TorchFile, contents: Contents) -> UnshardError:
    """Return the error that says what a file holds instead of a model."""
    path = saved.file.path
    kinds = {
        extra.kind: extra for extra in contents.extras if extra.kind in ("optimizer", "scheduler", "rng")
    }
    if contents.modules:
        return UnsupportedLayoutError(
            path,
            "holds a pickled module, not a state dict",
            saw=listed(list(contents.modules)),
            hint="Load it where its class is, and save `model.state_dict()` instead of the model.",
        )
    if contents.unnamed:
        return UnsupportedLayoutError(
            path,
            "holds tensors without names",
            saw=f"a list of them at {listed([cut(where) for where in contents.unnamed])}",
            expected="a state dict: names and tensors",
        )
    if kinds:
        return TrainingStateError(path, f"holds training state and no model: {', '.join(kinds)}")
    if saved.storages:
        return UnsupportedLayoutError(
            path,
            "keeps its tensors in objects of classes that are not known here",
            saw=listed([cut(c) for c in foreign_classes(saved.classes)]) or shown(saved.value),
            hint="Load it where it was made, and save a plain state dict with torch.save.",
        )
    what = shown(saved.value)
    if isinstance(saved.value, Entries) and contents.extras:
        what = "values: " + listed([extra.name for extra in contents.extras])
    return UnknownLayoutError(path, "holds no tensors", saw=what, expected="a state dict")


def _findings(model: ChosenModel) -> list[Finding]:
    """Return what a person should know of the file besides its tensors."""
    saved, name = model.saved, model.saved.file.path.name
    found = [*told_of_choice(model, name), *told_of_training(model.contents.extras, name)]
    if not saved.has_checksums:
        found.append(told_of_checksums(saved, name))
    return [*found, *told_of_classes(saved.classes, name)]


def told_of_choice(model: ChosenModel, subject: str) -> Iterator[Finding]:
    """Yield which of several places in a file the model was taken from."""
    chosen, select = model.chosen, model.select
    if chosen.container:
        yield finding("U105", subject=subject, saw=f"container `{cut(dotted(chosen.container))}`")
    if select is not None:
        others = [cut(dotted(p)) or "the top level" for p in model.contents.groups if p != chosen.container]
        saw = f"--select {cut(select)}" + (f"; the others are {listed(others)}" if others else "")
        yield finding("U205", subject=subject, saw=saw)


def told_of_training(extras: Sequence[Extra], subject: str) -> Iterator[Finding]:
    """Yield which training state a file holds beside the model."""
    training = [e for e in extras if e.kind in _TRAINING]
    if training:
        parts = [f"{e.name} ({format_size(e.size)})" if e.size else e.name for e in training]
        yield finding("U102", subject=subject, saw=listed(parts))


def told_of_checksums(saved: TorchFile, subject: str) -> Finding:
    """Return that damage to a file cannot be told from data."""
    return finding(
        "U103", subject=subject, saw=saved.facts[0], remedy="Compare it with a digest of the original."
    )


def told_of_classes(classes: tuple[str, ...], subject: str) -> Iterator[Finding]:
    """Yield which classes of others a file names."""
    if foreign := foreign_classes(classes):
        yield finding("U104", subject=subject, saw=listed([cut(c) for c in foreign], at_most=5))


def foreign_classes(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Return those names that are neither torch's nor Python's own."""
    return tuple(path for path in classes if not path.startswith("torch.") and not is_python(path))
