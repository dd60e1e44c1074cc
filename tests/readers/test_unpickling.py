"""Pickles read as data: what pickle itself would make of plain values, and nothing of anything else."""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime as dt
import io
import pickle
import pickletools
import random
import struct
from pathlib import PurePosixPath
from typing import Any, Self

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unshard.errors import DamagedFileError, InputError, UnsafeFileError
from unshard.readers.unpickling import (
    Entries,
    Limits,
    PersistentId,
    Pickle,
    Record,
    bytes_of,
    read_pickle,
    read_pickle_at,
)


def read(data: bytes, **limits: int) -> Pickle:
    return read_pickle(data, "test", limits=Limits(**limits))


def value_of(data: bytes) -> object:
    return read(data).value


def thawed(value: object) -> object:
    """Make of inert data what pickle would have made, for values of Python's own."""
    if (content := bytes_of(value)) is not None:
        is_array = isinstance(value, Record) and "bytearray" in value.kind
        return bytearray(content) if is_array else content
    if isinstance(value, Entries):
        return {k: thawed(v) for k, v in value.items()} | {thawed(k): thawed(v) for k, v in value.others}
    if isinstance(value, list | tuple):
        return type(value)(map(thawed, value))
    if isinstance(value, Record):
        return _thawed_record(value)
    return value


def _thawed_record(record: Any) -> object:
    name = record.kind.rpartition(".")[2]
    if name in ("set", "frozenset"):
        items = record.items if record.items is not None else (record.args[0] if record.args else [])
        return {"set": set, "frozenset": frozenset}[name](thawed(items))
    if name == "complex":
        return complex(*record.args)
    if name == "bytearray":  # protocols 0 to 2
        args = [thawed(arg) for arg in record.args]
        return bytearray(*args)
    if name == "encode" or (name == "bytes" and not record.args):
        return bytes_of(record) or b""
    raise AssertionError(record.kind)


ATOMS = (
    st.none() | st.booleans() | st.integers() | st.integers(-(1 << 700), 1 << 700)
    | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.binary(max_size=20).map(bytearray) | st.complex_numbers(allow_nan=False)
)  # fmt: skip
KEYS = (
    st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.tuples(st.text(), st.integers())
)
VALUES = st.recursive(
    ATOMS | st.sets(st.text() | st.integers()) | st.frozensets(st.text() | st.binary()),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.tuples(inner, inner, inner, inner)
    | st.dictionaries(KEYS, inner) | st.dictionaries(st.text(), inner),
    max_leaves=25,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(value=VALUES, protocol=st.integers(0, 5), optimised=st.booleans())
@example(value={"": b"", "s": "\ud800", 0: {}, True: ()}, protocol=0, optimised=False)
@example(
    value=["x" * 300, b"y" * 300, 1 << 4000, -1, 255, 65536, -(1 << 31), 1.5], protocol=2, optimised=False
)
@example(value=["x" * 70000, {"k": b"y" * 70000}], protocol=4, optimised=False)
def test_plain_values_are_what_pickle_makes_of_them(value: Any, protocol: int, optimised: bool) -> None:
    data = pickle.dumps(value, protocol)
    data = pickletools.optimize(data) if optimised else data
    assert thawed(value_of(data)) == pickle.loads(data)


@settings(max_examples=50, deadline=None)
@given(items=st.lists(st.text() | st.integers(), min_size=1), protocol=st.integers(0, 5))
def test_what_is_shared_in_a_pickle_is_one_object(items: list[Any], protocol: int) -> None:
    loop: list[Any] = [items, items]
    loop.append(loop)
    found = value_of(pickle.dumps(loop, protocol))
    assert isinstance(found, list)
    assert found[0] is found[1]
    assert found[2] is found


def test_many_entries_in_batches_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {str(i): list(range(i % 3)) for i in range(5000)}
    for protocol in range(6):
        assert value_of(pickle.dumps(value, protocol)) == value


class Outer:
    class Inner:
        pass


class Custom:
    def __init__(self) -> None:
        self.lr = 0.1


class Mapping(dict):  # type: ignore[type-arg]
    pass


class Keyworded:
    def __new__(cls, *, size: int) -> Self:
        return super().__new__(cls)

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, int]]:
        return (), {"size": 3}


