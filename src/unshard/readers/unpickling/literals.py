"""Instructions that push a plain value: numbers, text, bytes and constants."""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable

from unshard.readers.unpickling.machine import Instruction, Machine
from unshard.readers.unpickling.records import BrokenPickleError, HostilePickleError, Record

_U16 = struct.Struct("<H").unpack_from
_I32 = struct.Struct("<i").unpack_from
_U32 = struct.Struct("<I").unpack_from
_U64 = struct.Struct("<Q").unpack_from
_F64 = struct.Struct(">d").unpack_from


def _constant(value: object) -> Instruction:
    def push(m: Machine, at: int) -> int:
        m.stack.append(value)
        return at

    return push


def _byte_int(m: Machine, at: int) -> int:
    m.stack.append(m.data[at])
    return at + 1


def _fixed(unpack: Callable[[bytes, int], tuple[object, ...]], size: int) -> Instruction:
    def push(m: Machine, at: int) -> int:
        m.stack += unpack(m.data, at)
        return at + size

    return push


def _integer(m: Machine, at: int, length: int) -> int:
    if not 0 <= length <= m.limits.integer_bytes:
        raise HostilePickleError(f"holds an integer of {length} bytes: more than {m.limits.integer_bytes}")
    m.stack.append(int.from_bytes(m.text(at, length), "little", signed=True))
    return at + length


def _long1(m: Machine, at: int) -> int:
    return _integer(m, at + 1, m.data[at])


def _long4(m: Machine, at: int) -> int:
    return _integer(m, at + 4, _I32(m.data, at)[0])


def _number_line(m: Machine, at: int) -> int:
    line = m.line(at)
    if len(line) > m.limits.integer_bytes:
        raise HostilePickleError(f"holds a number of {len(line)} digits")
    value = line == b"01" if line in (b"00", b"01") else int(line.removesuffix(b"L"))
    m.stack.append(value)
    return at + len(line) + 1


def _float_line(m: Machine, at: int) -> int:
    line = m.line(at)
    m.stack.append(float(line))
    return at + len(line) + 1


def _string_line(m: Machine, at: int) -> int:
    line = m.line(at)
    if len(line) < 2 or line[0] != line[-1] or line[:1] not in (b"'", b'"'):
        raise BrokenPickleError("there is a string without quotes")
    m.stack.append(_python2_text(codecs.escape_decode(line[1:-1])[0]))
    return at + len(line) + 1


def _unicode_line(m: Machine, at: int) -> int:
    line = m.line(at)
    m.stack.append(str(line, "raw-unicode-escape"))
    return at + len(line) + 1


def _python2_text(content: bytes) -> object:
    """Return what Python 2 called a string: text, where it is text."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content


def _utf8(content: bytes) -> object:
    return content.decode("utf-8", "surrogatepass")


def _bytearray(content: bytes) -> object:
    return Record("builtins.bytearray", (content,))


def _counted(
    length_at: Callable[[bytes, int], tuple[int]], size: int, make: Callable[[bytes], object]
) -> Instruction:
    def push(m: Machine, at: int) -> int:
        (length,) = length_at(m.data, at)
        m.stack.append(make(m.text(at + size, length)))
        return at + size + length

    return push


def _u8(data: bytes, at: int) -> tuple[int]:
    return (data[at],)


LITERALS: dict[bytes, Instruction] = {
    b"N": _constant(None),
    b"\x88": _constant(True),  # noqa: FBT003
    b"\x89": _constant(False),  # noqa: FBT003
    b")": _constant(()),
    b"K": _byte_int,
    b"M": _fixed(_U16, 2),
    b"J": _fixed(_I32, 4),
    b"G": _fixed(_F64, 8),
    b"\x8a": _long1,
    b"\x8b": _long4,
    b"I": _number_line,
    b"L": _number_line,
    b"F": _float_line,
    b"S": _string_line,
    b"V": _unicode_line,
    b"U": _counted(_u8, 1, _python2_text),
    b"T": _counted(_U32, 4, _python2_text),
    b"\x8c": _counted(_u8, 1, _utf8),
    b"X": _counted(_U32, 4, _utf8),
    b"\x8d": _counted(_U64, 8, _utf8),
    b"C": _counted(_u8, 1, bytes),
    b"B": _counted(_U32, 4, bytes),
    b"\x8e": _counted(_U64, 8, bytes),
    b"\x96": _counted(_U64, 8, _bytearray),
}
