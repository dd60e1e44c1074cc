"""Adapters: left among a model's weights, lying beside them, without effect, merged with another scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from unshard.checks.evidence import Check, Evidence
from unshard.checks.words import named, quoted
from unshard.errors import UnshardError
from unshard.findings import Finding, finding
from unshard.match.adapter_parts import AdapterParts, Factors, take_apart
from unshard.match.adapter_settings import AdapterSettings, settings_from_config
from unshard.match.adapters import check_adapter
from unshard.readers.weights.weights_file import describe_weights_file
from unshard.recipes.adapters import CONFIG, PUBLISHED_WITH_ADAPTERS, holds_adapter
from unshard.sizes import counted
from unshard.storage.files import InputFile
from unshard.tensors import DescribedTensor, Tensor, element_count

if TYPE_CHECKING:
    import numpy as np

_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_FOLDERS = ("", "adapter/")
# Elements of a second factor that are read at a time, until one is not zero.
_BLOCK = 1 << 18
# Of how many modules, and of how many rows of each, the scale is measured.
_MODULES, _ROWS, _COLUMNS = 4, 64, 2048
# A change that is this much of it something else is no merge of this adapter.
_UNLIKE = 0.5
# How far a measured scale may be from the one that is told: training does not round to less.
_RELATIVE = 0.02


def _check_in_checkpoint(evidence: Evidence) -> Iterator[Finding]:
    """Yield what an adapter in a checkpoint is."""
    if evidence.folder is None and evidence.checkpoint is not None:
        yield from check_adapter(evidence.checkpoint)


def _check_left_in_folder(evidence: Evidence) -> Iterator[Finding]:
    """Yield tensors of an adapter among the weights of a model, which no engine applies."""
    if evidence.folder is None or (evidence.config or {}).get("model_type") in PUBLISHED_WITH_ADAPTERS:
        return
    left = [name for name in evidence.folder.tensors if holds_adapter([name])]
    if left:
        yield finding(
            "U256",
            subject=quoted(left[0]),
            saw=f"{counted(len(left), 'tensor')} of {len(evidence.folder.tensors):,}: {named(left)}",
            expected="weights with the adapter merged into them",
            remedy="Merge it: unshard convert FOLDER OUT --base BASE",
        )


def _check_beside_weights(evidence: Evidence) -> Iterator[Finding]:
    """Yield an adapter's configuration at the top of a model folder."""
    folder = evidence.folder
    if folder is None or CONFIG not in folder.names or "config.json" not in folder.names:
        return
    yield finding(
        "U257",
        subject=CONFIG,
        saw="it lies beside config.json and the weights of a whole model",
        expected="a folder of its own for the adapter",
        remedy="Move adapter_config.json and adapter_model.* into a folder of their own, such as adapter/: "
        "with peft installed, transformers applies them to the weights when it loads the folder.",
    )


def _check_effect(evidence: Evidence) -> Iterator[Finding]:
    """Yield that all second factors are zero, as they are before training."""
    checkpoint = evidence.checkpoint
    if not evidence.is_deep or evidence.folder is not None or checkpoint is None:
        return
    parts = _parts(checkpoint.tensors, checkpoint.path)
    if parts is None or not parts.factors or parts.saved or parts.tokens:
        return
    if all(_is_zero(checkpoint.tensors[_grown(each)]) for each in parts.factors):
        yield finding(
            "U254",
            subject=quoted(_grown(parts.factors[0])),
            saw=f"nothing but zeros, as in all {counted(len(parts.factors), 'module')}",
            expected="what training made of them: they are zero before it begins",
            remedy="The result would be the base. Look for the step that training ended with.",
        )


def _grown(each: Factors) -> str:
    """Return the factor that is zero before training: the second one, or the first of an embedding."""
    return each.a if "lora_embedding_" in each.a else each.b


def _parts(tensors: Mapping[str, DescribedTensor], subject: Path) -> AdapterParts | None:
    try:
        return take_apart(tensors, subject, is_adapter=False)
    except UnshardError:  # told where the checkpoint is held against its base
        return None


def _is_zero(tensor: Tensor) -> bool:
    return not any(block.any() for block in _blocks(tensor))


def _blocks(tensor: Tensor) -> Iterator[np.ndarray]:
    """Yield the elements of a tensor in blocks."""
    count = element_count(tensor)
    for start in range(0, count, _BLOCK):
        yield _read(tensor, start, min(count, start + _BLOCK))


def _read(tensor: Tensor, start: int, stop: int) -> np.ndarray:
    import numpy as np

    raw = bytearray((stop - start) * tensor.dtype.itemsize)
    tensor.read(start, stop, memoryview(raw))
    return np.frombuffer(raw, tensor.dtype.numpy).astype(np.float64)


