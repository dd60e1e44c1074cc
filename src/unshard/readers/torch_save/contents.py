"""What the object in a torch file is made of: groups of named tensors, and everything beside them.

A state dict may lie at the top or in containers (`model`, `state_dict`, `module`, any nesting of
dictionaries and lists). Training state is told by name and by content: an optimizer is what is called
one, what has `state` and `param_groups`, or what holds `exp_avg` and its kin. What is neither is kept
in mind as a plain value. Nothing here looks at a byte of a tensor.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from unshard.checkpoint import Extra, ExtraKind
from unshard.errors import UnsafeFileError, UnsupportedLayoutError
from unshard.readers.rendering import cut, shown
from unshard.readers.torch_save.torch_objects import OtherTensor, describe_tensor, is_tensor
from unshard.readers.torch_save.torch_storages import TorchFile
from unshard.readers.unpickling import Entries, PersistentId, Record
from unshard.tensors import element_count

Container = tuple[str, ...]

_DEEPEST = 64
_MOST_VALUES = 200  # a note of every value of a hostile or odd file would bury the others

_CONTAINERS: tuple[tuple[re.Pattern[str], ExtraKind], ...] = (
    (re.compile(r"(.*_)?(optims?|optimizers?)(_.*)?|opt_state.*|opt", re.IGNORECASE), "optimizer"),
    (re.compile(r"(.*_)?(lr_?)?sched(uler)?s?(_.*)?", re.IGNORECASE), "scheduler"),
    (re.compile(r"(.*_)?rng(_.*)?|(.*_)?random_states?(_.*)?", re.IGNORECASE), "rng"),
)
_COUNTER = re.compile(r"(.*_)?(step|epoch|iteration|iter)s?(_.*)?", re.IGNORECASE)
_MOMENTS = re.compile(r"(.*\.)?(exp_avg(_sq)?|max_exp_avg_sq|momentum_buffer|step|square_avg|acc_delta)")


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in a torch file.

    Attributes:
        groups: By container path, the tensors of every dictionary that may be a model.
        extras: Everything else.
        modules: Where whole pickled modules lie, and of which class they are.
        unnamed: Where tensors lie that have no name: in lists, or under keys that are no text.
    """

    groups: Mapping[Container, dict[str, Record]]
    extras: tuple[Extra, ...]
    modules: tuple[str, ...]
    unnamed: tuple[str, ...]


def survey(saved: TorchFile) -> Contents:
    """Return what is in `saved`.

    Raises:
        UnsafeFileError: It is nested too deeply, or a name of a tensor is no text to print.
    """
    notes = _Survey(saved)
    pending: list[tuple[Container, object]] = [((), saved.value)]
    while pending:
        path, node = pending.pop()
        pending += reversed(notes.visit(path, node))
    notes.set_values_apart()
    return Contents(notes.groups, tuple(notes.extras), tuple(notes.modules), tuple(notes.unnamed))


def kind_of_key(key: str) -> ExtraKind | None:
    """Return which training state a key of a checkpoint names, or None where it names none."""
    return None if "." in key else next((k for pattern, k in _CONTAINERS if pattern.fullmatch(key)), None)


def entries_of(value: object) -> Entries | None:
    """Return what a value holds by key, if it is a dictionary or stands for one."""
    if type(value) is Entries:
        return value
    return value.entries if type(value) is Record else None


def dotted(path: Container) -> str:
    """Return a container path as people write it."""
    return ".".join(path)


