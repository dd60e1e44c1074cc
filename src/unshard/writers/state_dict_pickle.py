"""The pickle of a plain state dict, written opcode by opcode: no pickler runs, and no torch.

It is what Python's pickler makes of an `OrderedDict` of contiguous tensors on the CPU under protocol
2, down to the numbers under which it remembers objects. Only the opcodes that needs are here.

Source:
    pickletools.py (opcodes); Modules/_pickle.c (`memo_put`, `batch_dict`); torch/_tensor.py
    (`_reduce_ex_internal`); torch/serialization.py (`persistent_id`).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from itertools import islice

from unshard.tensors import Tensor, byte_count, element_count
from unshard.tensors.boxes import row_major_strides

_MARK, _TUPLE, _REDUCE, _PERSISTENT, _EMPTY_TUPLE, _FALSE = b"(", b"t", b"R", b"Q", b")", b"\x89"
_BATCH = 1000  # items of a dict that the pickler sets at a time


def pickle_state_dict(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the pickle; the storage of the n-th tensor is called `n`, counted from 0."""
    writer = _Writer()
    writer.emit(b"\x80\x02")
    writer.call_ordered_dict()
    items = iter(enumerate(tensors.items()))
    while batch := list(islice(items, _BATCH)):
        single = len(batch) == 1
        writer.emit(b"" if single else _MARK)
        for key, (name, tensor) in batch:
            writer.text(name)
            writer.remember()
            writer.tensor(str(key), tensor)
        writer.emit(b"s" if single else b"u")
    writer.emit(b".")
    return bytes(writer.out)


class _Writer:
    """Opcodes, and the numbers of the objects that a pickler remembers."""

    def __init__(self) -> None:
        self.out = bytearray()
        self._known: dict[bytes, int] = {}
        self._remembered = 0

    def emit(self, *parts: bytes) -> None:
        for part in parts:
            self.out += part

    def remember(self) -> None:
        """Give the object that was just made the next number."""
        number, self._remembered = self._remembered, self._remembered + 1
        self.emit(b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number))

    def once(self, opcodes: bytes) -> None:
        """Make an object by `opcodes`, or fetch it by its number if they made it before."""
        if opcodes in self._known:
            number = self._known[opcodes]
            self.emit(b"h" + bytes([number]) if number < 256 else b"j" + struct.pack("<I", number))
        else:
            self._known[opcodes] = self._remembered
            self.emit(opcodes)
            self.remember()

    def text(self, text: str) -> None:
        self.emit(_text(text))

    def name(self, module: str, name: str) -> None:
        """Make a class or a function of Python's."""
        self.once(f"c{module}\n{name}\n".encode())

    def call_ordered_dict(self) -> None:
        self.name("collections", "OrderedDict")
        self.emit(_EMPTY_TUPLE, _REDUCE)
        self.remember()

    def integers(self, values: Sequence[int]) -> None:
        """Make a tuple of integers."""
        if not values:
            self.emit(_EMPTY_TUPLE)
            return
        short = len(values) <= 3
        self.emit(b"" if short else _MARK, *map(_integer, values))
        self.emit((b"", b"\x85", b"\x86", b"\x87")[len(values)] if short else _TUPLE)
        self.remember()

    def tensor(self, key: str, tensor: Tensor) -> None:
        """Make a tensor that is all of the storage `key`."""
        storage = tensor.dtype.storage
        self.name("torch._utils", "_rebuild_tensor_v2" if storage else "_rebuild_tensor_v3")
        self.emit(_MARK)
        self.storage(key, tensor)
        self.emit(_integer(0))
        self.integers(tensor.shape)
        self.integers(row_major_strides(tensor.shape))
        self.emit(_FALSE)
        self.call_ordered_dict()
        if storage is None:  # without a storage class of its own, the dtype has to be told
            self.name("torch", tensor.dtype.name)
        self.emit(_TUPLE)
        self.remember()
        self.emit(_REDUCE)
        self.remember()

    def storage(self, key: str, tensor: Tensor) -> None:
        """Make the reference that stands for a storage: its class, key, device and length."""
        self.emit(_MARK)
        self.once(_text("storage"))
        if tensor.dtype.storage is None:
            self.name("torch.storage", "UntypedStorage")
        else:
            self.name("torch", tensor.dtype.storage)
        self.text(key)
        self.remember()
        self.once(_text("cpu"))
        self.emit(_integer(element_count(tensor) if tensor.dtype.storage else byte_count(tensor)), _TUPLE)
        self.remember()
        self.emit(_PERSISTENT)


def _text(text: str) -> bytes:
    # Names come from other pickles and may hold lone surrogates, which pickles can carry.
    encoded = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _integer(value: int) -> bytes:
    """Make an integer that is not negative."""
    if value < 1 << 8:
        return b"K" + bytes([value])
    if value < 1 << 16:
        return b"M" + struct.pack("<H", value)
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    encoded = value.to_bytes(value.bit_length() // 8 + 1, "little")
    return b"\x8a" + bytes([len(encoded)]) + encoded
