"""The manifest of a conversion after its folder was mended.

A digest is of the bytes of a tensor: it stays true where only the name changes, or the file. Of tensors
that were put together or taken apart there is none any more. What was proven of the rest was proven of
another folder, and the manifest says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from unshard.errors import DamagedFileError
from unshard.findings import finding
from unshard.manifest import MANIFEST_NAME, Manifest, ManifestTensor, read_manifest
from unshard.mending.header_editing import extent_in
from unshard.mending.repairs import Repair
from unshard.mending.scene import CONFIG, Scene
from unshard.mending.texts import PlannedText
from unshard.mending.weight_files import file_of
from unshard.mending.weight_plans import PlannedWeights, Tensors, weight_map_of
from unshard.plan import SideFile
from unshard.storage.files import InputFile
from unshard.tensors import Tensor

_Place = tuple[InputFile, int, int, str]


def edited_manifest(
    scene: Scene,
    weights: Sequence[PlannedWeights],
    tensors: Tensors,
    repairs: Sequence[Repair],
    texts: Sequence[PlannedText],
) -> Iterator[PlannedText]:
    """Yield the manifest as it has to be after mending, where the folder has one that can be read."""
    there = scene.folder.json_files.get(MANIFEST_NAME)
    if there is None:
        return
    try:
        manifest = read_manifest(scene.folder.path / MANIFEST_NAME)
    except DamagedFileError:
        return
    if manifest is None:
        return
    config = {key: value for repair in repairs for key, value in repair.edits.get(CONFIG, {}).items()}
    told = (finding("U908", subject=r.name, saw=r.what, expected=r.why).to_json() for r in repairs)
    edited = replace(
        manifest,
        tensors=_tensors(scene, weights, tensors, manifest),
        config_edits={**manifest.config_edits, **config},
        side_files=tuple(_side_files(manifest, texts)),
        findings=(*manifest.findings, *told),
        proof={**manifest.proof, "mended": _doubt(repairs)},
    )
    yield PlannedText(
        MANIFEST_NAME, there.content, SideFile(MANIFEST_NAME, edited.to_bytes(), None, "mended")
    )


def _doubt(repairs: Sequence[Repair]) -> dict[str, object]:
    names = ", ".join(dict.fromkeys(repair.name for repair in repairs))
    said = f"mended after the other levels were proven: {names}; digests are those of the same bytes"
    return {"verdict": "not checked", "evidence": [said]}


def _tensors(
    scene: Scene, weights: Sequence[PlannedWeights], tensors: Tensors, manifest: Manifest
) -> dict[str, ManifestTensor]:
    """Return what the manifest says of every tensor of the result."""
    before = {
        place: name
        for file in scene.weights.files
        for name, tensor in file.tensors.items()
        if (place := _place(file_of(scene.folder, file), tensor)) is not None
    }
    files = {file_of(scene.folder, file) for file in scene.weights.files}
    found = {}
    for name, home in weight_map_of(weights).items():
        tensor = tensors[name]
        places = (_place(file, tensor) for file in files)
        old = next((before[place] for place in places if place in before), None)
        told = manifest.tensors.get(old or name) or manifest.tensors.get(name)
        told = told if told and (told.shape, told.dtype) == (tensor.shape, tensor.dtype.name) else None
        found[name] = ManifestTensor(
            file=home,
            dtype=tensor.dtype.name,
            shape=tensor.shape,
            source=told.source if told else old or name,
            source_dtype=told.source_dtype if told else tensor.dtype.name,
            sha256=told.sha256 if told else None,
        )
    return found


def _place(file: InputFile, tensor: Tensor) -> _Place | None:
    extent = extent_in(file, tensor)
    return None if extent is None else (file, *extent, tensor.dtype.name)


def _side_files(manifest: Manifest, texts: Sequence[PlannedText]) -> Iterator[Mapping[str, Any]]:
    """Yield what the manifest says of every small file of the result."""
    changed = {text.name: text.after for text in texts}
    for said in manifest.side_files:
        if said.get("name") not in changed:
            yield said
    for name, after in changed.items():
        if after is not None:
            content = after.content
            if content is None and after.copy_of is not None:
                content = after.copy_of.read_bytes()
            digest = hashlib.sha256(content or b"").hexdigest()
            yield {"name": name, "origin": f"mended: {after.origin}", "sha256": digest}
