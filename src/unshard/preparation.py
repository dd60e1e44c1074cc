"""The first half of the main job: everything that is decided before the first byte is written.

    open ──▶ base ──▶ questions ──▶ match ──▶ plan

Nothing but metadata is touched, and the few bytes that the questions need.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from unshard.base import Base, find_base
from unshard.checkpoint import Checkpoint
from unshard.checks.inference_files import check_inference_files
from unshard.errors import OptionError
from unshard.findings import Finding
from unshard.jsonable import to_json
from unshard.match import (
    Choices,
    Model,
    answer_questions,
    match_model,
    outline_of,
    questions_for,
    with_shapes,
)
from unshard.match.dtype_policy import require_policy
from unshard.match.kept_adapter import keep_adapter
from unshard.match.restored import AdapterChoice
from unshard.plan import OutputFile, Plan, SideFile
from unshard.readers import Places, as_paths, open_checkpoint
from unshard.sizes import parse_size
from unshard.storage.folders import require_outside
from unshard.tensors import Tensor
from unshard.writers.adapter_folder import INSIDE, plan_adapter_folder, plan_tokenizer_files
from unshard.writers.model_card import plan_model_card
from unshard.writers.model_files import plan_model_files
from unshard.writers.record_files import plan_record_files, with_fitting_record
from unshard.writers.safetensors_folder import plan_safetensors
from unshard.writers.torch_file import is_torch_file_name, plan_torch_file

Format = Literal["safetensors", "pt"]
DTypePolicy = Literal["base", "keep", "float32", "bfloat16", "float16"]

# Memory for tensor data of all workers together; more does not make a copy faster.
_BUDGET_BYTES = 32 << 20
# Where a folder of torch's format keeps its tensors; transformers looks for this name.
_TORCH_FILE = "pytorch_model.bin"


@dataclass(frozen=True, slots=True)
class Preparation:
    """A conversion that is decided down to the last byte and has not begun.

    Attributes:
        places: Where it was looked for.
        checkpoint: What lies on disk.
        base: The base it is matched to, or None.
        model: The tensors of the result: of a model, or of an adapter that is kept by itself.
        plan: The files of the result.
        options: What was asked for, as it will stand in the manifest.
        adapter: The tensors of an adapter that lies in a folder of its own beside the model, or None.
    """

    places: tuple[Path, ...]
    checkpoint: Checkpoint
    base: Base | None
    model: Model
    plan: Plan
    options: Mapping[str, object]
    adapter: Model | None = None

    def to_json(self) -> dict[str, object]:
        """Return the plan as plain values: files, bytes, memory, disk, every decision."""
        plan = self.plan
        return {
            "target": str(plan.target),
            "checkpoint": {"path": str(self.checkpoint.path), "layout": to_json(self.checkpoint.layout)},
            "base": None
            if self.base is None
            else {"reference": self.base.reference, "found": self.base.origin},
            "options": to_json(self.options),
            "files": [{"name": f.name, "size": f.size, "tensors": len(f.placements)} for f in plan.files],
            "side_files": [{"name": f.name, "size": f.size, "origin": f.origin} for f in plan.side_files],
            "output_bytes": plan.output_bytes,
            "memory_bytes": plan.budget_bytes,
            "scratch_bytes": plan.scratch_bytes,
            "config_edits": to_json(self.model.config_edits),
            "decisions": to_json(plan.decisions),
            "findings": to_json(plan.findings),
        }


def plan_conversion(
    path: Places,
    out: str | Path,
    *,
    base: str | Path | None = None,
    to: Format = "safetensors",
    dtype: DTypePolicy = "base",
    max_shard_size: str = "5GB",
    step: int | None = None,
    select: str | None = None,
    adapter: AdapterChoice = "merge",
    lora_alpha: float | None = None,
    accept_inferred_shapes: bool = False,
    download: bool = True,
) -> Preparation:
    """Return everything a conversion would do, without writing anything.

    Args:
        path: A run folder, a checkpoint folder, or a file; or the folders of several nodes, whose ranks
            wrote one checkpoint together.
        out: The folder to write; with `to="pt"` also a file that ends in .pt, .pth or .bin.
        base: The model training started from: a folder or a name on the hub. Without it, it is
            looked for in and beside the checkpoint and in its training parameters.
        to: `safetensors`, or `pt` for a plain state dict in torch's own format.
        dtype: `base` gives every tensor the dtype the base has, `keep` leaves all as they are.
        max_shard_size: The largest file of tensors, as `5GB` or `512MiB`.
        step: Which of several checkpoints side by side; the newest without it.
        select: The container or prefix of the model, where a file holds several.
        adapter: What becomes of an adapter: `merge` puts it into the weights, `keep` writes it by itself, as
            PEFT does, `both` writes the merged model and the adapter in the folder `adapter/` inside it.
        lora_alpha: The numerator of the adapter's scale, where no file tells it.
        accept_inferred_shapes: Whether tensors may be as large as the parts of them that are there, where
            neither a file nor the base tells how large they are; nothing then proves that no part is missing.
        download: Whether a base that is not on this machine may be fetched from the hub.

    Memory:
        Metadata, and the small buffers that answer the questions of `match`.

    Raises:
        InputError: The checkpoint cannot be read.
        BaseModelError: The base cannot be read, is of another model, or does not tell shapes that only it
            can tell.
        MatchError: Tensors are missing, unexpected, or of other shapes.
        OutputInsideSourceError: The output lies inside what is read, or around it.
        OptionError: An option means nothing.
    """
    target = Path(out)
    _require_format(to)
    require_policy(dtype)
    max_file_bytes = parse_size(max_shard_size)
    _require_fitting_name(target, to)
    _require_adapter_choice(adapter, target, to)
    paths = as_paths(path)
    checkpoint = open_checkpoint(paths, step=step, select=select)
    reference = None if base is None else str(base)
    found, base_findings = find_base(checkpoint, reference=reference, download=download)
    require_outside(target, [*paths, checkpoint.path, *([found.path] if found else [])])
    checkpoint = with_shapes(checkpoint, found, accept_inferred=accept_inferred_shapes)
    choices = Choices(dtype=dtype, adapter=adapter, lora_alpha=lora_alpha)
    decided = _decide(checkpoint, found, choices, target, to, max_file_bytes)
    checkpoint, misfits = with_fitting_record(
        checkpoint, decided.model, is_whole=found is not None and adapter != "keep"
    )
    findings = [*checkpoint.findings, *base_findings, *decided.findings, *misfits]
    plan = Plan(
        target=target,
        files=decided.files,
        side_files=_with_record(decided.side_files, checkpoint, target),
        decisions=decided.model.decisions,
        findings=tuple(findings),
        budget_bytes=_BUDGET_BYTES,
        scratch_bytes=checkpoint.scratch_bytes,
    )
    options = {
        "to": to,
        "dtype": dtype,
        "max_shard_size": max_shard_size,
        "step": step,
        "select": select,
        "adapter": adapter,
        "lora_alpha": lora_alpha,
        "accept_inferred_shapes": accept_inferred_shapes,
    }
    return Preparation(tuple(paths), checkpoint, found, decided.model, plan, options, decided.adapter)


@dataclass(frozen=True, slots=True)
class _Decided:
    """The tensors and files of the result, and what is told of them."""

    model: Model
    files: tuple[OutputFile, ...]
    side_files: tuple[SideFile, ...]
    findings: tuple[Finding, ...]
    adapter: Model | None = None


def _decide(
    checkpoint: Checkpoint, base: Base | None, choices: Choices, target: Path, to: Format, max_file_bytes: int
) -> _Decided:
    """Return what is written: a model, an adapter by itself, or both."""
    kept = None if choices.adapter == "merge" else keep_adapter(checkpoint, base, choices)
    if kept is not None and choices.adapter == "keep":
        file, config = plan_adapter_folder(kept, inside="")
        return _Decided(kept.model, (file,), (config, *plan_tokenizer_files(base)), kept.model.findings)
    outline = outline_of(checkpoint, base, choices)
    model = match_model(outline, dtype=choices.dtype, answers=answer_questions(questions_for(outline)))
    files, side_files = _plan_tensor_files(model.tensors, target, to, max_file_bytes)
    findings = model.findings
    if not is_torch_file_name(target):
        side_files += plan_model_files(checkpoint, base, model)
        lacking = check_inference_files({file.name for file in side_files}, has_base=base is not None)
        findings = (*findings, *lacking)
    if kept is None:
        return _Decided(model, files, side_files, findings)
    file, config = plan_adapter_folder(kept, inside=INSIDE)
    told = tuple(item for item in kept.model.findings if item not in findings)
    return _Decided(model, (*files, file), (*side_files, config), (*findings, *told), kept.model)


def _with_record(files: tuple[SideFile, ...], checkpoint: Checkpoint, target: Path) -> tuple[SideFile, ...]:
    """Return small files with the record of training, and the model card that it makes of a folder."""
    files = (*files, *plan_record_files(checkpoint, target))
    if is_torch_file_name(target):
        return files
    return (*files, *plan_model_card(checkpoint.record, {file.name for file in files}))


def _require_adapter_choice(choice: str, target: Path, to: Format) -> None:
    """Raise unless what becomes of an adapter can be written so.

    Raises:
        OptionError: It means nothing, or is a folder where one file was asked for.
    """
    if choice not in get_args(AdapterChoice):
        expected = ", ".join(get_args(AdapterChoice))
        raise OptionError("--adapter", "has a value that means nothing", saw=choice, expected=expected)
    if choice != "merge" and (to != "safetensors" or is_torch_file_name(target)):
        raise OptionError(
            f"--adapter {choice}",
            "writes a folder of safetensors",
            saw=f"--to {to}",
            hint="Leave --to out, and name a folder.",
        )


def _require_format(to: str) -> None:
    if to not in get_args(Format):
        expected = ", ".join(get_args(Format))
        raise OptionError("--to", "has a value that means nothing", saw=to, expected=expected)


def _require_fitting_name(target: Path, to: Format) -> None:
    if to == "safetensors" and is_torch_file_name(target):
        raise OptionError(
            target,
            "is the name of a torch file, and the result would be a folder",
            hint="Add --to pt for a plain state dict, or name a folder.",
        )


def _plan_tensor_files(
    tensors: Mapping[str, Tensor], target: Path, to: Format, max_file_bytes: int
) -> tuple[tuple[OutputFile, ...], tuple[SideFile, ...]]:
    """Return the files that hold tensors, and their index where there is one."""
    if to == "safetensors":
        return plan_safetensors(tensors, max_file_bytes=max_file_bytes)
    name = target.name if is_torch_file_name(target) else _TORCH_FILE
    return (plan_torch_file(tensors, name=name),), ()
