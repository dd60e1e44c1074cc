"""Whether something like a tensor lies where the metadata says: files that were exchanged show here."""

from __future__ import annotations

from unshard.checkpoint import Checkpoint
from unshard.errors import InputError
from unshard.findings import Finding, finding

# Of many tensors, some are enough: every rank holds a part of most of them.
_MOST_TENSORS = 64


def check_places(checkpoint: Checkpoint) -> tuple[Finding, ...]:
    """Return where parts of tensors do not lie where they should; the first of every file.

    Of each part only what surrounds its numbers is read, and only where that was not done already.
    """
    found: dict[str, Finding] = {}
    names = list(checkpoint.tensors)
    for name in names[:: max(1, len(names) // _MOST_TENSORS)]:
        for piece in checkpoint.tensors[name].pieces:
            file = piece.source.origin.partition(" at ")[0]
            if file in found or not piece.source.count:
                continue
            try:
                piece.source.runs(0, 1)
            except InputError as error:
                saw = error.problem + (f": {error.saw}" if error.saw else "")
                found[file] = finding("U119", subject=error.subject, saw=saw, remedy=error.hint)
    return tuple(found.values())
