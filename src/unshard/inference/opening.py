"""From a path to a model in memory: the flow of a conversion, up to the tensors, and then a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from unshard.base import find_base
from unshard.checkpoint import Checkpoint
from unshard.errors import BaseModelError
from unshard.inference.fingerprint_check import check_fingerprint, require_reproduced
from unshard.inference.loading import LoadedModel, load_model
from unshard.match import Choices, answer_questions, match_model, outline_of, questions_for, with_shapes
from unshard.match.model import Model
from unshard.readers import open_checkpoint
from unshard.record.comparing import check_record
from unshard.writers.model_files import plan_model_files

if TYPE_CHECKING:
    from unshard.inference.building import DeviceMap


def open_model(
    paths: Sequence[Path],
    *,
    base: str | None,
    dtype: str,
    device: str,
    device_map: DeviceMap | None,
    step: int | None,
    select: str | None,
    lora_alpha: float | None,
    accept_inferred_shapes: bool,
    download: bool,
    fingerprint: bool = True,
) -> LoadedModel:
    """Return the model at `paths`, loaded and tried, with everything a person should know about it.

    `load` says what the arguments mean.

    Raises:
        InputError: The checkpoint cannot be read.
        BaseModelError: There is no base, or it is of another model.
        MatchError: Tensors are missing, unexpected, or of other shapes.
        InferenceError: The model cannot be built, does not give numbers, or not those of its record.
        OptionError: An option means nothing.
    """
    checkpoint = open_checkpoint(paths, step=step, select=select)
    found, base_findings = find_base(checkpoint, reference=base, download=download)
    if found is None:
        raise BaseModelError(
            paths[0],
            "cannot be run without its configuration, and no base was found",
            hint="Name the model training started from with --base: a folder, or a name on the hub.",
        )
    checkpoint = with_shapes(checkpoint, found, accept_inferred=accept_inferred_shapes)
    outline = outline_of(checkpoint, found, Choices(dtype=dtype, lora_alpha=lora_alpha))
    model = match_model(outline, dtype=dtype, answers=answer_questions(questions_for(outline)))
    loaded = load_model(
        model,
        plan_model_files(checkpoint, found, model),
        name=found.reference,
        dtype=dtype,
        device=device,
        device_map=device_map,
    )
    told = (*checkpoint.findings, *base_findings, *model.findings, *loaded.findings)
    loaded = replace(loaded, findings=told)
    return _reproduced(loaded, checkpoint, model, paths[0]) if fingerprint else loaded


def _reproduced(loaded: LoadedModel, checkpoint: Checkpoint, model: Model, path: Path) -> LoadedModel:
    """Return a model after a look at the fingerprint that training left beside its checkpoint, if any.

    Raises:
        InferenceError: It gives other tokens or logits than training.
    """
    record = checkpoint.record
    if record is None or record.fingerprint is None:
        return loaded
    if misfits := tuple(check_record(record, {name: t.shape for name, t in model.tensors.items()})):
        return replace(loaded, findings=(*loaded.findings, *misfits))
    check = check_fingerprint(loaded.model, loaded.tokenizer, record, quick=True)
    assert check is not None
    require_reproduced(check, path)
    evidence = None if check.reproduction is None else check.reproduction.evidence
    return replace(loaded, findings=(*loaded.findings, *check.findings), reproduction=evidence)
