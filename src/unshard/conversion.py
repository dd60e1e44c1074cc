"""The main job: a training checkpoint in, a verified model out.

    plan ──▶ run ──▶ prove ──▶ manifest ──▶ one rename

Everything is written and proven in a hidden folder beside the target, which appears whole or not at
all. `preparation` decides the plan.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from unshard.base import ExpectedTensor
from unshard.base.search import CONFIG
from unshard.engines.local import run_plan
from unshard.engines.workers import default_workers
from unshard.errors import OptionError, VerificationError
from unshard.findings import Finding, Severity, finding
from unshard.manifest import Manifest, describe_conversion, manifest_name
from unshard.match.model import Model
from unshard.match.restored import AdapterChoice
from unshard.plan import Plan
from unshard.preparation import DTypePolicy, Format, Preparation, plan_conversion
from unshard.progress import Progress, Silence
from unshard.proof.bytes import BytesProof, verify_bytes
from unshard.proof.coverage import used_checksums
from unshard.proof.forward import verify_forward
from unshard.proof.levels import Level, bytes_level, forward_level, structure_level
from unshard.proof.merges import verify_merges
from unshard.proof.record import verify_record
from unshard.proof.replicas import verify_replicas
from unshard.proof.structure import verify_structure
from unshard.readers import Places, open_checkpoint
from unshard.storage.folders import new_files, new_folder, require_space
from unshard.tensors import CastTensor, DescribedTensor, Tensor
from unshard.writers.adapter_folder import INSIDE
from unshard.writers.torch_file import is_torch_file_name

# These layouts hold every part once. Where one is there again, its files may be of two saves.
_WRITTEN_ONCE = frozenset(("sharded-safetensors", "dcp"))


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
    compare_replicas: bool
    workers: int | None


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
    adapter: AdapterChoice = "merge",
    lora_alpha: float | None = None,
    accept_inferred_shapes: bool = False,
    overwrite: bool = False,
    verify: bool = True,
    digests: bool = True,
    prove: bool = False,
    durable: bool = True,
    compare_replicas: bool = False,
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
        adapter: What becomes of an adapter: `merge` puts it into the weights, `keep` writes it by itself, as
            PEFT does, `both` writes the merged model and the adapter in the folder `adapter/` inside it.
        lora_alpha: The numerator of the adapter's scale, where no file tells it.
        accept_inferred_shapes: Whether tensors may be as large as the parts of them that are there, where
            neither a file nor the base tells how large they are; nothing then proves that no part is missing.
        overwrite: Replace `out` if it exists; the old one is deleted after the new one is whole.
        verify: Read everything back from disk and compare it with the source bit for bit, and the
            source with the checksums its writer left.
        digests: Put the SHA-256 of every tensor into the manifest.
        prove: Also load the result in transformers and run a forward pass (extra `hf`).
        durable: Wait until the disk has it all before the result appears.
        compare_replicas: Read parts of tensors that lie in several places from all of them, and compare
            them bit for bit; otherwise one place is read.
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
        adapter=adapter,
        lora_alpha=lora_alpha,
        accept_inferred_shapes=accept_inferred_shapes,
        download=download,
    )
    settings = Settings(overwrite, verify, digests, prove, durable, compare_replicas, workers)
    return carry_out(ready, settings, progress=progress or Silence())


def carry_out(ready: Preparation, settings: Settings, *, progress: Progress) -> Conversion:
    """Write, prove and commit what `plan_conversion` decided; `convert` says what can go wrong."""
    began = time.monotonic()
    plan, workers = ready.plan, settings.workers or default_workers()
    if settings.prove and is_torch_file_name(plan.target):
        raise OptionError("--prove", "needs a model folder to load", saw=plan.target.name)
    if settings.prove and ready.options["adapter"] == "keep":
        hint = "Merge it with --adapter merge, or both."
        raise OptionError("--prove", "needs a model to load, and an adapter is none", hint=hint)
    compared = _compare_replicas(ready, settings, workers=workers, progress=progress)
    with _staged(plan, settings) as folder:
        run_plan(plan, folder, workers=workers, durable=settings.durable, progress=progress)
        losses = _check_losses(ready.model.tensors)
        proof, digests = _prove(ready, folder, settings, workers=workers, progress=progress)
        proof = (*compared, *proof)
        told = (f for f in plan.findings if not (compared and f.code == "U116"))
        findings = (*told, *losses, *(item for level in proof for item in level.findings))
        manifest = describe_conversion(
            checkpoint=ready.checkpoint,
            base=ready.base,
            model=_everything(ready),
            plan=plan,
            options=ready.options,
            digests=digests,
            proof={level.name: {"verdict": level.verdict, "evidence": level.evidence} for level in proof},
            findings=findings,
        )
        (folder / manifest_name(plan.target)).write_bytes(manifest.to_bytes())
    seconds = time.monotonic() - began
    return Conversion(plan.target, manifest, proof, findings, plan.output_bytes, seconds)


def _staged(plan: Plan, settings: Settings) -> AbstractContextManager[Path]:
    """Return the hidden place where the output is made, which commits or vanishes."""
    require_space(plan.target, plan.output_bytes)
    if not is_torch_file_name(plan.target):
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
        written = _written(ready, folder)
        found = _prove_bytes(ready, written, settings, workers=workers, progress=progress)
        wanted = ready.model.tensors if settings.verify else {}
        merges = verify_merges(wanted, written, workers=workers, progress=progress)
        levels.append(bytes_level(found, *merges.evidence, findings=merges.findings))
        digests = dict(found.digests)
    is_model = not is_torch_file_name(target) and ready.options["adapter"] != "keep"
    if settings.verify and is_model:
        expected = {name: ExpectedTensor(t.shape, t.dtype) for name, t in ready.model.tensors.items()}
        has_config = any(file.name == CONFIG for file in ready.plan.side_files)
        beside = ", and the configuration" if has_config else "; there is no configuration"
        compared = f"names, shapes and dtypes of {len(expected):,} tensors{beside}"
        levels.append(structure_level(compared, verify_structure(folder, expected=expected)))
    if settings.verify and ready.checkpoint.record is not None:
        own = {name: written[name] for name in ready.model.tensors}
        levels.append(verify_record(ready.checkpoint.record, own, workers=workers, progress=progress))
    if not settings.verify:
        switched_off = finding("U701", subject=target.name, saw="written, and not read back")
        levels[:] = [Level("bytes", "not checked", ("switched off",), (switched_off,))]
    if settings.prove:
        levels.append(forward_level(verify_forward(folder, base=ready.base)))
    _require_sound(target, [item for level in levels for item in level.findings])
    return tuple(levels), digests


def _everything(ready: Preparation) -> Model:
    """Return the tensors of the model, and those of an adapter that lies beside it."""
    model, adapter = ready.model, ready.adapter
    if adapter is None:
        return model
    tensors, sources = {**model.tensors, **adapter.tensors}, {**model.sources, **adapter.sources}
    return replace(model, tensors=tensors, sources=sources)


def _written(ready: Preparation, folder: Path) -> Mapping[str, DescribedTensor]:
    """Return the tensors of the output, through its own headers, as anybody reads it."""
    target = ready.plan.target
    place = folder / target.name if is_torch_file_name(target) else folder
    written = open_checkpoint(place, step=None, select=None).tensors
    return written if ready.adapter is None else {**written, **open_checkpoint(folder / INSIDE).tensors}


def _prove_bytes(
    ready: Preparation,
    written: Mapping[str, DescribedTensor],
    settings: Settings,
    *,
    workers: int,
    progress: Progress,
) -> BytesProof:
    """Return what reading the output back shows."""
    expected = _everything(ready).tensors if settings.verify else {}
    return verify_bytes(
        expected,
        written,
        checksums=used_checksums(ready.checkpoint.checksums, expected.values()),
        workers=workers,
        digests=settings.digests,
        progress=progress,
    )


def _compare_replicas(
    ready: Preparation, settings: Settings, *, workers: int, progress: Progress
) -> tuple[Level, ...]:
    """Return what comparing replicas shows, where it is wanted, before anything is written.

    Raises:
        VerificationError: Some of them differ.
    """
    layout = ready.checkpoint.layout.name
    if not settings.compare_replicas and (layout not in _WRITTEN_ONCE or not ready.checkpoint.replicas):
        return ()
    level = verify_replicas(ready.checkpoint, workers=workers, progress=progress)
    if level.findings:
        first, *more = level.findings
        raise VerificationError(
            ready.checkpoint.path,
            f"holds copies of `{first.subject}` that differ, so nothing was written",
            saw=first.saw + (f"; {len(more)} more parts differ" if more else ""),
            expected=first.expected,
            hint=first.remedy,
        )
    return (level,)


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
