"""From the inert records of a torch file to described tensors: offsets, shapes and strides.

    _rebuild_tensor      (storage, offset, shape, strides)
    _rebuild_tensor_v2   (storage, offset, shape, strides, requires_grad, hooks[, metadata])
    _rebuild_tensor_v3   (storage, offset, shape, strides, requires_grad, hooks, dtype[, metadata])
    _rebuild_parameter   (tensor, ...): an nn.Parameter
    _rebuild_from_type   (function, class, arguments, attributes): a tensor that carries Python attributes,
                         or is of a class of its own

Several tensors may view one storage, and a storage may be larger than its tensor; only the view counts.
All arithmetic is on Python's integers and ends with: the last element of the view lies in the storage.
Tensors that are no strided view of bytes (sparse, quantised, ...) are named, not read; parts of distributed
ones are handed on with what the file says of them.

Source:
    torch/_utils.py and torch/_tensor.py (`_rebuild_*`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from unshard.dtypes import DTYPES, DType
from unshard.errors import DamagedFileError, UnsafeFileError
from unshard.readers.rendering import cut, shown
from unshard.readers.torch_save.torch_storages import (
    TOO_MANY,
    Storage,
    StorageReference,
    TorchFile,
    impossible,
    parse_storage_reference,
)
from unshard.readers.unpickling import Entries, Global, PersistentId, Record
from unshard.tensors import DescribedTensor, FileSource, whole_tensor
from unshard.tensors.boxes import row_major_strides

_MOST_DIMENSIONS = 32  # what every version of numpy can hold
_MOST_WRAPPERS = 8


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a torch file.

    Attributes:
        tensor: The tensor.
        storage: What it is a view of.
        attributes: Names of Python attributes that were saved with it.
    """

    tensor: DescribedTensor
    storage: Storage
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PartRecord:
    """One rank's part of a distributed tensor, as it stands in the file.

    Attributes:
        shape: The shape of the whole tensor, or None where only its attributes tell.
        dtype: The number format of the whole, or None where it is not known here.
        attributes: Everything else: torch's own classes as records.
    """

    shape: tuple[int, ...] | None
    dtype: DType | None
    attributes: object


@dataclass(frozen=True, slots=True)
class OtherTensor:
    """A tensor of a kind that is not a strided view of bytes.

    Attributes:
        kind: What it is, in words: "DTensor", "sparse".
        part: What the file says of it, where it is one rank's part of a tensor.
    """

    kind: str
    part: PartRecord | None = None


