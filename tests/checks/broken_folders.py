"""Model folders of transformers, and ways to break them; checks without the command around them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from unshard.base import Base
from unshard.checks.evidence import Check, Evidence
from unshard.checks.table import CHECKS
from unshard.findings import Finding
from unshard.model_folder import read_model_folder

State = dict[str, torch.Tensor]
WEIGHTS = "model.safetensors"
# What is true of every folder here: its rows are padded, and safetensors writes for the owner alone.
_ALWAYS = ("U514", "U625", "U640", "U641")


def copied(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def rewritten(folder: Path, change: Callable[[State], Mapping[str, torch.Tensor]]) -> Path:
    """Change the weights of a folder of one file."""
    state = {name: tensor.contiguous() for name, tensor in change(load_file(folder / WEIGHTS)).items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def reconfigured(folder: Path, name: str = "config.json", /, **changes: Any) -> Path:
    """Change keys of a JSON file; None removes one."""
    values = json.loads((folder / name).read_text()) | changes
    values = {key: value for key, value in values.items() if value is not None}
    (folder / name).write_text(json.dumps(values))
    return folder


def split(folder: Path) -> Path:
    """Spread the weights of a folder over two files with an index."""
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names, files = list(state), [f"model-{i:05}-of-00002.safetensors" for i in (1, 2)]
    for i, file in enumerate(files):
        save_file({name: state[name] for name in names[i::2]}, folder / file, metadata={"format": "pt"})
    size = sum(tensor.nbytes for tensor in state.values())
    weight_map = {name: files[k % 2] for k, name in enumerate(names)}
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def reindexed(folder: Path, change: Callable[[dict[str, str]], dict[str, str]]) -> Path:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps(index | {"weight_map": change(index["weight_map"])}))
    return folder


def base_in(folder: Path) -> Base:
    """Return a folder as a base that was named."""
    from unshard.base import find_base
    from unshard.checkpoint import Checkpoint, Layout

    checkpoint = Checkpoint(folder, folder, Layout("hugging-face", "", None, ()), {})
    base, _ = find_base(checkpoint, reference=str(folder), download=False, model_class=False)
    assert base is not None
    return base


def found(
    folder: Path, *, base: Path | None = None, deep: bool = False, checks: tuple[Check, ...] = CHECKS
) -> list[Finding]:
    """Return what checks find in a folder, facts aside that are true of all of them."""
    read = read_model_folder(folder)
    evidence = Evidence(
        folder,
        folder=read,
        tensors=read.tensors,
        config=read.json("config.json"),
        base=None if base is None else base_in(base),
        read_model_class=deep,
    )
    findings = [item for check in checks for item in check.find(evidence)]
    for check in checks:
        assert {item.code for item in check.find(evidence)} <= set(check.codes)
    return [item for item in findings if item.code not in _ALWAYS]


def codes(findings: list[Finding]) -> list[str]:
    return [item.code for item in findings]


def only(findings: list[Finding]) -> Finding:
    """Return the one finding there is."""
    assert len(findings) == 1, findings
    return findings[0]