@pytest.mark.parametrize("protocol", range(6))
def test_objects_of_unknown_classes_are_inert_records(protocol: int) -> None:
    found = value_of(pickle.dumps(Custom(), protocol))
    assert isinstance(found, Record)
    assert found.state == {"lr": 0.1}
    assert f"{__name__}.Custom" in read(pickle.dumps(Custom(), protocol)).classes


@pytest.mark.parametrize("protocol", range(6))
def test_nested_classes_are_named_with_their_outer_ones(protocol: int) -> None:
    found = value_of(pickle.dumps(Outer.Inner, protocol))
    assert getattr(found, "path", None) == f"{__name__}.Outer.Inner"


@pytest.mark.parametrize("protocol", range(2, 6))
def test_dictionaries_of_other_classes_keep_their_entries(protocol: int) -> None:
    found = value_of(pickle.dumps(Mapping(a=1), protocol))
    assert isinstance(found, Record)
    assert found.entries == {"a": 1}


@pytest.mark.parametrize("protocol", range(2, 6))
def test_keyword_arguments_are_kept(protocol: int) -> None:
    found = value_of(pickle.dumps(Keyworded(size=3), protocol))
    assert isinstance(found, Record)
    keywords = found.keywords if protocol >= 4 else found.args[0].keywords or found.args  # type: ignore[attr-defined]
    assert keywords


@pytest.mark.parametrize("protocol", range(2, 6))
def test_values_of_the_standard_library_are_inert_and_not_refused(protocol: int) -> None:
    values = [
        argparse.Namespace(a=1), collections.defaultdict(list, {"a": [1]}), collections.Counter("aab"),
        collections.deque([1, 2]), dt.datetime(2024, 1, 2), dt.timedelta(3), PurePosixPath("/a"),
        io.BytesIO(b"x"), range(3), slice(1, 2), random.Random(0).getstate(), ValueError("x"),
    ]  # fmt: skip
    found = value_of(pickle.dumps(values, protocol))
    assert isinstance(found, list)
    assert len(found) == len(values)


@pytest.mark.parametrize("protocol", range(6))
def test_an_ordered_dict_is_entries_with_what_is_attached_to_it(protocol: int) -> None:
    value = collections.OrderedDict(b=1, a=2)
    value._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    found = value_of(pickle.dumps(value, protocol))
    assert isinstance(found, Entries)
    assert list(found.items()) == [("b", 1), ("a", 2)]
    assert found.state == {"_metadata": {"": {"version": 1}}}


def test_an_ordered_dict_of_python_2_is_entries() -> None:
    data = (
        b"\x80\x02ccollections\nOrderedDict\nq\x00]q\x01(]q\x02(U\x01bK\x01e]q\x03(U\x01aK\x02ee\x85Rq\x04."
    )
    assert list(value_of(data).items()) == [("b", 1), ("a", 2)]  # type: ignore[attr-defined]


def test_text_of_python_2_is_text_unless_it_is_none() -> None:
    assert value_of(b"\x80\x02U\x03abc.") == "abc"
    assert value_of(b"\x80\x02U\x02\xff\xfe.") == b"\xff\xfe"
    assert value_of(b"S'a\\x41\\n'\n.") == "aA\n"


def test_persistent_ids_are_kept_as_they_are() -> None:
    pickle_ = read(b"\x80\x02(U\x07storageK\x05tQ.")
    assert isinstance(pickle_.value, PersistentId)
    assert pickle_.value.value == ("storage", 5)
    assert pickle_.references == (("storage", 5),)


def test_pickles_that_follow_each_other_are_read_one_by_one() -> None:
    data = pickle.dumps([1], 2) + pickle.dumps({"a": 2}, 4) + b"data"
    first = read_pickle_at(data, 0, "test")
    assert first is not None
    second = read_pickle_at(data, first.stop, "test")
    assert second is not None
    assert (first.value, second.value, data[second.stop :]) == ([1], {"a": 2}, b"data")


