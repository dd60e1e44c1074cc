"""An adapter of PEFT alone: its own tensors, and not those of the model it belongs to.

    adapter_config.json              what it is: kind, rank, scale, modules, and the name of its base
    adapter_model.safetensors|bin    names below `base_model.model.`, without the adapter's own name
    NAME/                            the same again, for every adapter that is not called `default`

Left to others, and only named: an adapter in a folder that holds a model or another checkpoint, too.

Memory:
    Headers only.

Source:
    peft src/peft/peft_model.py (`save_pretrained`), src/peft/utils/save_and_load.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from unshard.checkpoint import Checkpoint, Layout
from unshard.findings import Finding, finding
from unshard.readers.folders import Folder
from unshard.readers.protocol import Candidate
from unshard.readers.rendering import as_argument
from unshard.readers.selection import select_model
from unshard.readers.training_files import training_kind
from unshard.readers.weights.weights_file import describe_weights_file
from unshard.storage.checksums import Checksums
from unshard.storage.files import InputFile

_CONFIG = "adapter_config.json"
# Safetensors first, as PEFT looks for them.
_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".distcp", ".index.json")


def find_candidates(folder: Folder) -> Iterator[Candidate]:
    """Yield the adapter in a folder that holds no other tensors."""
    found = tuple(name for name in _FILES if name in folder.files)
    others = [name for name in folder.files if name.endswith(_ENDINGS) and name not in found]
    if found and all(training_kind(name) for name in others):
        yield Candidate(folder.path, folder, found, "PEFT adapter")


def open_candidate(candidate: Candidate, *, select: str | None) -> Checkpoint:
    """Return the adapter; no tensor is read.

    Raises:
        InputError: It cannot be read.
    """
    folder = candidate.folder
    name = next(name for name in _FILES if name in candidate.files)
    held = describe_weights_file(InputFile.describe(folder.at(name)))
    chosen = select_model({held.container: dict(held.tensors)}, select, candidate.path)
    evidence = [f"`{name}`", *([f"`{_CONFIG}` lies beside it"] if _CONFIG in folder.files else [])]
    return Checkpoint(
        path=candidate.path,
        root=folder.path,
        layout=Layout(
            "peft-adapter", "PEFT adapter, without the model it belongs to", "PEFT", tuple(evidence)
        ),
        tensors=chosen.tensors,
        container=chosen.container,
        selected=chosen.prefix,
        storages={name: token for name, token in held.storages.items() if name in chosen.tensors},
        files=(held.file,),
        checksums=Checksums.listed(held.checksums),
        extras=held.extras,
        classes=held.classes,
        traces=held.traces,
        findings=(*held.findings, *_told_of_others(folder)),
    )


def _told_of_others(folder: Folder) -> Iterator[Finding]:
    """Yield which adapters lie in folders of the folder, where PEFT puts those of other names."""
    for name in folder.folders:
        if any((folder.path / name / file).is_file() for file in _FILES):
            yield finding(
                "U262",
                subject=folder.path.name,
                saw=f"the adapter at its top was taken; `{name}/` holds another one",
                remedy=f"To have that one: unshard convert {as_argument(folder.path / name)} OUT --base BASE",
            )
