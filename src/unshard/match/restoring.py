"""What training put between a model and its checkpoint, undone: quantisation, adapters, another naming.

Each stage takes the tensors as they are so far and returns others, with the names of what each is made
of. Nothing is read: tensors are views of others, or computed from them when they are read. A stage that
does not recognise anything returns what it was given.
"""

from __future__ import annotations

from collections.abc import Mapping

from unshard.base import Base
from unshard.checkpoint import Checkpoint
from unshard.match.adapters import undo_adapters
from unshard.match.quantised import undo_quantisation
from unshard.match.restored import Choices, Restored, Stage
from unshard.match.schemes import undo_scheme
from unshard.tensors import DescribedTensor

__all__ = ["STAGES", "Choices", "Restored", "Stage", "restore", "restore_base"]

# In this order: what is quantised is a plain weight before an adapter is merged into it, and both have
# their own names before these are changed.
STAGES: tuple[Stage, ...] = (undo_quantisation, undo_adapters, undo_scheme)


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


def restore_base(
    tensors: Mapping[str, DescribedTensor], checkpoint: Checkpoint, base: Base
) -> Mapping[str, DescribedTensor]:
    """Return the base's own weights as an adapter finds them: after every stage that comes before its own.

    Raises:
        UnsupportedLayoutError: It is recognised what was done to them, and not how to undo it.
    """
    restored = Restored(tensors, {name: (name,) for name in tensors})
    for stage in STAGES[: STAGES.index(undo_adapters)]:
        restored = stage(restored, checkpoint, base, Choices(dtype="float32"))  # none stays quantised
    return restored.tensors