@dataclass(slots=True)
class _Survey:
    saved: TorchFile
    groups: dict[Container, dict[str, Record]] = field(default_factory=dict)
    extras: list[Extra] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)
    _seen: set[int] = field(default_factory=set)
    _counted: set[int] = field(default_factory=set)
    _keys: set[str] = field(default_factory=set)

    def visit(self, path: Container, node: object) -> list[tuple[Container, object]]:
        """Take note of a value; return the collections in it that are still to be visited."""
        if len(path) > _DEEPEST:
            problem = f"is nested more than {_DEEPEST} deep"
            raise UnsafeFileError(self.saved.file.path, problem, saw=cut(dotted(path)))
        if isinstance(node, dict | list | tuple | Record):
            if id(node) in self._seen:
                return []
            self._seen.add(id(node))
        entries = entries_of(node)
        kind = _training_kind(path, entries)
        if kind is not None and isinstance(node, dict | list | tuple | Record):
            self._note(path, node, kind)
        elif entries is not None:
            return self._visit_entries(path, entries)
        elif isinstance(node, list | tuple):
            return self._visit_items(path, node)
        else:
            self._note_value(path, node)
        return []

    def _visit_entries(self, path: Container, entries: Entries) -> list[tuple[Container, object]]:
        tensors: dict[str, Record] = {}
        inner: list[tuple[Container, object]] = []
        for name, value in entries.items():
            if not is_tensor(value):
                inner.append(((*path, name), value))
            elif _training_kind((name,), None) == "rng":
                self._note((*path, name), value, "rng")
            else:
                self._require_printable(name)
                assert isinstance(value, Record)
                tensors[name] = value
        if any(is_tensor(value) for _, value in entries.others):
            self._note_unnamed(path, entries, tensors)
        if tensors and are_moments(tensors):
            self._note(path, entries, "optimizer")
        elif tensors:
            self.groups[path] = tensors
        return inner

    def _note_unnamed(self, path: Container, entries: Entries, tensors: Mapping[str, Record]) -> None:
        where = dotted(path) or "the top level"
        if tensors:
            problem = "has tensors with names and tensors without in one place"
            raise UnsupportedLayoutError(self.saved.file.path, problem, saw=cut(where))
        self.unnamed.append(where)
        self._note(path, entries, "value", "tensors whose names are no text")

    def _visit_items(
        self, path: Container, items: list[object] | tuple[object, ...]
    ) -> list[tuple[Container, object]]:
        if any(map(is_tensor, items)):
            self.unnamed.append(dotted(path) or "the top level")
        collections = [
            (i, v) for i, v in enumerate(items) if entries_of(v) is not None or isinstance(v, list | tuple)
        ]
        if not collections:
            self._note_value(path, items)
        return [((*path, str(i)), value) for i, value in collections]

    def _note_value(self, path: Container, node: object) -> None:
        if _is_module(node):
            assert isinstance(node, Record)
            self.modules.append(f"{dotted(path) or 'the whole file'} ({cut(node.kind)})")
        elif is_tensor(node):
            self.unnamed.append(dotted(path) or "the top level")
        elif path and len(self.extras) < _MOST_VALUES:
            self._note(path, node, value_kind(path[-1]), shown(node))

    def _note(self, path: Container, node: object, kind: ExtraKind, value: str | None = None) -> None:
        size = self._bytes_below(node)
        self.extras.append(Extra(cut(dotted(path)) or "the top level", kind, size, value))

    def _bytes_below(self, node: object) -> int:
        """Return the bytes of all storages below a value that were not counted before."""
        total, pending = 0, [node]
        while pending:
            value = pending.pop()
            if isinstance(value, PersistentId):
                key = value.value[2] if isinstance(value.value, tuple) and len(value.value) > 2 else None
                if isinstance(key, str) and key in self.saved.storages and key not in self._keys:
                    self._keys.add(key)
                    total += self.saved.storages[key].stop - self.saved.storages[key].start
            elif isinstance(value, dict | list | tuple | Record) and id(value) not in self._counted:
                self._counted.add(id(value))
                pending += _children(value)
        return total

    def _require_printable(self, name: str) -> None:
        if not name or not name.isprintable():
            problem = "has a tensor whose name cannot be printed"
            raise UnsafeFileError(self.saved.file.path, problem, saw=repr(cut(name)))

    def set_values_apart(self) -> None:
        """Turn groups of single numbers (a loss, a counter) into plain values where there are others."""
        numbers = [path for path, tensors in self.groups.items() if self._are_numbers(tensors)]
        if len(numbers) == len(self.groups):
            return
        for path in numbers:
            for name, tensor in self.groups.pop(path).items():
                self._note((*path, name), tensor, value_kind(name), "a number")

    def _are_numbers(self, tensors: Mapping[str, Record]) -> bool:
        return len(tensors) <= 16 and all(self._is_number(name, t) for name, t in tensors.items())

    def _is_number(self, name: str, record: Record) -> bool:
        described = describe_tensor(record, self.saved, name)
        return not isinstance(described, OtherTensor) and element_count(described.tensor) == 1


def _training_kind(path: Container, entries: Entries | None) -> ExtraKind | None:
    """Return which training state a value is by its name, or by what it holds; None where it is none."""
    if entries is not None and {"state", "param_groups"} <= entries.keys():
        return "optimizer"
    return kind_of_key(path[-1]) if path else None


def value_kind(name: str) -> ExtraKind:
    """Return whether a plain value of that name counts steps or epochs, or is any other."""
    return "step" if _COUNTER.fullmatch(name) else "value"


def are_moments(tensors: Collection[str]) -> bool:
    """Return whether tensors of these names are what an optimizer keeps for its parameters."""
    names = [name.rpartition(".")[2] for name in tensors]
    return all(map(_MOMENTS.fullmatch, names)) and any(name != "step" for name in names)


def _is_module(value: object) -> bool:
    state = value.state if isinstance(value, Record) else None
    return isinstance(state, Entries) and {"_parameters", "_modules"} <= state.keys()


def _children(value: object) -> Iterator[object]:
    """Yield everything a value holds directly."""
    if isinstance(value, Entries):
        yield from value.values()
        for key, other in value.others:
            yield key
            yield other
    elif isinstance(value, Record):
        yield from (value.args, value.state, value.entries, value.items, value.keywords)
    elif isinstance(value, list | tuple):
        yield from value
