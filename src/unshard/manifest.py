"""The manifest: what was written, from what, and how that was proven.

It is written last, so a folder that has one is whole. It names files and tensors, never the folders
of the machine it was made on, and can be published with the model.

Layout of `unshard.manifest.json`:

    manifest        1, the version of this layout
    unshard         version of the program
    created         time in UTC
    source          layout, writer, container, selected prefix, and every file with its size
    base            the name of the base and how it was found, or null
    options         what was asked for
    tensors         by name: file, dtype, shape, the source's name and dtype, sha256 of its bytes
    dropped         source tensors that are not in the output, each with its reason
    config_edits    keys of config.json that differ from the base's
    side_files      every other file, where it came from, sha256
    findings        what a person should know
    proof           what was verified before the folder appeared
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unshard import __version__
from unshard.base import Base
from unshard.checkpoint import Checkpoint
from unshard.errors import DamagedFileError, PathNotFoundError
from unshard.findings import Finding
from unshard.jsonable import to_json
from unshard.match import Model
from unshard.plan import Placement, Plan, SideFile
from unshard.storage.files import InputFile
from unshard.tensors import CastTensor
from unshard.writers.torch_file import is_torch_file_name

MANIFEST_NAME = "unshard.manifest.json"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class ManifestTensor:
    """One tensor of the output.

    Attributes:
        file: The file it is in.
        dtype: Its dtype there, by torch's name.
        shape: Its shape.
        source: Its name in the checkpoint, or all names where it is made of several tensors; none where it
            is the base's own.
        source_dtype: Its dtype in the checkpoint; another one than `dtype` means a cast.
        sha256: Digest of its bytes in the output, or None where digests were not asked for.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]
    source: str | tuple[str, ...]
    source_dtype: str
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Manifest:
    """The manifest as it is written; the module's text says what each part is."""

    unshard: str
    created: str
    source: Mapping[str, Any]
    base: Mapping[str, Any] | None
    options: Mapping[str, Any]
    tensors: Mapping[str, ManifestTensor]
    dropped: tuple[Mapping[str, str], ...]
    config_edits: Mapping[str, Any]
    side_files: tuple[Mapping[str, Any], ...]
    findings: tuple[Mapping[str, Any], ...]
    proof: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        """Return the manifest as JSON text."""
        plain = to_json(self)
        assert isinstance(plain, dict)
        text = json.dumps({"manifest": _VERSION, **plain}, indent=2, ensure_ascii=False)
        return (text + "\n").encode()


def read_manifest(path: Path) -> Manifest | None:
    """Return the manifest at `path`, or None where there is none.

    Raises:
        DamagedFileError: It is not a manifest this version can read.
        InputError: It is no regular file, or cannot be read.
    """
    try:
        file = InputFile.describe(path)  # a FIFO of this name must not be waited for
        plain = json.loads(file.read(0, file.size))
        if plain["manifest"] != _VERSION:
            raise DamagedFileError(
                path, "is a manifest of another version", saw=plain["manifest"], expected=_VERSION
            )
        tensors = {
            name: ManifestTensor(
                **{**tensor, "shape": tuple(tensor["shape"]), "source": _read_source(tensor["source"])}
            )
            for name, tensor in plain["tensors"].items()
        }
        plain = {key: value for key, value in plain.items() if key != "manifest"}
        return Manifest(**{**plain, "tensors": tensors})
    except PathNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(
            path,
            "is not a manifest",
            saw=f"{type(error).__name__}: {error}",
            hint="Convert the checkpoint again; a model folder without a sound manifest proves nothing.",
        ) from error


def _read_source(source: str | list[str]) -> str | tuple[str, ...]:
    return source if isinstance(source, str) else tuple(source)


def manifest_name(target: Path) -> str:
    """Return the name of the manifest of an output: inside a folder, or beside a single file."""
    return f"{target.name}.{MANIFEST_NAME}" if is_torch_file_name(target) else MANIFEST_NAME


def describe_conversion(
    *,
    checkpoint: Checkpoint,
    base: Base | None,
    model: Model,
    plan: Plan,
    options: Mapping[str, object],
    digests: Mapping[str, str],
    proof: Mapping[str, object],
    findings: Sequence[Finding],
) -> Manifest:
    """Return the manifest of a conversion that has been carried out and proven."""
    return Manifest(
        unshard=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source=_describe_source(checkpoint),
        base=None if base is None else {"name": _name_of(base), "found": base.origin},
        options=options,
        tensors={
            placement.name: ManifestTensor(
                file=file.name,
                dtype=placement.tensor.dtype.name,
                shape=placement.tensor.shape,
                source=_one_or_all(model.sources[placement.name]),
                source_dtype=_source_dtype(placement, model.sources[placement.name], checkpoint),
                sha256=digests.get(placement.name),
            )
            for file in plan.files
            for placement in file.placements
        },
        dropped=tuple(
            {"source": decision.source, "reason": decision.reason}
            for decision in plan.decisions
            if decision.target is None
        ),
        config_edits=model.config_edits,
        side_files=tuple(_describe_side_file(file) for file in plan.side_files),
        findings=tuple(item.to_json() for item in findings),
        proof=proof,
    )


def _source_dtype(placement: Placement, sources: tuple[str, ...], checkpoint: Checkpoint) -> str:
    """Return the dtype in the checkpoint, or in the base where a tensor is the base's own."""
    if sources:
        return checkpoint.tensors[sources[0]].dtype.name
    tensor = placement.tensor
    return (tensor.source if isinstance(tensor, CastTensor) else tensor).dtype.name


def _one_or_all(names: tuple[str, ...]) -> str | tuple[str, ...]:
    return names[0] if len(names) == 1 else names


def _describe_source(checkpoint: Checkpoint) -> dict[str, object]:
    return {
        "layout": checkpoint.layout.name,
        "title": checkpoint.layout.title,
        "writer": checkpoint.layout.writer,
        "place": str(_place(checkpoint)),
        "step": next((step.number for step in checkpoint.steps if step.path == checkpoint.path), None),
        "container": ".".join(checkpoint.container),
        "select": checkpoint.selected,
        "files": [{"name": file.path.name, "size": file.size} for file in checkpoint.files],
    }


def _place(checkpoint: Checkpoint) -> Path:
    """Return where the checkpoint lies in its run; the paths of a machine are nobody else's concern."""
    path, root = checkpoint.path, checkpoint.root
    return Path(root.name) / path.relative_to(root) if path.is_relative_to(root) else Path(path.name)


def _describe_side_file(file: SideFile) -> dict[str, object]:
    content = file.content if file.content is not None else file.copy_of and file.copy_of.read_bytes()
    return {"name": file.name, "origin": file.origin, "sha256": hashlib.sha256(content or b"").hexdigest()}


def _name_of(base: Base) -> str:
    """Return the base as others know it: its name on the hub, or the last part of its folder."""
    return Path(base.reference).name if Path(base.reference).exists() else base.reference
