"""The main job: a training checkpoint in, a verified model out.

    open ──▶ base ──▶ questions ──▶ match ──▶ plan ──▶ run ──▶ prove ──▶ manifest ──▶ one rename

`plan_conversion` does the first five and touches nothing but metadata and the few bytes the
questions need; `carry_out` goes on from there. Everything is written and proven in a hidden folder
beside the target, which appears whole or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from unshard.base import Base, ExpectedTensor, find_base
from unshard.checkpoint import Checkpoint
from unshard.checks.inference_files import check_inference_files
from unshard.engines.local import run_plan
from unshard.engines.workers import default_workers
from unshard.errors import OptionError, VerificationError
from unshard.findings import Finding, Severity, finding
from unshard.jsonable import to_json
from unshard.manifest import Manifest, describe_conversion, manifest_name
from unshard.match import Model, answer_questions, match_model, questions_for
from unshard.plan import OutputFile, Plan, SideFile
from unshard.progress import Progress, Silence
from unshard.proof.bytes import BytesProof, verify_bytes
from unshard.proof.coverage import used_checksums
from unshard.proof.forward import verify_forward
from unshard.proof.levels import Level, bytes_level, forward_level, structure_level
from unshard.proof.structure import verify_structure
from unshard.readers import Places, as_paths, open_checkpoint
from unshard.sizes import parse_size
from unshard.storage.folders import new_files, new_folder, require_outside, require_space
from unshard.tensors import CastTensor, Tensor
from unshard.writers.model_files import plan_model_files
from unshard.writers.safetensors_folder import plan_safetensors
from unshard.writers.torch_file import plan_torch_file

Format = Literal["safetensors", "pt"]
DTypePolicy = Literal["base", "keep", "float32", "bfloat16", "float16"]

# Memory for tensor data of all workers together; more does not make a copy faster.
_BUDGET_BYTES = 32 << 20
_FILE_ENDINGS = (".pt", ".pth", ".bin")
# Where a folder of torch's format keeps its tensors; transformers looks for this name.
_TORCH_FILE = "pytorch_model.bin"


@dataclass(frozen=True, slots=True)
class Preparation:
    """A conversion that is decided down to the last byte and has not begun.

    Attributes:
        checkpoint: What lies on disk.
        base: The base it is matched to, or None.
        model: The tensors of the result.
        plan: The files of the result.
        options: What was asked for, as it will stand in the manifest.
    """

    checkpoint: Checkpoint
    base: Base | None
    model: Model
    plan: Plan
    options: Mapping[str, object]

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
            "config_edits": to_json(self.model.config_edits),
            "decisions": to_json(plan.decisions),
            "findings": to_json(plan.findings),
        }


@dataclass(frozen=True, slots=True)
class Conversion:
    """A finished conversion.

    Attributes:
        target: The output: a folder, or one file.
        manifest: What was written, and from what.
        proof: What was verified before it appeared.
        findings: What a person should know.
        output_bytes: Size of the output, the manifest aside.
        seconds: How long it took.
    """

    target: Path
    manifest: Manifest
    proof: tuple[Level, ...]
    findings: tuple[Finding, ...]
    output_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Settings:
    """How a prepared conversion is carried out; `convert` says what each means."""

    overwrite: bool
    verify: bool
    digests: bool
    prove: bool
    durable: bool
    workers: int | None


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
        download: Whether a base that is not on this machine may be fetched from the hub.

    Memory:
        Metadata, and the small buffers that answer the questions of `match`.

    Raises:
        InputError: The checkpoint cannot be read.
        BaseModelError: The base cannot be read, or is of another model.
        MatchError: Tensors are missing, unexpected, or of other shapes.
        OutputInsideSourceError: The output lies inside what is read, or around it.
        OptionError: An option means nothing.
    """
    target = Path(out)
    _require_choice("--to", to, get_args(Format))
    _require_choice("--dtype", dtype, get_args(DTypePolicy))
    max_file_bytes = parse_size(max_shard_size)
    _require_fitting_name(target, to)
    paths = as_paths(path)
    checkpoint = open_checkpoint(paths, step=step, select=select)
    reference = None if base is None else str(base)
    found, base_findings = find_base(checkpoint, reference=reference, download=download)
    require_outside(target, [*paths, checkpoint.path, *([found.path] if found else [])])
    answers = answer_questions(questions_for(checkpoint, found))
    model = match_model(checkpoint, found, dtype=dtype, answers=answers)
    files, side_files = _plan_tensor_files(model.tensors, target, to, max_file_bytes)
    findings = [*checkpoint.findings, *base_findings, *model.findings]
    if not _is_one_file(target):
        side_files += plan_model_files(checkpoint, found, model)
        findings += check_inference_files({file.name for file in side_files}, has_base=found is not None)
    plan = Plan(target, files, side_files, model.decisions, tuple(findings), _BUDGET_BYTES)
    options = {"to": to, "dtype": dtype, "max_shard_size": max_shard_size, "step": step, "select": select}
    return Preparation(checkpoint, found, model, plan, options)


