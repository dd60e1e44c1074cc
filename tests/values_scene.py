"""Evidence for checks of values: folders of models, and ways to break them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from unshard.base.configuration import read_config
from unshard.checks.evidence import Check, Evidence
from unshard.dtypes import DTYPES
from unshard.findings import Finding, Severity
from unshard.measures import measure
from unshard.progress import Silence
from unshard.readers.weights.safetensors_file import describe_safetensors_file
from unshard.storage.files import InputFile
from unshard.tensors import CastTensor, DescribedTensor, Tensor

State = dict[str, torch.Tensor]


def describe_weights(folder: Path) -> dict[str, DescribedTensor]:
    """Return every tensor of the safetensors files of a folder."""
    files = sorted(folder.glob("*.safetensors"))
    return {k: v for path in files for k, v in describe_safetensors_file(InputFile.describe(path)).items()}


def evidence_of(
    folder: Path, base: Path | None = None, *, dtype: str | None = None, is_deep: bool = True, **more: Any
) -> Evidence:
    """Return what checks look at for a folder of weights, cast to `dtype` where one is given."""
    tensors: dict[str, Tensor] = dict(describe_weights(folder))
    if dtype is not None:
        tensors = {
            name: CastTensor(tensor, DTYPES[dtype])
            if tensor.dtype.kind == "float" and tensor.dtype.name != dtype
            else tensor
            for name, tensor in tensors.items()
        }
    base_tensors = {} if base is None else describe_weights(base)
    measured = measure(tensors, against=base_tensors, workers=1, progress=Silence()) if is_deep else {}
    config = folder / "config.json"
    return Evidence(
        folder,
        tensors=tensors,
        config=read_config(config)[1] if config.exists() else None,
        base_tensors=base_tensors,
        measured=measured,
        is_deep=is_deep,
        **more,
    )


def broken(folder: Path, scratch: Path, change: Callable[[State], object]) -> Path:
    """Return a copy of a folder of one safetensors file after `change` was made to its tensors."""
    state = load_file(folder / "model.safetensors")
    change(state)
    scratch.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.json"):
        (scratch / path.name).write_bytes(path.read_bytes())
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, scratch / "model.safetensors")
    return scratch


def found_by(checks: tuple[Check, ...], evidence: Evidence) -> list[Finding]:
    """Return what checks find; each keeps to the codes that it names."""
    found = []
    for check in checks:
        mine = list(check.find(evidence))
        assert {each.code for each in mine} <= set(check.codes)
        found += mine
    return found


def alarms(found: list[Finding]) -> list[str]:
    """Return the codes of what is a warning or worse."""
    return [each.code for each in found if each.severity is not Severity.INFO]


def trained(model: Any, *, steps: int = 3, rate: float = 1e-3) -> Any:
    """Train a language model on random tokens, a few steps of AdamW."""
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    tokens = torch.randint(3, 90, (2, 12))
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        labels: Mapping[str, Any] = {"input_ids": tokens, "labels": tokens}
        model(**labels).loss.backward()
        optimizer.step()
    return model.eval()