# What somebody could write on purpose. Every name is one that would do something.
CALLS = [
    b"cos\nsystem\n(S'touch ran'\ntR.",
    b"cposix\nsystem\n(S'touch ran'\ntR.",
    b"cbuiltins\neval\n(S'1+1'\ntR.",
    b"c__builtin__\neval\n(S'1+1'\ntR.",
    b"(S'touch ran'\nios\nsystem\n.",
    b"(cos\nsystem\nS'touch ran'\no.",
    b"\x80\x02csubprocess\nPopen\n)\x81.",
    b"\x80\x04\x8c\x02os\x8c\x06system\x93)\x81.",
    b"\x80\x04\x8c\x02os\x8c\x06system\x93)}\x92.",
    b"crunpy\nrun_path\n(S'x'\ntR.",
    b"cshutil\nrmtree\n(S'x'\ntR.",
    b"ccode\nInteractiveInterpreter\n)R.",
    b"clogging\nFileHandler\n(S'ran'\ntR.",
    b"cimportlib\nimport_module\n(S'os'\ntR.",
    b"cbuiltins\ngetattr\n(cos\npath\nS'join'\ntR)R.",
    b"ccommands\ngetoutput\n(S'x'\ntR.",
    b"cpickle\nloads\n(S'x'\ntR.",
    b"cos\nsystem\n(S'x'\ntR0N.",
]


@pytest.mark.parametrize("data", CALLS)
def test_calls_of_python_s_own_functions_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(UnsafeFileError, match=r"asks for `.+` to be called"):
        value_of(data)


GETATTR = [
    b"cbuiltins\ngetattr\n(S'text'\nS'upper'\ntR.",
    b"cbuiltins\ngetattr\n(cos\npath\nS'a.b'\ntR.",
    b"cbuiltins\ngetattr\n(cos\npath\nK\x01tR.",
    b"cbuiltins\ngetattr\n(cmy\nClass\n)RS'x'\ntR.",
    b"cbuiltins\ngetattr\n)R.",
]


@pytest.mark.parametrize("data", GETATTR)
def test_attributes_of_anything_but_classes_are_refused(data: bytes) -> None:
    with pytest.raises(InputError):
        value_of(data)


HOSTILE = {
    "extension registry": b"\x80\x02\x82\x01.",
    "buffers outside": b"\x80\x05\x97.",
    "protocol in the middle": b"\x80\x02K\x01\x80\x02.",
    "protocol 6": b"\x80\x06N.",
    "bytes after the end": b"\x80\x02N.N.",
    "an empty stack": b"\x80\x02.",
    "two values": b"\x80\x02NN.",
    "a mark left": b"\x80\x02(N.",
    "a mark missing": b"\x80\x02Nt.",
    "more popped than there is": b"\x80\x02N00.",
    "popping across a mark": b"\x80\x02N(\x85.",
    "no instruction": b"\x80\x02\xff.",
    "nothing": b"",
    "memo read unwritten": b"\x80\x02h\x05.",
    "memo written twice": b"\x80\x02K\x01q\x00K\x02q\x00.",
    "memo of an empty stack": b"\x80\x02q\x00.",
    "a huge string": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b".",
    "a huge byte array": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
    "a huge integer": b"\x80\x02\x8b" + struct.pack("<i", 1 << 30) + b".",
    "an integer of negative length": b"\x80\x02\x8b" + struct.pack("<i", -1) + b".",
    "an integer of many digits": b"I" + b"9" * 5000 + b"\n.",
    "an integer of no digits": b"Ix\n.",
    "a float of no digits": b"Fx\n.",
    "a string without quotes": b"Sabc\n.",
    "a line without end": b"Sabc",
    "text that is no UTF-8": b"\x80\x02X\x02\x00\x00\x00\xff\xff.",
    "a key given twice": b"\x80\x02}(U\x01aNU\x01aNu.",
    "a key given twice in two steps": b"\x80\x02}U\x01aNsU\x01aNs.",
    "a key without a value": b"\x80\x02}(U\x01au.",
    "entries of a list": b"\x80\x02](U\x01aNu.",
    "items of a dictionary": b"\x80\x02}Na.",
    "items of a number": b"\x80\x02K\x01Na.",
    "state of a number": b"\x80\x02K\x01Nb.",
    "state given twice": b"\x80\x02cmy\nClass\n)\x81}b}b.",
    "a call of a number": b"\x80\x02K\x01)R.",
    "a call with a list": b"\x80\x02cmy\nClass\n]R.",
    "a class whose name is a number": b"\x80\x04K\x01\x8c\x01a\x93.",
    "a class with a long name": b"c" + b"m" * 1000 + b"\nx\n.",
    "a frame past the end": b"\x80\x04\x95" + struct.pack("<Q", 100) + b"N.",
    "a frame inside a frame": b"\x80\x04\x95"
    + struct.pack("<Q", 12)
    + b"\x95"
    + struct.pack("<Q", 2)
    + b"N.",
    "a frame that ends in an argument": b"\x80\x04\x95" + struct.pack("<Q", 2) + b"J\x01\x00\x00\x00.",
    "a frame that ends in a string": b"\x80\x04\x95" + struct.pack("<Q", 3) + b"\x8c\x02ab.",
    "a stop inside a frame": b"\x80\x04\x95" + struct.pack("<Q", 4) + b"N.NN",
    "deep marks": b"\x80\x02" + b"(" * 20_000 + b".",
    "many classes": b"".join(b"cm\nx%d\n0" % i for i in range(10_001)) + b"N.",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=list(HOSTILE))
