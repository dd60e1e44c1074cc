"""Which types of models transformers knows; it is read as text, since its import takes seconds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

# Where its table of types is: the first until 5.10 or so, the second since.
_TABLES = ("models/auto/configuration_auto.py", "models/auto/auto_mappings.py")
_TYPE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def knows_model_type(model_type: str) -> bool | None:
    """Return whether the installed transformers has a model of a type, or None where nothing tells.

    Args:
        model_type: What config.json says; it may be any text.
    """
    tables = list(_tables())
    if not tables or not _TYPE.fullmatch(model_type):
        return None
    return any(f'"{model_type}"' in table for table in tables)


def _tables() -> Iterator[str]:
    """Yield the text of every module that lists types."""
    spec = find_spec("transformers")
    for place in (spec and spec.submodule_search_locations) or ():
        for name in _TABLES:
            path = Path(place) / name
            if path.is_file():
                yield path.read_text(encoding="utf-8", errors="replace")
