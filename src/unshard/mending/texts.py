"""A small file that changes, and how."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from unshard.manifest import MANIFEST_NAME
from unshard.plan import SideFile
from unshard.writers.safetensors_folder import INDEX_NAME

# Lists of all tensors: a number says more than the lines of a diff.
_LISTS = (INDEX_NAME, MANIFEST_NAME)


@dataclass(frozen=True, slots=True)
class PlannedText:
    """One small file that changes.

    Attributes:
        name: Its name.
        before: Its bytes, or None where it is not there.
        after: What it will be, or None where it goes.
    """

    name: str
    before: bytes | None
    after: SideFile | None

    @property
    def diff(self) -> tuple[str, ...]:
        """What changes in it, as a unified diff; nothing where it is new, goes, or lists tensors."""
        if self.name in _LISTS or self.before is None or self.after is None or self.after.content is None:
            return ()
        old, new = (text.decode(errors="replace").splitlines() for text in (self.before, self.after.content))
        return tuple(difflib.unified_diff(old, new, lineterm="", n=1))[2:]
