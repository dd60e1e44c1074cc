"""What a pickle that is not run leaves: plain data, and records of everything else.

A key that is not text is never hashed: hashes of numbers and tuples can be chosen by whoever wrote the
file, so that a small file takes hours. Values may be cyclic and deeply nested: walk them with a stack,
and neither compare nor print them.
"""

from __future__ import annotations

from collections.abc import Callable

from unshard.readers.unpickling.python_names import is_call_of_python, plain_module


class BrokenPickleError(Exception):
    """This is not what a pickler writes."""


class HostilePickleError(Exception):
    """This is what somebody wrote on purpose."""


class Global:
    """The name of a class or function, and nothing more."""

    __slots__ = ("module", "name", "path")

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name
        self.path = f"{module}.{name}"

    def __repr__(self) -> str:
        return f"<{self.path}>"


class Entries(dict[str, object]):
    """A dictionary: what has a text key is in it, what has any other key is beside it.

    Attributes:
        others: (key, value) of every key that is not text, in order.
        state: What the pickle attached to the dictionary itself, such as a state dict's `_metadata`.
    """

    others: list[tuple[object, object]] = []  # noqa: RUF012  replaced, never filled
    state: object = None

    def __repr__(self) -> str:
        return f"<{len(self) + len(self.others)} entries>"


class Record:
    """An object that was not made: its class by name, and what would have been given to it.

    Attributes:
        kind: The class or function, as `module.name`.
        args: The arguments it would have been called with.
        keywords: Keyword arguments, or None.
        state: What would have become its attributes, or None.
        entries: What was put into it by key, or None; it is then some kind of dictionary.
        items: What was appended to it, or None; it is then some kind of list or set.
    """

    __slots__ = ("args", "entries", "items", "keywords", "kind", "state")

    def __init__(self, kind: str, args: tuple[object, ...]) -> None:
        self.kind = kind
        self.args = args
        self.keywords: Entries | None = None
        self.state: object = None
        self.entries: Entries | None = None
        self.items: list[object] | None = None

    def __repr__(self) -> str:
        return f"<{self.kind} of {len(self.args)} arguments>"


class PersistentId:
    """A reference to something outside of the pickle; in torch's files, a storage."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "<persistent id>"


def called(callee: object, args: object) -> object:
    """Return what stands for `callee(*args)`: data where it plainly is data, else a record.

    Raises:
        BrokenPickleError: It is no call at all.
        HostilePickleError: It would have done something.
    """
    if type(args) is not tuple:
        raise BrokenPickleError("a call has arguments that are no tuple")
    if type(callee) is Record:  # a partial application, itself inert
        return Record("a call of a call", (callee, args))
    if type(callee) is not Global:
        raise BrokenPickleError("something that is no class is called")
    if callee.module.partition(".")[0] not in _QUIET:
        module = plain_module(callee.module)
        if (make := _DATA.get((module, callee.name))) is not None:
            return make(args, callee)
        if is_call_of_python(module, callee.name):
            raise HostilePickleError(f"asks for `{callee.path}` to be called")
    return Record(callee.path, args)


def put(target: object, keys: list[object], values: list[object]) -> None:
    """Put values into a dictionary by key, or into a record that stands for one."""
    if type(target) is Record:
        if target.entries is None:
            target.entries = Entries()
        target = target.entries
    if type(target) is not Entries:
        raise BrokenPickleError("entries are put into something that is no dictionary")
    if len(keys) != len(values):
        raise BrokenPickleError("a dictionary has a key without a value")
    pairs = list(zip(keys, values, strict=True))
    texts = {key: value for key, value in pairs if type(key) is str}
    if len(texts) == len(pairs):
        wanted = len(target) + len(pairs)
        target.update(texts)
    else:
        others = [(key, value) for key, value in pairs if type(key) is not str]
        wanted = len(target) + len(pairs) - len(others)
        target.update(texts)
        if not target.others:
            target.others = []
        target.others += others
    if len(target) != wanted:
        raise HostilePickleError("gives the same key twice in one dictionary")


def append(target: object, items: list[object]) -> None:
    """Append items to a list, or to a record that stands for one."""
    if type(target) is Record:
        if target.items is None:
            target.items = []
        target = target.items
    if type(target) is not list:
        raise BrokenPickleError("items are appended to something that is no list")
    target += items


def set_state(target: object, state: object) -> None:
    """Attach to an object what would have become its attributes."""
    if type(target) is not Record and type(target) is not Entries:
        raise BrokenPickleError("something that is no object is given attributes")
    if target.state is not None:
        raise HostilePickleError("gives one object its attributes twice")
    target.state = state


def bytes_of(value: object) -> bytes | None:
    """Return the bytes a value stands for, or None where it is something else.

    Protocol 2 writes bytes as text and a call that encodes it.
    """
    match value:
        case bytes():
            return value
        case Record(kind="_codecs.encode", args=(str(text), "latin1" | "latin-1")):
            return text.encode("latin-1", "replace")
        case Record(kind="builtins.bytearray" | "__builtin__.bytearray", args=(bytes(content), *_)):
            return content
    return None


def _ordered_dict(args: tuple[object, ...], callee: Global) -> object:
    if not args:
        return Entries()
    pairs = args[0] if len(args) == 1 else None
    if type(pairs) is not list or not all(type(p) in (list, tuple) and len(p) == 2 for p in pairs):
        return Record(callee.path, args)
    entries = Entries()  # Python 2 gives its entries to the constructor
    put(entries, [key for key, _ in pairs], [value for _, value in pairs])
    # The list was made for this call alone; a hostile pickle would have it copied a million times.
    pairs.clear()
    return entries


def _attribute(args: tuple[object, ...], callee: Global) -> object:
    match args:
        case (Global() as owner, str(name)) if name.isidentifier():  # how protocol 2 names nested classes
            return Global(owner.module, f"{owner.name}.{name}")
    raise HostilePickleError("asks for an attribute of something that is no class")


_DATA: dict[tuple[str, str], Callable[[tuple[object, ...], Global], object]] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("builtins", "getattr"): _attribute,
}
# Packages whose names are common and never Python's own.
_QUIET = frozenset(("torch", "numpy"))