def convert(
    path: Places,
    out: str | Path,
    *,
    base: str | Path | None = None,
    to: Format = "safetensors",
    dtype: DTypePolicy = "base",
    max_shard_size: str = "5GB",
    step: int | None = None,
    select: str | None = None,
    overwrite: bool = False,
    verify: bool = True,
    digests: bool = True,
    prove: bool = False,
    durable: bool = True,
    download: bool = True,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Write a complete, verified model.

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
        overwrite: Replace `out` if it exists; the old one is deleted after the new one is whole.
        verify: Read everything back from disk and compare it with the source bit for bit, and the
            source with the checksums its writer left.
        digests: Put the SHA-256 of every tensor into the manifest.
        prove: Also load the result in transformers and run a forward pass (extra `hf`).
        durable: Wait until the disk has it all before the result appears.
        download: Whether a base that is not on this machine may be fetched from the hub.
        workers: Threads; by default one per core, at most four.
        progress: Told how far it is.

    Memory:
        32 MiB for tensor data, whatever the size of the model or of its largest tensor.

    Raises:
        UnshardError: Every class of it; nothing is left at `out` that looks finished.
    """
    ready = plan_conversion(
        path,
        out,
        base=base,
        to=to,
        dtype=dtype,
        max_shard_size=max_shard_size,
        step=step,
        select=select,
        download=download,
    )
    settings = Settings(overwrite, verify, digests, prove, durable, workers)
    return carry_out(ready, settings, progress=progress or Silence())


def carry_out(ready: Preparation, settings: Settings, *, progress: Progress) -> Conversion:
    """Write, prove and commit what `plan_conversion` decided; `convert` says what can go wrong."""
    began = time.monotonic()
    plan, workers = ready.plan, settings.workers or default_workers()
    if settings.prove and _is_one_file(plan.target):
        raise OptionError("--prove", "needs a model folder to load", saw=plan.target.name)
    with _staged(plan, settings) as folder:
        run_plan(plan, folder, workers=workers, durable=settings.durable, progress=progress)
        losses = _check_losses(ready.model.tensors)
        proof, digests = _prove(ready, folder, settings, workers=workers, progress=progress)
        findings = (*plan.findings, *losses, *(item for level in proof for item in level.findings))
        manifest = describe_conversion(
            checkpoint=ready.checkpoint,
            base=ready.base,
            model=ready.model,
            plan=plan,
            options=ready.options,
            digests=digests,
            proof={level.name: {"verdict": level.verdict, "evidence": level.evidence} for level in proof},
            findings=findings,
        )
        (folder / manifest_name(plan.target)).write_bytes(manifest.to_bytes())
    seconds = time.monotonic() - began
    return Conversion(plan.target, manifest, proof, findings, plan.output_bytes, seconds)


def _require_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionError(option, "has a value that means nothing", saw=value, expected=", ".join(choices))


def _is_one_file(target: Path) -> bool:
    return target.suffix in _FILE_ENDINGS


def _require_fitting_name(target: Path, to: Format) -> None:
    if to == "safetensors" and _is_one_file(target):
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
    name = target.name if _is_one_file(target) else _TORCH_FILE
    return (plan_torch_file(tensors, name=name),), ()


def _staged(plan: Plan, settings: Settings) -> AbstractContextManager[Path]:
    """Return the hidden place where the output is made, which commits or vanishes."""
    require_space(plan.target, plan.output_bytes)
    if not _is_one_file(plan.target):
        return new_folder(plan.target, overwrite=settings.overwrite, durable=settings.durable)
    names = (manifest_name(plan.target), plan.target.name)
    parent = plan.target.parent
    return new_files(parent, names, overwrite=settings.overwrite, durable=settings.durable)


def _prove(
    ready: Preparation, folder: Path, settings: Settings, *, workers: int, progress: Progress
) -> tuple[tuple[Level, ...], Mapping[str, str]]:
    """Return the proof of what was written into `folder`, and the digests of its tensors.

    Raises:
        VerificationError: Anything differs.
        DamagedFileError: The source is not what its writer wrote.
    """
    target, levels, digests = ready.plan.target, list[Level](), {}
    if settings.verify or settings.digests:
        found = _prove_bytes(ready, folder, settings, workers=workers, progress=progress)
        levels.append(bytes_level(found))
        digests = dict(found.digests)
    if settings.verify and not _is_one_file(target):
        expected = {name: ExpectedTensor(t.shape, t.dtype) for name, t in ready.model.tensors.items()}
        compared = f"names, shapes and dtypes of {len(expected):,} tensors, and the configuration"
        levels.append(structure_level(compared, verify_structure(folder, expected=expected)))
    if not settings.verify:
        switched_off = finding("U701", subject=target.name, saw="written, and not read back")
        levels[:] = [Level("bytes", "not checked", ("switched off",), (switched_off,))]
    if settings.prove:
        levels.append(forward_level(verify_forward(folder, base=ready.base)))
    _require_sound(target, [item for level in levels for item in level.findings])
    return tuple(levels), digests


def _prove_bytes(
    ready: Preparation, folder: Path, settings: Settings, *, workers: int, progress: Progress
) -> BytesProof:
    """Return what reading the output back shows; through its own headers, as anybody reads it."""
    target = ready.plan.target
    written = open_checkpoint(
        folder / target.name if _is_one_file(target) else folder, step=None, select=None
    )
    expected = ready.model.tensors if settings.verify else {}
    return verify_bytes(
        expected,
        written.tensors,
        checksums=used_checksums(ready.checkpoint.checksums, expected.values()),
        workers=workers,
        digests=settings.digests,
        progress=progress,
    )


def _require_sound(target: Path, findings: list[Finding]) -> None:
    wrong = [f for f in findings if f.severity is Severity.ERROR]
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise VerificationError(
            target,
            f"is not what it should be, so it was not kept: {wrong[0].subject}",
            saw=f"{wrong[0].saw}{more}",
            expected=wrong[0].expected,
            hint=wrong[0].remedy,
        )


def _check_losses(tensors: Mapping[str, Tensor]) -> list[Finding]:
    """Return what casts could not represent, counted while the tensors were written."""
    casts = {name: t for name, t in tensors.items() if isinstance(t, CastTensor)}
    found = []
    for code, what, counts in (
        ("U402", "infinite", {name: t.tally.overflowed for name, t in casts.items()}),
        ("U403", "zero", {name: t.tally.underflowed for name, t in casts.items()}),
    ):
        worst = max(counts, key=lambda name: counts[name], default="")
        if total := sum(counts.values()):
            hit = sum(count > 0 for count in counts.values())
            found.append(
                finding(
                    code,
                    subject=worst,
                    saw=f"{total:,} values in {hit} tensors became {what}, most of them in this one",
                    remedy="Keep more range with --dtype keep or --dtype bfloat16.",
                )
            )
    return found