def test_what_contradicts_itself_is_refused_with_a_reason(data: bytes) -> None:
    with pytest.raises((UnsafeFileError, DamagedFileError)) as caught:
        value_of(data)
    assert caught.value.hint


def test_instructions_are_counted() -> None:
    with pytest.raises(UnsafeFileError, match="more than 1000 instructions"):
        read(b"\x80\x02" + b"N0" * 1000 + b"N.", operations=1000)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_is_cut_anywhere_is_told_from_a_broken_one(protocol: int) -> None:
    data = pickle.dumps({"a": [1, 2.5, "text" * 50], "b": (True, None)}, protocol)
    for cut in range(len(data)):
        assert read_pickle_at(data[:cut], 0, "test") is None
        with pytest.raises(DamagedFileError, match=f"in the middle of its pickle: saw {cut} bytes"):
            read(data[:cut])


def test_a_hash_that_takes_for_ever_is_never_computed() -> None:
    doubled = b"2\x86" * 60  # a tuple of the tuple before it, twice: its hash visits 2**60 of them
    found = value_of(b"\x80\x02})" + doubled + b"Ns.")
    assert isinstance(found, Entries)
    assert len(found.others) == 1


def test_keys_whose_hashes_collide_are_kept_aside() -> None:
    modulus = (1 << 61) - 1
    keys = b"".join(
        b"\x8a\x0a" + (i * modulus).to_bytes(10, "little", signed=True) + b"N" for i in range(30_000)
    )
    found = value_of(b"\x80\x02}(" + keys + b"u.")
    assert isinstance(found, Entries)
    assert len(found.others) == 30_000


DEEP = 300_000
NESTED = {
    "tuples": b")" + b"\x85" * DEEP,
    "lists": b"]" * DEEP + b"a" * (DEEP - 1),
    "dictionaries": b"}U\x01a" * DEEP + b"N" + b"s" * DEEP,
    "records": b"cm\nC\nq\x000" + b"h\x00" * DEEP + b")R" + b"\x85R" * (DEEP - 1),
}


@pytest.mark.parametrize("program", NESTED.values(), ids=list(NESTED))
def test_values_nested_very_deep_neither_overflow_nor_hang(program: bytes) -> None:
    found, depth = value_of(b"\x80\x02" + program + b"."), 0
    while found is not None and found != ():
        inner = found.args if isinstance(found, Record) else found
        found = next(iter(inner.values() if isinstance(inner, dict) else inner), None)  # type: ignore[call-overload]
        depth += 1
    assert depth == DEEP


def test_arguments_that_are_used_again_and_again_are_not_copied() -> None:
    pairs = b"](" + b"".join(b"](U\x04%04dNe" % i for i in range(2000)) + b"e"
    program = b"ccollections\nOrderedDict\nq\x000" + pairs + b"\x85q\x010]" + b"h\x00h\x01Ra" * 50_000
    found = value_of(b"\x80\x02" + program + b".")
    assert isinstance(found, list)
    assert sum(map(len, found)) == 2000


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_damaged_pickle_never_raises_anything_unforeseen(data: st.DataObject) -> None:
    value = {
        "a": [1, 2.5, "text", b"bytes"],
        "b": (True, None, {1: 2}),
        "c": Custom(),
        "d": {"x": Outer.Inner},
    }
    raw = bytearray(pickle.dumps(value, data.draw(st.integers(0, 5))))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InputError):
        read(bytes(raw))


@settings(max_examples=300, deadline=None)
@given(raw=st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    with contextlib.suppress(InputError):
        read(raw + b".")
