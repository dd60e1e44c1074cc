"""Evidence for checks of values: folders of models, measured by plain numpy, and ways to break them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from unshard.base.configuration import read_config
from unshard.checks.evidence import Check, Evidence
from unshard.dtypes import DTYPES
from unshard.findings import Finding, Severity
from unshard.measures import Delta, Measurement, Statistics
from unshard.readers.weights.safetensors_file import describe_safetensors_file
from unshard.storage.files import InputFile
from unshard.tensors import CastTensor, DescribedTensor, Tensor, element_count

State = dict[str, torch.Tensor]


def array_of(tensor: Tensor) -> np.ndarray:
    """Return all numbers of a tensor."""
    raw = bytearray(element_count(tensor) * tensor.dtype.itemsize)
    tensor.read(0, element_count(tensor), memoryview(raw))
    return np.frombuffer(raw, tensor.dtype.numpy)


def statistics_of(tensor: Tensor) -> Statistics:
    """Return the numbers of a tensor, as the definition says."""
    source = tensor.source if isinstance(tensor, CastTensor) else tensor
    stored = array_of(source)
    with np.errstate(all="ignore"):
        values = stored.astype(np.float64)
    finite = values[np.isfinite(values)]
    magnitudes = np.abs(finite[finite != 0])
    exponents, counts = np.unique(np.frexp(magnitudes)[1] - 1, return_counts=True)
    normal = float(np.finfo(np.float64).tiny)
    if source.dtype.kind == "float":
        import ml_dtypes

        normal = float(ml_dtypes.finfo(source.dtype.numpy).smallest_normal)  # type: ignore[no-untyped-call]
    return Statistics(
        count=len(values),
        nans=int(np.isnan(values).sum()),
        infinities=int(np.isinf(values).sum()),
        zeros=int((values == 0).sum()),
        subnormals=int((magnitudes < normal).sum()),
        minimum=float(finite.min(initial=math.inf)) if len(finite) else 0.0,
        maximum=float(finite.max(initial=-math.inf)) if len(finite) else 0.0,
        mean=float(finite.mean()) if len(finite) else 0.0,
        deviation=float(finite.std()) if len(finite) else 0.0,
        magnitudes=tuple((int(e), int(n)) for e, n in zip(exponents, counts, strict=True)),
        digest=hash(stored.tobytes()),
    )


def delta_of(tensor: Tensor, base: Tensor) -> Delta:
    """Return how far a tensor is from another, as the definition says."""
    source = tensor.source if isinstance(tensor, CastTensor) else tensor
    with np.errstate(all="ignore"):
        ours, theirs, cast = (array_of(t).astype(np.float64) for t in (source, base, tensor))
        base_cast = (
            array_of(CastTensor(base, tensor.dtype)).astype(np.float64) if cast is not ours else theirs
        )
    changed = int((ours != theirs).sum())
    survived = int(((cast != base_cast) & (ours != theirs)).sum()) if tensor is not source else changed
    usable = np.isfinite(ours) & np.isfinite(theirs)
    ours, theirs = ours[usable], theirs[usable]
    return Delta(
        count=len(usable),
        changed=changed,
        survived=survived,
        dot=float(ours @ theirs),
        norm=float(np.linalg.norm(ours)),
        other_norm=float(np.linalg.norm(theirs)),
        distance=float(np.linalg.norm(ours - theirs)),
        largest=float(np.abs(ours - theirs).max(initial=0.0)),
    )


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
    measured = {
        name: Measurement(
            statistics_of(tensor),
            delta_of(tensor, base_tensors[name])
            if name in base_tensors and base_tensors[name].shape == tensor.shape
            else None,
        )
        for name, tensor in tensors.items()
    }
    config = folder / "config.json"
    return Evidence(
        folder,
        tensors=tensors,
        config=read_config(config)[1] if config.exists() else None,
        base_tensors=base_tensors,
        measured=measured if is_deep else {},
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
