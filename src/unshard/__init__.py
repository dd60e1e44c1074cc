"""Any training checkpoint in, a verified, servable model out.

    unshard.inspect(path)              what is this? headers only
    unshard.check(path)                is everything there?
    unshard.open(path)                 its tensors, described but not read
    unshard.convert(path, out)         a complete, verified model folder
    unshard.verify(out)                proof of a model folder
    unshard.diff(old, new)             what training changed, tensor by tensor
    unshard.mend(folder)               a broken model folder, repaired
    unshard.load(path)                 the model in memory, ready for inference (extra `hf`)
    unshard.compare_environment(path)  this machine beside the one that trained

and, for training scripts, the room `unshard.training`.

Nothing is imported before it is used, so the command line starts fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unshard.checkpoint import Checkpoint
    from unshard.comparison import Comparison, diff
    from unshard.conversion import Conversion, convert
    from unshard.diagnosis import Diagnosis, check
    from unshard.environment import EnvironmentComparison, compare_environment
    from unshard.errors import UnshardError
    from unshard.findings import Finding, Severity
    from unshard.inference import load
    from unshard.inspection import Inspection, inspect
    from unshard.mending import Mending, mend
    from unshard.preparation import plan_conversion
    from unshard.readers.places import Places
    from unshard.tensors import DescribedTensor
    from unshard.verification import Verification, verify

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "Comparison",
    "Conversion",
    "DescribedTensor",
    "Diagnosis",
    "EnvironmentComparison",
    "Finding",
    "Inspection",
    "Mending",
    "Severity",
    "UnshardError",
    "Verification",
    "__version__",
    "check",
    "compare_environment",
    "convert",
    "diff",
    "inspect",
    "load",
    "mend",
    "open",
    "plan_conversion",
    "verify",
]

_ROOMS = {
    "Checkpoint": "checkpoint",
    "Comparison": "comparison",
    "Conversion": "conversion",
    "DescribedTensor": "tensors",
    "Diagnosis": "diagnosis",
    "EnvironmentComparison": "environment",
    "Finding": "findings",
    "Inspection": "inspection",
    "Mending": "mending",
    "Severity": "findings",
    "UnshardError": "errors",
    "Verification": "verification",
    "check": "diagnosis",
    "compare_environment": "environment",
    "convert": "conversion",
    "diff": "comparison",
    "inspect": "inspection",
    "load": "inference",
    "mend": "mending",
    "plan_conversion": "preparation",
    "verify": "verification",
}


def __getattr__(name: str) -> object:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def open(path: Places, *, step: int | None = None, select: str | None = None) -> Checkpoint:  # noqa: A001
    """Return the checkpoint at `path`: a mapping from names to tensors that are described, not read.

    Args:
        path: A run folder, a checkpoint folder, a file, or a model folder; or the folders of several
            nodes, whose ranks wrote one checkpoint together.
        step: Which of several checkpoints side by side; the newest without it.
        select: The container or prefix of the model, where a file holds several.

    Raises:
        InputError: It cannot be read as a checkpoint.
    """
    from unshard.readers import as_paths, open_checkpoint

    return open_checkpoint(as_paths(path), step=step, select=select)
