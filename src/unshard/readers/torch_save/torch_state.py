"""The model in one file of torch.save: its container, its tensors, and what else the file holds."""

from __future__ import annotations

from collections.abc import Mapping
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
from unshard.readers.torch_save.torch_objects import OtherTensor, StoredTensor, describe_tensor
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
        UnsupportedLayoutError: Its tensors are of a kind that is not read, such as parts of ranks.
        UnknownLayoutError: It holds no tensors.
        InputError: It cannot be read.
    """
    saved = describe_torch_file(file)
    contents = survey(saved)
    if not contents.groups:
        raise _no_model(saved, contents)
    chosen = select_model(contents.groups, select, file.path)
    stored = _describe_all(saved, chosen)
    _require_modest(saved, stored)
    return TorchState(
        saved=saved,
        container=chosen.container,
        selected=chosen.prefix,
        stored=stored,
        extras=contents.extras,
        findings=tuple(_findings(saved, contents, chosen, select)),
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
        raise _not_read(saved, others, len(chosen.tensors))
    return stored


def _not_read(saved: TorchFile, others: Mapping[str, OtherTensor], total: int) -> UnsupportedLayoutError:
    named = listed([f"`{cut(name)}` is {other.kind}" for name, other in others.items()])
    if any(other.is_part for other in others.values()):
        return UnsupportedLayoutError(
            saved.file.path,
            "is one rank's part of a sharded checkpoint; such files are not read yet",
            saw=f"{len(others)} of {total} tensors are distributed: {named}",
            hint="Save a full state dict instead: StateDictType.FULL_STATE_DICT, or"
            " get_model_state_dict(..., options=StateDictOptions(full_state_dict=True, cpu_offload=True)).",
        )
    return UnsupportedLayoutError(
        saved.file.path,
        f"holds {len(others)} tensors of kinds that are not read",
        saw=named,
        expected="plain tensors",
        hint="Save them as plain tensors, or name another model in the file with --select.",
    )


def _require_modest(saved: TorchFile, stored: Mapping[str, StoredTensor]) -> None:
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


def _findings(
    saved: TorchFile, contents: Contents, chosen: Selected[Record], select: str | None
) -> list[Finding]:
    """Return what a person should know of the file besides its tensors."""
    name = saved.file.path.name
    found = []
    if chosen.container:
        found.append(finding("U105", subject=name, saw=f"container `{cut(dotted(chosen.container))}`"))
    if select is not None:
        others = [cut(dotted(p)) or "the top level" for p in contents.groups if p != chosen.container]
        saw = f"--select {cut(select)}" + (f"; the others are {listed(others)}" if others else "")
        found.append(finding("U205", subject=name, saw=saw))
    training = [e for e in contents.extras if e.kind in _TRAINING]
    if training:
        parts = [f"{e.name} ({format_size(e.size)})" if e.size else e.name for e in training]
        found.append(finding("U102", subject=name, saw=listed(parts)))
    if not saved.has_checksums:
        remedy = "Compare it with a digest of the original."
        found.append(finding("U103", subject=name, saw=saved.facts[0], remedy=remedy))
    if classes := foreign_classes(saved.classes):
        found.append(finding("U104", subject=name, saw=listed([cut(c) for c in classes], at_most=5)))
    return found


def foreign_classes(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Return those names that are neither torch's nor Python's own."""
    return tuple(path for path in classes if not path.startswith("torch.") and not is_python(path))
