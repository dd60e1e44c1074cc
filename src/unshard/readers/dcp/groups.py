"""Where the model is among the names of a checkpoint, and what is training state.

Names were joined with dots when the checkpoint was saved. Newer metadata keeps the keys they were joined
from (`planner_data`), which tell a container from a part of a name; without them, names must do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from unshard.checkpoint import Extra, ExtraKind
from unshard.readers.dcp.tables import ItemRow, Keys, Tables, TensorRow
from unshard.readers.rendering import cut
from unshard.readers.torch_save.contents import are_moments, kind_of_key

Container = tuple[str, ...]

_DEEPEST_STATE = 4  # `state.optimizers`, `app.optimizers`, `chained_0.optimizer` and their like
_MOST_NUMBERS = 16
_PROGRESS = frozenset(("train_state", "trainer_state", "progress"))
# What models lie in where no keys tell: torch's own habits, Lightning, prime-rl, composer, DDP.
_KNOWN_CONTAINERS: tuple[Container, ...] = (
    ("state_dict",),
    ("app", "model"),
    ("state", "model"),
    ("module",),
    ("model",),
)


@dataclass(slots=True)
class Groups:
    """What a checkpoint holds.

    Attributes:
        models: By container, the tensors of everything that may be a model, by their names in it.
        state: Names and sizes of training state, by where it lies and what it is.
        state_names: Whole names of tensors that are training state.
        numbers: Tensors of one number that are no part of a model, by whole name.
        items: What is no tensor, and no training state.
    """

    models: dict[Container, dict[str, TensorRow]] = field(default_factory=dict)
    state: dict[tuple[str, ExtraKind], int] = field(default_factory=dict)
    state_names: list[str] = field(default_factory=list)
    numbers: dict[str, TensorRow] = field(default_factory=dict)
    items: list[ItemRow] = field(default_factory=list)

    def extras(self) -> Iterable[Extra]:
        """Yield the training state."""
        for (name, kind), size in self.state.items():
            yield Extra(cut(name), kind, size)


def find_groups(tables: Tables) -> Groups:
    """Return what a checkpoint holds, group by group."""
    groups = Groups()
    for tensor in tables.tensors:
        keys = _keys(tables, tensor.name)
        if _note_state(groups, keys, _bytes_of(tables, tensor), is_tensor=True):
            groups.state_names.append(tensor.name)
        elif keys[0] in _PROGRESS and set(tensor.shape) <= {1}:
            groups.numbers[tensor.name] = tensor
        else:
            container = keys[:-1] if len(tables.paths.get(tensor.name, ())) > 1 else ()
            name = keys[-1] if container else tensor.name
            groups.models.setdefault(container, {})[name] = tensor
    for item in tables.items:
        if not _note_state(groups, _keys(tables, item.name), item.length, is_tensor=False):
            groups.items.append(item)
    _take_moments_out(groups, tables)
    _take_numbers_out(groups)
    _find_container(groups)
    return groups


def _keys(tables: Tables, name: str) -> Container:
    """Return the keys that led to a name, or its parts where it is not told."""
    path: Keys | None = tables.paths.get(name)
    if path is None or len(path) < 2:
        return tuple(name.split("."))
    return tuple(map(str, path))


def _note_state(groups: Groups, keys: Container, size: int, *, is_tensor: bool) -> bool:
    """Return whether something is training state, of which note is taken."""
    for depth, key in enumerate(keys[:_DEEPEST_STATE], 1):
        kind = kind_of_key(key)
        # A tensor may be called as an optimizer is; one that is called as a generator is its state.
        if kind is not None and (kind == "rng" or not is_tensor or depth < len(keys)):
            place = (".".join(keys[:depth]), kind)
            groups.state[place] = groups.state.get(place, 0) + size
            return True
    return False


def _bytes_of(tables: Tables, tensor: TensorRow) -> int:
    """Return the bytes of a tensor's blobs."""
    return int(tables.rows(tensor)[:, -2].sum()) if tensor.chunks else 0


def _take_moments_out(groups: Groups, tables: Tables) -> None:
    """Take groups of what only an optimizer keeps for training state."""
    for container, tensors in list(groups.models.items()):
        if are_moments(tensors):
            size = sum(_bytes_of(tables, tensor) for tensor in tensors.values())
            groups.state[".".join(container) or "the top level", "optimizer"] = size
            del groups.models[container]


def _take_numbers_out(groups: Groups) -> None:
    """Take groups of single numbers (a step, a loss) for values where there are others."""
    numbers = [container for container, tensors in groups.models.items() if _are_numbers(tensors)]
    if len(numbers) < len(groups.models):
        for container in numbers:
            groups.numbers |= {tensor.name: tensor for tensor in groups.models.pop(container).values()}


def _are_numbers(tensors: Mapping[str, TensorRow]) -> bool:
    return len(tensors) <= _MOST_NUMBERS and all(set(tensor.shape) <= {1} for tensor in tensors.values())


def _find_container(groups: Groups) -> None:
    """Take what all names of the top level have in common for a container, if it is known as one."""
    tensors = groups.models.get(())
    if not tensors:
        return
    for container in _KNOWN_CONTAINERS:
        prefix = ".".join(container) + "."
        if all(name.startswith(prefix) for name in tensors) and (
            container != ("model",) or _is_container(prefix, tensors, groups)
        ):
            del groups.models[()]
            groups.models[container] = {name.removeprefix(prefix): row for name, row in tensors.items()}
            return


def _is_container(prefix: str, names: Iterable[str], groups: Groups) -> bool:
    """Return whether `model.` is a container, and not part of the names as in Hugging Face's models.

    An optimizer names parameters as the model itself does.
    """
    inner = [name.removeprefix(prefix) for name in names]
    known = [f"{name}." for name in groups.state_names]
    if any(f".{prefix}{inner[0]}." in name for name in known):
        return False
    if any(f".{inner[0]}." in name for name in known):
        return True
    return any(name.partition(".")[0] in ("model", "lm_head") for name in inner)