class _Measured(NamedTuple):
    """The scale with which an adapter was merged, and the one that is told."""

    module: str
    found: float
    error: float
    told: float
    words: str

    @property
    def is_wrong(self) -> bool:
        """Whether the two differ by more than rounding of the weights explains."""
        return abs(self.found - self.told) > max(_RELATIVE * self.told, 6 * self.error)


def _check_scale(evidence: Evidence) -> Iterator[Finding]:
    """Yield that the weights are the base with an adapter of the folder merged into it at another scale."""
    folder = evidence.folder
    if not evidence.is_deep or folder is None or not evidence.base_tensors:
        return
    for inside in _FOLDERS:
        names = [f"{inside}{name}" for name in _WEIGHTS if f"{inside}{name}" in folder.names]
        if names and f"{inside}{CONFIG}" in folder.names:
            yield from _wrong_scale(evidence, folder.path / names[0], folder.path / inside / CONFIG)


def _wrong_scale(evidence: Evidence, weights: Path, config: Path) -> Iterator[Finding]:
    try:
        settings = settings_from_config(config)
        tensors = describe_weights_file(InputFile.describe(weights)).tensors
        parts = take_apart(tensors, weights, is_adapter=True)
    except UnshardError:
        return
    if parts is None:
        return
    measured = list(_measured(evidence, parts, settings, tensors))
    wrong = [each for each in measured if each.is_wrong]
    if measured and len(wrong) == len(measured):
        first = wrong[0]
        yield finding(
            "U255",
            subject=quoted(first.module),
            saw=f"merged with scale {first.found:.4g}, in {len(wrong)} of {len(measured)} modules looked at",
            expected=f"{first.told:.4g}: {first.words}, as {CONFIG} says",
            remedy="Merge it again: unshard convert ADAPTER OUT --base BASE",
        )


def _measured(
    evidence: Evidence, parts: AdapterParts, settings: AdapterSettings, tensors: Mapping[str, DescribedTensor]
) -> Iterator[_Measured]:
    """Yield the scale that fits the change of a few modules best, where it fits."""
    looked = 0
    for each in parts.factors:
        name, scale = f"{each.module}.weight", settings.scale_of(each.module, tensors[each.a].shape[0])
        merged, base = evidence.tensors.get(name), evidence.base_tensors.get(name)
        if merged is None or base is None or scale is None or each.magnitude is not None:
            continue
        a, b = tensors[each.a], tensors[each.b]
        if merged.shape != base.shape or merged.shape != (b.shape[0], a.shape[1]) or len(a.shape) != 2:
            continue
        found = _fitted(merged, base, a, b)
        if found is not None:
            yield _Measured(each.module, *found, scale.value, scale.told)
        looked += 1
        if looked == _MODULES:
            return


def _fitted(merged: Tensor, base: Tensor, a: Tensor, b: Tensor) -> tuple[float, float] | None:
    """Return the scale s for which merged - base is nearest to s * B @ A, and its error; None if not near.

    It is taken over some rows: <merged - base, B @ A> / <B @ A, B @ A>. What is left of the difference is
    rounding of the weights, as much one way as the other.
    """
    import numpy as np

    rows, columns, rank = min(_ROWS, merged.shape[0]), merged.shape[1], a.shape[0]
    factor = _read(b, 0, rows * rank).reshape(rows, rank)
    dot = square = change = 0.0
    for left in range(0, columns, _COLUMNS):
        right = min(columns, left + _COLUMNS)
        other = np.stack([_read(a, k * columns + left, k * columns + right) for k in range(rank)])
        product = factor @ other
        delta = _rows(merged, columns, rows, left, right) - _rows(base, columns, rows, left, right)
        dot += float((delta * product).sum())
        square += float((product * product).sum())
        change += float((delta * delta).sum())
    if not (square > 0 and change > 0) or dot * dot < (1 - _UNLIKE) * square * change:
        return None
    left_over = max(0.0, change - dot * dot / square)
    return dot / square, math.sqrt(left_over / square / (rows * columns))


def _rows(tensor: Tensor, width: int, rows: int, left: int, right: int) -> np.ndarray:
    import numpy as np

    return np.stack([_read(tensor, row * width + left, row * width + right) for row in range(rows)])


CHECKS: tuple[Check, ...] = (
    Check("adapters.in_checkpoint", ("U250",), _check_in_checkpoint),
    Check("adapters.left_in_folder", ("U256",), _check_left_in_folder),
    Check("adapters.beside_weights", ("U257",), _check_beside_weights),
    Check("adapters.effect", ("U254",), _check_effect),
    Check("adapters.scale", ("U255",), _check_scale),
)
