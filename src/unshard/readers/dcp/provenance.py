"""Who wrote a checkpoint of DCP, with which torch, and how that is known.

Every framework calls torch's own writer or one derived from it; what tells them apart are classes in the
metadata, files beside it, and the names of what is saved along with the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from unshard.checkpoint import Layout, Traces
from unshard.readers.dcp.tables import Tables
from unshard.readers.folders import Folder

_TITLE = "PyTorch Distributed Checkpoint (DCP)"
_DATA_FILE = re.compile(r"(.*__)?(\d+)_\d+\.distcp")


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What is looked at: the tables, the folder, and the first keys of all names."""

    tables: Tables
    folder: Folder
    tops: frozenset[str]

    def names_class_of(self, package: str) -> bool:
        """Return whether the pickle names a class of a package."""
        return any(path.startswith(f"{package}.") for path in self.tables.classes)

    def is_in(self, *names: str) -> bool:
        """Return whether the folder, or one of the two above it, has one of these names."""
        path = self.folder.path
        return any(re.fullmatch(name, part) for part in (path.name, path.parent.name) for name in names)

    def has(self, name: str) -> bool:
        """Return whether a file lies beside the metadata."""
        return name in self.folder.files


_Test = Callable[[_Evidence], bool]

# The first that holds. Classes tell most surely, then files, then names of folders, then names of values.
_WRITERS: tuple[tuple[str, str, _Test], ...] = (
    ("OLMo-core", "the metadata names classes of `olmo_core`", lambda e: e.names_class_of("olmo_core")),
    ("Megatron-Core", "the metadata names classes of `megatron`", lambda e: e.names_class_of("megatron")),
    (
        "NVIDIA Resiliency Extension",
        "the metadata names classes of it",
        lambda e: e.names_class_of("nvidia_resiliency_ext"),
    ),
    (
        "Megatron-Core",
        "`common.pt` and `metadata.json` lie beside it",
        lambda e: e.has("common.pt") and e.has("metadata.json"),
    ),
    ("llama-recipes", "`train_params.yaml` lies beside it", lambda e: e.has("train_params.yaml")),
    ("PyTorch Lightning", "`meta.pt` lies beside it", lambda e: e.has("meta.pt")),
    (
        "accelerate",
        "its folder is named as accelerate names it",
        lambda e: e.is_in(r"pytorch_model_fsdp_\d+"),
    ),
    (
        "Composer",
        "it holds `state.integrations` or Composer's names",
        lambda e: "state" in e.tops and "rng" in e.tops,
    ),
    ("OLMo-core", "its folder is named `model_and_optim`", lambda e: e.is_in("model_and_optim")),
    ("prime-rl", "its values lie below `app`", lambda e: "app" in e.tops and e.is_in("trainer")),
    ("torchtitan", "`train_state` is saved along with it", lambda e: "train_state" in e.tops),
    (
        "NeMo-RL",
        "its folder is `policy/weights`",
        lambda e: e.folder.path.parts[-2:] == ("policy", "weights"),
    ),
)


def describe_layout(tables: Tables, folder: Folder) -> Layout:
    """Return the layout of a checkpoint, with who wrote it."""
    names = [*(t.name for t in tables.tensors), *(i.name for i in tables.items)]
    evidence = _Evidence(tables, folder, frozenset(name.partition(".")[0] for name in names))
    writer, told = next(((w, told) for w, told, holds in _WRITERS if holds(evidence)), (None, None))
    facts = [_ranks(tables.files), f"written by torch {_torch_version(tables)}"]
    return Layout("dcp", _TITLE, writer, tuple(filter(None, (*facts, *_transforms(tables), told))))


def traces_of(tables: Tables) -> Traces:
    """Return what the metadata tells of the torch that wrote it: its classes and its fields."""
    fields = tables.facts.get("fields", "").split()
    return Traces(frozenset(tables.classes), parts=frozenset(f"metadata.{name}" for name in fields))


def _ranks(files: Sequence[str]) -> str:
    ranks = {found[2] for name in files if (found := _DATA_FILE.fullmatch(name))}
    counted = f"{len(files)} file{'s' * (len(files) != 1)}"
    return f"{counted} of {len(ranks)} rank{'s' * (len(ranks) != 1)}, named in `.metadata`"


def _transforms(tables: Tables) -> Iterator[str]:
    for names in tables.transforms:
        if names:
            yield f"blobs went through {', '.join(names)}"


def _torch_version(tables: Tables) -> str:
    """Return the versions of torch that write such metadata.

    Source:
        The classes of torch 1.13 to 2.14, compared.
    """
    fields = tables.facts.get("fields", "").split()
    if "version" in fields:
        return "2.9 or newer"
    if "storage_meta" in fields:
        return "2.4 to 2.8"
    paths = "\n".join(tables.classes)
    if "torch.distributed._shard.checkpoint" in paths:
        return "1.13"
    if "torch.distributed._shard.sharded_tensor.metadata.TensorProperties" in paths:
        return "2.0 to 2.2"
    return "2.3" if "torch.distributed.checkpoint" in paths else "of an unknown version"
