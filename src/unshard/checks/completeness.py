"""Whether a step of training is whole: what its reader found missing, or why it cannot be read."""

from __future__ import annotations

from unshard.checkpoint import Checkpoint
from unshard.errors import IncompleteCheckpointError, InputError
from unshard.findings import Finding, finding
from unshard.sizes import counted


def check_completeness(error: InputError | None) -> tuple[Finding, ...]:
    """Return everything that a step lacks; nothing where it opened, which takes all of it.

    Args:
        error: What its reader raised, or None.
    """
    if error is None:
        return ()
    if isinstance(error, IncompleteCheckpointError) and error.gaps:
        return error.gaps
    code = "U110" if isinstance(error, IncompleteCheckpointError) else "U119"
    saw = ", ".join(filter(None, (error.problem, error.saw and f"saw {error.saw}")))
    return (finding(code, subject=error.subject, saw=saw, expected=error.expected, remedy=error.hint),)


def completeness_evidence(checkpoint: Checkpoint) -> str:
    """Return, in numbers, what was held against what is there when a checkpoint was opened."""
    pieces = sum(len(tensor.pieces) for tensor in checkpoint.tensors.values())
    parts = (
        f"{counted(len(checkpoint.tensors), 'tensor')} in {counted(pieces, 'piece')}"
        f" of {counted(len(checkpoint.files), 'file')}"
    )
    if any(found.code == "U114" for found in checkpoint.findings):
        return f"{parts}: as far as can be told without the shapes of a base"
    return f"{parts}: every piece lies in its file, and every element is there exactly once"