_WRAPPER = "torch._utils._rebuild_wrapper_subclass"
_OTHER_KINDS = {
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch._utils._rebuild_sparse_csr_tensor": "sparse",
    "torch._utils._rebuild_qtensor": "quantised",
    "torch._utils._rebuild_nested_tensor": "nested",
    "torch._utils._rebuild_meta_tensor_no_storage": "meta (it has no values)",
    _WRAPPER: "wrapper subclass",
    "torch._utils._rebuild_device_tensor_from_numpy": "saved through numpy",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "saved through another device",
    "torch._utils._rebuild_xla_tensor": "XLA",
    "torch._utils._rebuild_mlc_tensor": "MLC",
}
_PLAIN = {f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3")}
_PARAMETER = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
_FROM_TYPE = {
    f"torch.{module}._rebuild_from_type{version}"
    for module in ("_tensor", "tensor")
    for version in ("", "_v2")
}
_PLAIN_TYPES = {
    "torch.Tensor",
    "torch._tensor.Tensor",
    "torch.tensor.Tensor",
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.Buffer",
}
# Whatever module of torch.distributed they are in; that has changed with every other version.
_PARTS = ("DTensor", "ShardedTensor")
# The first versions of it were plain objects.
_PART_OBJECTS = {
    "torch.distributed._shard.sharded_tensor.api.ShardedTensor",
    "torch.distributed._sharded_tensor.api.ShardedTensor",
}
_KINDS = _PLAIN | _PARAMETER | _FROM_TYPE | _PART_OBJECTS | _OTHER_KINDS.keys()


def is_tensor(value: object) -> bool:
    """Return whether a value of a torch file is a tensor of any kind."""
    return type(value) is Record and value.kind in _KINDS


def is_part(value: Record) -> bool:
    """Return whether a tensor is one rank's part of a distributed one."""
    for _ in range(_MOST_WRAPPERS):
        if value.kind not in _PARAMETER or not value.args or not is_tensor(value.args[0]):
            break
        value = _record(value.args[0])
    if value.kind in _FROM_TYPE and len(value.args) > 1:
        made = value.args[1]
        return type(made) is Global and _is_part_class(made)
    return value.kind in _PART_OBJECTS


def _is_part_class(made: Global) -> bool:
    return made.module.startswith("torch.distributed.") and made.name in _PARTS


def describe_tensor(value: Record, saved: TorchFile, name: str) -> StoredTensor | OtherTensor:
    """Return the tensor a record stands for; `is_tensor` has told that it does.

    Raises:
        UnsafeFileError: It is no tensor that torch could have saved.
    """
    subject = f"{saved.file.path.name}: {name}"
    attributes: list[str] = []
    record, kind, args = value, value.kind, value.args
    for _ in range(_MOST_WRAPPERS):
        if kind in _PARAMETER:
            _note_attributes(attributes, *args[3:4])
            if not args or not is_tensor(args[0]):
                raise impossible(subject, "is a parameter of something that is no tensor")
            record = _record(args[0])
            kind, args = record.kind, record.args
        elif kind in _FROM_TYPE:
            match args:
                case (Global() as function, Global() as made, tuple(inner), state):
                    if (other := _special_type(made, function, inner, state, subject)) is not None:
                        return other
                    _note_attributes(attributes, state)
                    kind, args = function.path, inner
                case _:
                    raise impossible(subject, "has other arguments than torch gives it")
        else:
            break
    if kind in _PART_OBJECTS:
        return OtherTensor("ShardedTensor", PartRecord(None, None, record.state))
    if kind in _PLAIN:
        return _describe_view(kind, args, saved, subject, tuple(attributes))
    if kind in _OTHER_KINDS:
        return OtherTensor(_OTHER_KINDS[kind])
    raise impossible(subject, "is wrapped in a way that torch does not write", saw=kind)


def _record(value: object) -> Record:
    assert isinstance(value, Record)
    return value


def _note_attributes(attributes: list[str], *state: object) -> None:
    """Note the names in what torch saves as a tensor's attributes: a dictionary, or one and its slots."""
    for part in state[0] if state and type(state[0]) is tuple else state:
        if type(part) is Entries:
            attributes += part


def _special_type(
    made: Global, function: Global, args: tuple[object, ...], state: object, subject: str
) -> OtherTensor | None:
    """Return what a tensor of a class of its own is, or None where the class is torch's plain one."""
    if _is_part_class(made):
        match args:  # class, dtype, shape, strides, ...
            case (_, dtype, shape, *_) if function.path == _WRAPPER:
                return OtherTensor(made.name, PartRecord(integers(shape, subject), named_dtype(dtype), state))
        raise impossible(subject, "has other arguments than torch gives it")
    if made.path in _PLAIN_TYPES:
        return None
    return OtherTensor(f"{made.path} ({_OTHER_KINDS.get(function.path, 'a class of its own')})")


def _describe_view(
    kind: str, args: tuple[object, ...], saved: TorchFile, subject: str, attributes: tuple[str, ...]
) -> StoredTensor | OtherTensor:
    """Return the view of a storage that the arguments of `_rebuild_tensor*` describe."""
    match args:
        case (PersistentId(value=reference), offset, size, stride, *rest):
            found = parse_storage_reference(reference, subject)
        case _:
            raise impossible(subject, "is a view of something that is no storage")
    if found is None:
        raise impossible(subject, "is a view of something that is no storage")
    if found.dtype is None:
        return OtherTensor(f"of {cut(found.kind)}")
    dtype: DType | None = found.dtype
    metadata = rest[3:4] if kind.endswith("_v3") else rest[2:3]
    if kind.endswith("_v3"):
        dtype = named_dtype(rest[2]) if len(rest) > 2 else None
    if dtype is None:
        return OtherTensor(f"of {shown(rest[2]) if len(rest) > 2 else 'an unknown dtype'}")
    if flags := _set_flags(*metadata):
        return OtherTensor(f"with its {' and '.join(flags)} bit set")
    storage, first, available = _locate(found, found.dtype.itemsize, saved, subject)
    shape, strides = integers(size, subject), integers(stride, subject)
    offset = integers((offset,), subject)[0]
    _require_inside(shape, strides, offset, dtype, available, subject)
    source = FileSource(
        saved.file, first + offset * dtype.itemsize, shape, _tidy(shape, strides), dtype, saved.byte_order
    )
    return StoredTensor(whole_tensor(source), storage, attributes)


def named_dtype(value: object) -> DType | None:
    """Return the dtype that a name such as `torch.float32` stands for, or None where it is not read."""
    if type(value) is Global and value.module == "torch":
        return DTYPES.get(value.name)
    return None


def _set_flags(*metadata: object) -> list[str]:
    """Return the lazy operations that a tensor's metadata says are still to be carried out."""
    entries = metadata[0] if metadata else None
    return [key for key, value in entries.items() if value is not False] if type(entries) is Entries else []


def _locate(found: StorageReference, size: int, saved: TorchFile, subject: str) -> tuple[Storage, int, int]:
    """Return a storage, where the referenced part begins in the file, and how many bytes it has."""
    storage = saved.storages.get(found.key)
    if storage is None:
        raise DamagedFileError(
            subject,
            f"needs storage `{cut(found.key)}`, which is not in the file",
            hint="Copy the file again; if the original is the same, the tensor was never saved.",
        )
    if storage.stop - storage.start != found.count * size:
        raise UnsafeFileError(
            subject,
            f"says that storage `{cut(found.key)}` has another size than it has",
            saw=f"{storage.stop - storage.start} bytes",
            expected=f"{found.count} x {size}",
        )
    first, count = found.view or (0, found.count)
    return storage, storage.start + first * size, count * size


def integers(value: object, subject: str) -> tuple[int, ...]:
    """Return sizes, strides or an offset; a `torch.Size` is as good as a tuple."""
    if type(value) is Record and value.kind == "torch.Size" and len(value.args) == 1:
        value = value.args[0]
    if not isinstance(value, tuple | list):
        raise impossible(subject, "has sizes that are no numbers", saw=shown(value))
    if len(value) > _MOST_DIMENSIONS:
        raise impossible(subject, "has too many dimensions", saw=str(len(value)))
    for number in value:
        if type(number) is not int or not 0 <= number < TOO_MANY:
            raise impossible(subject, "has a size, stride or offset that cannot be", saw=shown(number))
    return tuple(value)


def _require_inside(
    shape: tuple[int, ...], strides: tuple[int, ...], offset: int, dtype: DType, available: int, subject: str
) -> None:
    """Raise unless every element of a view lies in its storage."""
    if len(shape) != len(strides):
        raise impossible(subject, "has other numbers of sizes and strides", saw=f"{shape} and {strides}")
    if 0 in shape:
        return
    if math.prod(shape) * dtype.itemsize >= TOO_MANY:
        raise impossible(subject, "is larger than anything", saw=f"shape {shape}")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if (last + 1) * dtype.itemsize > available:
        raise impossible(
            subject,
            "reaches beyond the end of its storage",
            saw=f"element {last} of {dtype}, shape {shape}, strides {strides}",
            expected=f"at most {available} bytes",
        )


def _tidy(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """Return strides in which dimensions of one element, or of none, have what a plain tensor has."""
    plain = row_major_strides(shape)
    if 0 in shape:
        return plain
    return tuple(p if n == 1 else s for n, s, p in zip(shape, strides, plain, strict=True))
