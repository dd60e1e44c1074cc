"""The instructions of a pickle, one function each; none of them imports or calls what a file names.

A function takes the machine and the position after its own byte, and returns the position of the next
instruction. Taking more from the stack than it holds raises IndexError, which the machine explains.

Source:
    CPython Lib/pickletools.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from unshard.readers.unpickling.literals import LITERALS
from unshard.readers.unpickling.machine import FRAMED, STOPPED, Instruction, Machine, PickleCutShortError
from unshard.readers.unpickling.records import (
    BrokenPickleError,
    Entries,
    Global,
    HostilePickleError,
    PersistentId,
    Record,
    append,
    called,
    put,
    set_state,
)

_U16 = struct.Struct("<H").unpack_from
_I32 = struct.Struct("<i").unpack_from
_U32 = struct.Struct("<I").unpack_from
_U64 = struct.Struct("<Q").unpack_from
_F64 = struct.Struct(">d").unpack_from


def _proto(m: Machine, at: int) -> int:
    if at - 1 != m.start:
        raise HostilePickleError("changes its protocol on the way")
    if m.data[at] > 5:
        raise BrokenPickleError(f"protocol {m.data[at]} does not exist")
    return at + 1


def _frame(m: Machine, at: int) -> int:
    (length,) = _U64(m.data, at)
    if at <= m.frame_stop:
        raise HostilePickleError("has a frame inside a frame")
    m.frame_stop = at + 8 + length
    if m.frame_stop > len(m.data):
        raise PickleCutShortError(f"a frame of {length} bytes is cut off")
    return at + 8 + FRAMED


def _stop(m: Machine, at: int) -> int:
    return STOPPED


def _mark(m: Machine, at: int) -> int:
    if len(m.marks) == m.limits.marks:
        raise HostilePickleError(f"opens more than {m.limits.marks} collections in one another")
    m.marks.append(m.stack)
    m.stack = []
    return at


def _pop(m: Machine, at: int) -> int:
    if m.stack:
        m.stack.pop()
    else:
        m.take_marked()
    return at


def _pop_mark(m: Machine, at: int) -> int:
    m.take_marked()
    return at


def _dup(m: Machine, at: int) -> int:
    m.stack.append(m.stack[-1])
    return at


def _new(make: Callable[[], object]) -> Instruction:
    def push(m: Machine, at: int) -> int:
        m.stack.append(make())
        return at

    return push


def _new_set() -> Record:
    record = Record("builtins.set", ())
    record.items = []
    return record


def _collect(make: Callable[[list[object]], object]) -> Instruction:
    def push(m: Machine, at: int) -> int:
        items = m.take_marked()
        m.stack.append(make(items))
        return at

    return push


def _entries(items: list[object]) -> Entries:
    entries = Entries()
    put(entries, items[0::2], items[1::2])
    return entries


def _frozenset(items: list[object]) -> Record:
    return Record("builtins.frozenset", (items,))


def _tuple1(m: Machine, at: int) -> int:
    m.stack[-1] = (m.stack[-1],)
    return at


def _tuple2(m: Machine, at: int) -> int:
    last = m.stack.pop()
    m.stack[-1] = (m.stack[-1], last)
    return at


def _tuple3(m: Machine, at: int) -> int:
    last = m.stack.pop()
    middle = m.stack.pop()
    m.stack[-1] = (m.stack[-1], middle, last)
    return at


def _append_one(m: Machine, at: int) -> int:
    item = m.stack.pop()
    append(m.stack[-1], [item])
    return at


def _append_marked(m: Machine, at: int) -> int:
    items = m.take_marked()
    append(m.stack[-1], items)
    return at


def _set_one(m: Machine, at: int) -> int:
    value = m.stack.pop()
    key = m.stack.pop()
    put(m.stack[-1], [key], [value])
    return at


def _set_marked(m: Machine, at: int) -> int:
    items = m.take_marked()
    put(m.stack[-1], items[0::2], items[1::2])
    return at


def _written_twice(slot: int) -> HostilePickleError:
    return HostilePickleError(f"writes memo slot {slot} twice")


def _binput(m: Machine, at: int) -> int:
    slot = m.data[at]
    if m.memo.setdefault(slot, m.stack[-1]) is not m.stack[-1]:
        raise _written_twice(slot)
    return at + 1


def _long_binput(m: Machine, at: int) -> int:
    (slot,) = _U32(m.data, at)
    if m.memo.setdefault(slot, m.stack[-1]) is not m.stack[-1]:
        raise _written_twice(slot)
    return at + 4


def _put_line(m: Machine, at: int) -> int:
    line = m.line(at)
    slot = int(line)
    if m.memo.setdefault(slot, m.stack[-1]) is not m.stack[-1]:
        raise _written_twice(slot)
    return at + len(line) + 1


def _memoize(m: Machine, at: int) -> int:
    slot = len(m.memo)
    if m.memo.setdefault(slot, m.stack[-1]) is not m.stack[-1]:
        raise _written_twice(slot)
    return at


def _binget(m: Machine, at: int) -> int:
    m.stack.append(m.memo[m.data[at]])
    return at + 1


def _long_binget(m: Machine, at: int) -> int:
    m.stack.append(m.memo[_U32(m.data, at)[0]])
    return at + 4


def _get_line(m: Machine, at: int) -> int:
    line = m.line(at)
    m.stack.append(m.memo[int(line)])
    return at + len(line) + 1


def _global(m: Machine, at: int) -> int:
    module = m.line(at)
    name = m.line(at + len(module) + 1)
    m.stack.append(m.named(module.decode(), name.decode()))
    return at + len(module) + len(name) + 2


def _stack_global(m: Machine, at: int) -> int:
    name = m.stack.pop()
    m.stack[-1] = m.named(m.stack[-1], name)
    return at


def _call(m: Machine, callee: object, args: object) -> object:
    result = called(callee, args)
    return m.named(result.module, result.name) if type(result) is Global else result


def _reduce(m: Machine, at: int) -> int:
    args = m.stack.pop()
    m.stack[-1] = _call(m, m.stack[-1], args)
    return at


def _newobj_ex(m: Machine, at: int) -> int:
    keywords = m.stack.pop()
    args = m.stack.pop()
    made = _call(m, m.stack[-1], args)
    if type(keywords) is not Entries or type(made) is not Record:
        raise BrokenPickleError("an object is made from something that is no class")
    made.keywords = keywords
    m.stack[-1] = made
    return at


def _inst(m: Machine, at: int) -> int:
    module = m.line(at)
    name = m.line(at + len(module) + 1)
    args = tuple(m.take_marked())
    m.stack.append(_call(m, m.named(module.decode(), name.decode()), args))
    return at + len(module) + len(name) + 2


def _obj(m: Machine, at: int) -> int:
    items = m.take_marked()
    m.stack.append(_call(m, items[0], tuple(items[1:])))
    return at


def _build(m: Machine, at: int) -> int:
    state = m.stack.pop()
    set_state(m.stack[-1], state)
    return at


def _persistent(m: Machine, at: int) -> int:
    m.references.append(m.stack[-1])
    m.stack[-1] = PersistentId(m.stack[-1])
    return at


def _persistent_line(m: Machine, at: int) -> int:
    line = m.line(at)
    m.stack.append(line.decode())
    _persistent(m, at)
    return at + len(line) + 1


def _refuse(what: str) -> Instruction:
    def refuse(m: Machine, at: int) -> int:
        raise HostilePickleError(what)

    return refuse


def _unknown(m: Machine, at: int) -> int:
    raise BrokenPickleError(f"{m.data[at - 1]:#04x} is no instruction")


_INSTRUCTIONS: dict[bytes, Instruction] = {
    **LITERALS,
    b"\x80": _proto,
    b"\x95": _frame,
    b".": _stop,
    b"(": _mark,
    b"0": _pop,
    b"1": _pop_mark,
    b"2": _dup,
    b"]": _new(list),
    b"}": _new(Entries),
    b"\x8f": _new(_new_set),
    b"l": _collect(list),
    b"d": _collect(_entries),
    b"t": _collect(tuple),
    b"\x91": _collect(_frozenset),
    b"\x85": _tuple1,
    b"\x86": _tuple2,
    b"\x87": _tuple3,
    b"a": _append_one,
    b"e": _append_marked,
    b"\x90": _append_marked,
    b"s": _set_one,
    b"u": _set_marked,
    b"q": _binput,
    b"r": _long_binput,
    b"p": _put_line,
    b"\x94": _memoize,
    b"h": _binget,
    b"j": _long_binget,
    b"g": _get_line,
    b"c": _global,
    b"\x93": _stack_global,
    b"R": _reduce,
    b"\x81": _reduce,  # cls.__new__(cls, *args): the same to us
    b"\x92": _newobj_ex,
    b"i": _inst,
    b"o": _obj,
    b"b": _build,
    b"Q": _persistent,
    b"P": _persistent_line,
    b"\x82": _refuse("names a class by its number in a registry that only the writer had"),
    b"\x83": _refuse("names a class by its number in a registry that only the writer had"),
    b"\x84": _refuse("names a class by its number in a registry that only the writer had"),
    b"\x97": _refuse("keeps data in buffers outside of the file"),
    b"\x98": _refuse("keeps data in buffers outside of the file"),
}
INSTRUCTIONS: tuple[Instruction, ...] = tuple(
    _INSTRUCTIONS.get(bytes([code]), _unknown) for code in range(256)
)
