"""From the records of a pickled `.metadata` to tables, whichever machine read the pickle.

    Metadata                 state_dict_metadata: {name: tensor or bytes}, storage_data: {index: info},
                             planner_data: {name: keys}; storage_meta, version (newer torch)
    TensorStorageMetadata    properties, size, chunks
    ChunkStorageMetadata     offsets, sizes
    TensorProperties         (dtype, layout, requires_grad, memory format, pinned)
    BytesStorageMetadata     nothing
    MetadataIndex            fqn, offset (of a chunk), index (a hint)
    _StorageInfo             relative_path, offset, length; transform_descriptors (newer torch)

A class counts by its own name and its fields, whatever module it was in: torch moved them, and others
(OLMo-core, Megatron-core) write classes of their own. Everything is checked for its type; whether the
numbers make sense is for `chunks` to say.

Source:
    torch/distributed/checkpoint/metadata.py and filesystem.py (torch/distributed/_shard/checkpoint in 1.13).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from unshard.readers.dcp.tables import (
    NOWHERE,
    PLACE_FIELDS,
    ItemRow,
    Keys,
    MetadataError,
    Tables,
    TensorRow,
)
from unshard.readers.rendering import cut

_MOST_DIMENSIONS = 32
_MOST_TRANSFORMS = 16
_FREE_TEXT, _FREE_NUMBERS = 1 << 20, 1 << 16
# A pickle can mention one long text, or one chunk, in two bytes as often as it likes. Real ones spend more
# than forty bytes on a chunk of eight numbers, and mention every name three times.
_MOST_TEXT_PER_BYTE, _BYTES_PER_NUMBER = 8, 2

_UNPLACED = (NOWHERE, 0, 0, 0)
_BYTECHECKPOINT = "bytecheckpoint"


def build_tables(root: object, classes: Iterable[str], pickle_bytes: int) -> Tables:
    """Return the tables of the metadata that `root` stands for.

    Args:
        root: What the pickle holds.
        classes: Full names of all classes and functions in it.
        pickle_bytes: Its length, which bounds the tables.

    Raises:
        MetadataError: It is no metadata of DCP, or contradicts itself.
    """
    fields = _root_fields(root)
    build = _Build(pickle_bytes)
    build.add_entries(_pairs(fields["state_dict_metadata"], "state_dict_metadata"))
    build.add_places(_pairs(fields.get("storage_data"), "storage_data"))
    return Tables(
        tensors=build.tensors,
        items=build.item_rows(),
        files=list(build.files),
        transforms=list(build.transforms),
        paths=build.paths(fields.get("planner_data")),
        classes=list(classes),
        facts=_facts(root, fields),
        numbers=build.numbers,
    )


def _root_fields(root: object) -> Mapping[str, object]:
    kind = getattr(root, "kind", None)
    fields = _state(root)
    if fields is None or "state_dict_metadata" not in fields:
        problem = "is a pickle of something else than the metadata of a checkpoint"
        raise MetadataError("unsupported", problem, cut(str(kind)) if kind else type(root).__name__)
    if str(kind).startswith(_BYTECHECKPOINT) or "all_tensor_metadata" in fields:
        raise MetadataError(
            "unsupported",
            "is of ByteCheckpoint, which looks like PyTorch DCP and keeps raw bytes of tensors in other ways",
            cut(str(kind)),
        )
    return fields


def _facts(root: object, fields: Mapping[str, object]) -> dict[str, str]:
    facts = {
        "root": str(getattr(root, "kind", "")),
        "fields": " ".join(key for key in fields if key.isidentifier()),
    }
    if isinstance(version := fields.get("version"), str):
        facts["version"] = cut(version)
    return facts


@dataclass(slots=True)
class _Build:
    pickle_bytes: int
    tensors: list[TensorRow] = field(default_factory=list)
    items: dict[str, ItemRow | None] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    transforms: dict[tuple[str, ...], int] = field(default_factory=lambda: {(): 0})
    numbers: array[int] = field(default_factory=lambda: array("q"))
    # By name and offset, the position of the place in a chunk's row.
    _places: dict[str, dict[tuple[int, ...], int]] = field(default_factory=dict)
    _text: int = 0

    def add_entries(self, entries: Iterable[tuple[object, object]]) -> None:
        """Add tensors, and names of everything else."""
        for name, entry in entries:
            if type(name) is not str:
                raise MetadataError("unsafe", "has an entry whose name is no text", type(name).__name__)
            self._count_text(name)
            kind = _class(entry)
            if name in self._places or name in self.items:
                raise MetadataError("unsafe", "gives one name twice", cut(name))
            if kind == "TensorStorageMetadata":
                self._add_tensor(name, _fields(entry, kind, name))
            elif kind == "BytesStorageMetadata":
                self.items[name] = None
            else:
                problem = f"describes `{cut(name)}` by a class that is not known"
                raise MetadataError("unsupported", problem, cut(kind or type(entry).__name__))

    def _add_tensor(self, name: str, fields: Mapping[str, object]) -> None:
        shape = _sizes(fields.get("size"), name)
        chunks = fields.get("chunks")
        if type(chunks) is not list:
            raise MetadataError("unsafe", f"has no list of chunks for `{cut(name)}`")
        numbers, places = self.numbers, dict[tuple[int, ...], int]()
        first, dimensions = len(numbers), len(shape)
        self._limit_numbers(len(chunks) * (2 * dimensions + PLACE_FIELDS))
        try:
            for chunk in chunks:
                if _class(chunk) != "ChunkStorageMetadata":
                    raise MetadataError("unsafe", f"has a chunk of `{cut(name)}` that is none", _class(chunk))
                state = chunk.state
                offset, size = _sizes(state["offsets"], name), _sizes(state["sizes"], name)
                if len(offset) != dimensions or len(size) != dimensions:
                    problem = f"has a chunk of `{cut(name)}` with another number of dimensions"
                    raise MetadataError("unsafe", problem, f"{len(offset)} and {len(size)} for {dimensions}")
                if 0 in size:
                    continue  # ranks that have nothing of a tensor say so
                if offset in places:
                    _require_same(numbers, places[offset], size, name)
                    continue
                numbers.extend(offset)
                numbers.extend(size)
                places[offset] = len(numbers)
                numbers.extend(_UNPLACED)
        except (AttributeError, KeyError, TypeError, IndexError):
            raise MetadataError("unsafe", f"has a chunk of `{cut(name)}` without its fields") from None
        self._places[name] = places
        dtype = _dtype(fields.get("properties"), name)
        self.tensors.append(TensorRow(name, dtype, shape, len(places), first))

    def add_places(self, entries: Iterable[tuple[object, object]]) -> None:
        """Add where chunks and items lie."""
        numbers, every = self.numbers, self._places
        for index, info in entries:
            if _class(index) != "MetadataIndex" or _class(info) != "_StorageInfo":
                raise MetadataError(
                    "unsafe", "says where things lie by classes that are not known", _class(info)
                )
            try:
                key, place = index.state, info.state  # type: ignore[attr-defined]
                name, offset = key["fqn"], key.get("offset")
                file, start, length = place["relative_path"], place["offset"], place["length"]
                descriptors = place.get("transform_descriptors")
            except (AttributeError, KeyError, TypeError, IndexError):
                raise MetadataError("unsafe", "says where something lies without saying it all") from None
            if (
                type(name) is not str
                or type(file) is not str
                or type(start) is not int
                or type(length) is not int
            ):
                raise MetadataError("unsafe", "says where something lies in values of wrong types")
            number = self.files.get(file)
            if number is None:
                self._count_text(file)
                number = self.files[file] = len(self.files)
            transforms = self._transforms(descriptors) if descriptors is not None else 0
            if (known := every.get(name)) is None:
                self._add_item_place(name, ItemRow(name, number, start, length, transforms))
                continue
            at = known.get(_sizes(offset, name)) if offset is not None else _only(known)
            if at is None:
                continue  # of a chunk without elements
            if numbers[at] != NOWHERE:
                raise MetadataError("unsafe", f"gives a chunk of `{cut(name)}` two places")
            numbers[at] = number
            numbers[at + 1], numbers[at + 2], numbers[at + 3] = _fitting(start), _fitting(length), transforms

    def _add_item_place(self, name: str, row: ItemRow) -> None:
        if name not in self.items:
            raise MetadataError("unsafe", f"says where `{cut(name)}` lies, which it does not have")
        if self.items[name] is not None:
            raise MetadataError("unsafe", f"gives `{cut(name)}` two places")
        _fitting(row.start), _fitting(row.length)
        self.items[name] = row

    def item_rows(self) -> list[ItemRow]:
        """Return the items; those that nothing says the place of lie nowhere."""
        return [row or ItemRow(name, NOWHERE, 0, 0, 0) for name, row in self.items.items()]

    def paths(self, planner_data: object) -> dict[str, Keys]:
        """Return the keys that led to every name, as far as they are what a flattened dictionary leaves."""
        found: dict[str, Keys] = {}
        for name, path in _pairs(planner_data, None):
            if type(name) is not str or type(path) is not tuple:
                continue
            if name not in self._places and name not in self.items:
                continue
            if all(type(key) is str or type(key) is int for key in path):
                self._count_text(*(key for key in path if type(key) is str))
                if ".".join(map(str, path)) == name:
                    found[name] = path
        return found

    def _transforms(self, descriptors: object) -> int:
        names = [n for n in descriptors if type(n) is str] if isinstance(descriptors, list | tuple) else []
        if (
            not isinstance(descriptors, list | tuple)
            or not len(names) == len(descriptors) <= _MOST_TRANSFORMS
        ):
            raise MetadataError("unsafe", "names transforms in a way that torch does not")
        if (known := self.transforms.get(tuple(names))) is None:
            self._count_text(*names)
            known = self.transforms[tuple(names)] = len(self.transforms)
        return known

    def _limit_numbers(self, more: int) -> None:
        if len(self.numbers) + more > self.pickle_bytes // _BYTES_PER_NUMBER + _FREE_NUMBERS:
            raise MetadataError(
                "unsafe", "claims more chunks than it has room for", f"{self.pickle_bytes:,} bytes"
            )

    def _count_text(self, *texts: str) -> None:
        self._text += sum(map(len, texts))
        if self._text > self.pickle_bytes * _MOST_TEXT_PER_BYTE + _FREE_TEXT:
            raise MetadataError("unsafe", "repeats its names without end", f"{self.pickle_bytes:,} bytes")


def _require_same(numbers: array[int], place: int, size: tuple[int, ...], name: str) -> None:
    """Raise unless a second chunk at the same offset is the same chunk, saved by two ranks."""
    if tuple(numbers[place - len(size) : place]) != size:
        raise MetadataError("unsafe", f"has two chunks of `{cut(name)}` at one offset, of two sizes")


def _class(value: object) -> str:
    """Return the name of the class of a record, without its module; "" for anything else."""
    kind = getattr(value, "kind", None)
    return kind.rpartition(".")[2] if type(kind) is str else ""


def _state(value: object) -> Mapping[str, object] | None:
    """Return the attributes of a record that has them by name."""
    state = _any_state(value)
    return state if isinstance(state, dict) else None


def _any_state(value: object) -> object:
    """Return what would have become the attributes of a record, or None where it has none."""
    try:
        return value.state  # type: ignore[attr-defined]
    except (AttributeError, IndexError):
        return None


def _fields(value: object, kind: str, name: str) -> Mapping[str, object]:
    state = _state(value)
    if state is None:
        raise MetadataError("unsafe", f"has a {kind} of `{cut(name)}` without its fields")
    return state


def _pairs(value: object, what: str | None) -> Iterator[tuple[object, object]]:
    """Yield what a dictionary holds, keys that are no text included."""
    if not isinstance(value, dict):
        if what is not None:
            problem = f"has no dictionary as its {what}"
            raise MetadataError("unsafe", problem, type(value).__name__)
        return
    yield from value.items()
    yield from getattr(value, "others", ())


def _sizes(value: object, name: str) -> tuple[int, ...]:
    """Return sizes or offsets."""
    if type(value) is not tuple and getattr(value, "kind", None) == "torch.Size":
        args = value.args  # type: ignore[attr-defined]
        value = args[0] if len(args) == 1 else None
    if type(value) is list:
        value = tuple(value)
    if type(value) is not tuple or len(value) > _MOST_DIMENSIONS:
        raise MetadataError("unsafe", f"gives `{cut(name)}` sizes that are none")
    for number in value:
        if type(number) is not int or not -_MOST < number < _MOST:
            raise MetadataError("unsafe", f"gives `{cut(name)}` a size or an offset that cannot be")
    return value


_MOST = 1 << 62


def _fitting(number: int) -> int:
    if not -_MOST < number < _MOST:
        raise MetadataError(
            "unsafe", "says that something lies where nothing can", f"{number.bit_length()} bits"
        )
    return number


def _only(places: Mapping[tuple[int, ...], int]) -> int | None:
    """Return the place of the only chunk; old writers leave its offset out."""
    return next(iter(places.values())) if len(places) == 1 else None


def _dtype(properties: object, name: str) -> str:
    """Return the name of a number format as the pickle has it."""
    state = _any_state(properties)
    dtype = (
        state.get("dtype")
        if isinstance(state, dict)
        else state[0]
        if type(state) is tuple and state
        else None
    )
    path = getattr(dtype, "path", None)
    if type(path) is not str:
        raise MetadataError("unsafe", f"gives `{cut(name)}` no dtype")
    return path
