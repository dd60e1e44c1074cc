"""What training put between a model and its checkpoint, undone: quantisation, adapters, another naming.

Each stage takes the tensors as they are so far and returns others, with the names of what each is made
of. Nothing is read: tensors are views of others, or computed from them when they are read. A stage that
does not recognise anything returns what it was given.
"""

from __future__ import annotations

from unshard.base import Base
from unshard.checkpoint import Checkpoint
from unshard.match.restored import Choices, Restored, Stage
from unshard.match.schemes import undo_scheme

__all__ = ["STAGES", "Choices", "Restored", "Stage", "restore"]

# In this order: what is quantised is a plain weight before an adapter is merged into it, and both have
# their own names before these are changed.
STAGES: tuple[Stage, ...] = (undo_scheme,)


def restore(checkpoint: Checkpoint, base: Base | None, choices: Choices) -> Restored:
    """Return the tensors of a checkpoint as plain parameters, under names of Hugging Face's kind.

    Raises:
        UnsupportedLayoutError: It is recognised what was done to them, and not how to undo it.
        MatchError: Parts are missing that belong to others.
    """
    names = {name: (name,) for name in checkpoint.tensors}
    restored = Restored(checkpoint.tensors, names)
    for stage in STAGES:
        restored = stage(restored, checkpoint, base, choices)
    return restored
