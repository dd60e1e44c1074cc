"""Which of Python's own names a pickle may use as constructors of data, and which would be calls.

Nothing is ever called, so this list keeps nothing from happening. It tells people the truth: a state
dict that names `os.system` was made by somebody who wanted it to run. Names of other packages cannot
be judged; they are kept as inert records, and a finding lists them.
"""

from __future__ import annotations

import sys

# Python 2 wrote these names for the same modules.
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg", "exceptions": "builtins"}
# Python 2 had these, and they could run things.
_GONE = {"commands", "popen2", "os2", "ce", "imp", "cPickle", "__builtins__"}

# Modules whose names all stand for data.
_MODULES = frozenset(
    (  # noqa: SIM905
        "_io argparse array cStringIO StringIO UserDict UserList collections dataclasses datetime decimal"
        " enum fractions ipaddress numbers pathlib pathlib._local random re signal string types typing"
        " uuid zoneinfo"
    ).split()
)
_NAMES = frozenset(
    (  # noqa: SIM905
        "_codecs.encode codecs.encode copyreg._reconstructor copyreg.__newobj__ copyreg.__newobj_ex__"
        " functools.partial io.BytesIO io.StringIO logging.getLogger operator.attrgetter"
        " operator.itemgetter inspect.Parameter inspect.Signature inspect._empty inspect._ParameterKind"
        " _collections._tuplegetter"
    ).split()
)
_BUILTINS = frozenset(
    (  # noqa: SIM905
        "object type bool int long float complex str unicode basestring bytes bytearray buffer list tuple"
        " dict set frozenset slice range xrange Ellipsis NotImplemented property"
    ).split()
)


def plain_module(module: str) -> str:
    """Return a module's name as Python 3 writes it."""
    return _RENAMED.get(module, module)


def is_python(path: str) -> bool:
    """Return whether a full name belongs to Python itself."""
    top = plain_module(path.split(".", 1)[0])
    return top in sys.stdlib_module_names or top in _GONE or top in _MODULES


def is_call_of_python(module: str, name: str) -> bool:
    """Return whether calling `module.name` would do more than make a value.

    `module` is the name as `plain_module` gives it.
    """
    if module == "builtins":
        return name.split(".")[0] not in _BUILTINS and not name.endswith(("Error", "Exception", "Warning"))
    return module not in _MODULES and is_python(module) and f"{module}.{name}" not in _NAMES
