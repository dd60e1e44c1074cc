"""Full state dicts: one file of torch.save that holds a whole model.

    model.pt, pytorch_model_fsdp.bin, lit_model.pth, *.ckpt       one model
    <org>--<model>-<epoch>.pt                                     llama-recipes, one file per epoch
    optimizer-*.pt, scheduler.pt, rng_state_0.pth, ...            training state beside it, never opened

The model lies at the top of the file or in a container; `contents` finds it. Its format is the zip or
the legacy one of torch.save. Refused by name: files of optimizers, pickled modules, one rank's part.

Memory:
    The pickle and a few hundred bytes per tensor.

Source:
    llama-cookbook src/llama_cookbook/model_checkpointing/checkpoint_handler.py;
    accelerate src/accelerate/utils/fsdp_utils.py (`save_fsdp_model`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from unshard.checkpoint import Checkpoint
from unshard.readers.folders import Folder
from unshard.readers.layouts.provenance import describe_layout
from unshard.readers.layouts.rank_files import open_part
from unshard.readers.protocol import Candidate
from unshard.readers.steps import split_names
from unshard.readers.torch_save.torch_file import describe_torch_file
from unshard.readers.torch_save.torch_state import choose_model, foreign_classes, torch_state_of
from unshard.readers.training_files import training_kind
from unshard.storage.checksums import Checksums
from unshard.storage.files import InputFile

_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_NUMBER_IS_NO_STEP = re.compile(r"pytorch_model_fsdp_\d+")  # accelerate counts models


def find_candidates(folder: Folder) -> Iterator[Candidate]:
    """Yield the files in a folder that may hold a model, told by their names."""
    names = [name for name in folder.files if name.endswith(_SUFFIXES) and training_kind(name) is None]
    split = split_names((name.rpartition(".")[0] for name in names), folder.path)
    for name in names:
        stem = name.rpartition(".")[0]
        series, numbers = (stem, ()) if _NUMBER_IS_NO_STEP.fullmatch(stem) else split[stem]
        yield Candidate(folder.at(name), folder, (name,), "file of torch.save", series, numbers)


def open_candidate(candidate: Candidate, *, select: str | None) -> Checkpoint:
    """Return the model in one file of torch.save; no tensor is read.

    Raises:
        TrainingStateError: It holds only training state.
        AmbiguousModelError: It holds several models, and `select` does not name one.
        IncompleteCheckpointError: It is one rank's part of a model.
        InputError: It cannot be read.
    """
    path = candidate.path
    file = InputFile.describe(path)
    model = choose_model(describe_torch_file(file), select)
    if model.is_part:
        return open_part(model, candidate)
    state = torch_state_of(model)
    return Checkpoint(
        path=path,
        root=path.parent,
        layout=describe_layout(state, candidate.folder),
        tensors=state.tensors,
        container=state.container,
        selected=state.selected,
        storages=state.storages,
        files=(file,),
        checksums=Checksums.listed(state.checksums),
        extras=state.extras,
        classes=foreign_classes(state.saved.classes),
        traces=state.saved.traces,
        findings=state.findings,
    )
