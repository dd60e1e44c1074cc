"""CPython's own unpickler, thirty times as fast as our machine, with nothing in its hands that could run.

This is the one module that imports `pickle`. What an unpickler can do is what `find_class` gives it, and
here that is only classes of this module, whose making stores what it is given:

    a name             becomes a class without behaviour; nothing is imported or looked up
    a call             makes an instance of such a class, a tuple, or a dictionary
    attributes         are stored as they come; none is ever set
    names that call    (`os.system`, `eval`) are refused when they are called, as our machine does
    persistent ids     become instances of such a class; extension codes and buffers are refused

It checks less than our machine: C code reads the file, memory is not bounded, and some tricks pass that our
machine refuses (memo slots written twice, frames that lie, keys given twice; what it reads then is what
torch would read). So it runs in a process of its own under limits of the kernel, for pickles that would
take minutes otherwise. Both give records of one form: `kind`, `args` and `state`, and `path` of a name.

Source:
    CPython Modules/_pickle.c (`load_reduce`, `load_newobj`, `load_build`, `do_append`).
"""

from __future__ import annotations

import pickle  # see above
from collections.abc import Callable
from typing import BinaryIO, ClassVar, Self

from unshard.readers.unpickling.machine import Limits
from unshard.readers.unpickling.python_names import is_call_of_python, plain_module
from unshard.readers.unpickling.records import HostilePickleError


class Named(type):
    """A class or function that a pickle names; the class of instances that stand for calls of it.

    Attributes:
        path: Its full name. The name itself is no record and so is of no kind.
    """

    path: str

    @property
    def kind(cls) -> None:
        """None: this is a name, not something of that name."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise HostilePickleError("changes a class")


class Inert(metaclass=Named):
    """What would have been an object; `kind`, `args` and `state` are those of a `Record`."""

    __slots__ = ("args", "state")

    kind: ClassVar[str]
    args: tuple[object, ...]
    state: object

    def __new__(cls, *args: object, **_: object) -> Self:
        """Store what the class would have been called with."""
        made = object.__new__(cls)
        made.args = args
        made.state = None
        return made

    def __setstate__(self, state: object) -> None:
        if self.state is not None:
            raise HostilePickleError("gives one object its attributes twice")
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        """Drop what would have been put into it."""

    def append(self, item: object) -> None:
        """Drop what would have been appended to it."""

    def extend(self, items: object) -> None:
        """Drop what would have been appended to it."""

    def add(self, item: object) -> None:
        """Drop what would have been added to it."""


def _attribute(owner: object, name: object) -> type:
    """Return the name of an attribute of a name: how nested classes and members of enumerations are named."""
    if not isinstance(owner, Named) or type(name) is not str or not name.isidentifier():
        raise HostilePickleError("asks for an attribute of something that is no class")
    return _made(f"{owner.path}.{name}", {})


class InertUnpickler(pickle.Unpickler):
    """An unpickler that makes inert records.

    Attributes:
        names: Every name the pickle mentions, by its full name.
    """

    def __init__(self, stream: BinaryIO, limits: Limits) -> None:
        super().__init__(stream, fix_imports=False, encoding="utf-8", errors="surrogateescape")
        self.names: dict[str, Callable[..., object]] = {}
        self._limits = limits

    def find_class(self, module: str, name: str, /) -> Callable[..., object]:
        """Return the class that stands for a name."""
        path = f"{module}.{name}"
        known = self.names.get(path)
        if known is None:
            if len(module) > self._limits.name_length or len(name) > self._limits.name_length:
                raise HostilePickleError(f"names a class in more than {self._limits.name_length} letters")
            if len(self.names) == self._limits.classes:
                raise HostilePickleError(f"names more than {self._limits.classes} classes")
            known = self.names[path] = _stand_in(module, name)
        return known

    def persistent_load(self, pid: object, /) -> object:
        """Return something inert for a reference to what is outside of the pickle."""
        return Inert(pid)


def _stand_in(module: str, name: str) -> Callable[..., object]:
    """Return what stands for a name."""
    plain = plain_module(module)
    if known := _DATA.get((plain, name)):
        return known
    if is_call_of_python(plain, name):
        return _made(f"{module}.{name}", {"__new__": _refuse_call})
    return _made(f"{module}.{name}", {})


def _made(path: str, body: dict[str, object]) -> type:
    made = type.__new__(Named, path.rpartition(".")[2], (Inert,), {"__slots__": (), "kind": path, **body})
    type.__setattr__(made, "path", path)
    return made


def _refuse_call(cls: Named, *_: object, **__: object) -> object:
    raise HostilePickleError(f"asks for `{cls.path}` to be called")


# These make the data that they are: torch.Size is a tuple.
_DATA: dict[tuple[str, str], Callable[..., object]] = {
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): dict,
    ("builtins", "getattr"): _attribute,
}
