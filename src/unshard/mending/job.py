"""The whole job: look at a folder, plan, carry the plan out, tell what was done."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from unshard.engines.workers import default_workers
from unshard.errors import InputError, OptionError
from unshard.findings import Finding
from unshard.mending.applying import mend_in_place, mend_into
from unshard.mending.journal import is_being_mended
from unshard.mending.mend_plan import MendPlan
from unshard.mending.planning import EVERY_REPAIR, Layout, plan_mending
from unshard.mending.scene import Scene, describe_scene
from unshard.mending.staging import recover_folder
from unshard.model_folder import read_model_folder
from unshard.progress import Progress, Silence
from unshard.sizes import parse_size


@dataclass(frozen=True, slots=True)
class Mending:
    """What became of a folder.

    Attributes:
        plan: What was to be done, and why.
        target: The folder that is mended now: itself or a new one; None where nothing was written.
        recovered: Whether changes that a process had begun, and died over, were completed first.
        written_bytes: Bytes that were written.
        seconds: How long it took.
    """

    plan: MendPlan
    target: Path | None
    recovered: bool
    written_bytes: int
    seconds: float

    @property
    def remains(self) -> tuple[Finding, ...]:
        """What cannot be mended."""
        return self.plan.refusals

    def to_json(self) -> dict[str, object]:
        """Return the result as plain values."""
        return {
            **self.plan.to_json(),
            "target": None if self.target is None else str(self.target),
            "recovered": self.recovered,
            "written": self.written_bytes if self.target else 0,
            "seconds": self.seconds,
        }


def mend(
    path: str | Path,
    out: str | Path | None = None,
    *,
    base: str | Path | None = None,
    in_place: bool = False,
    layout: Layout | None = None,
    max_shard_size: str | None = None,
    only: Collection[str] = (),
    skip: Collection[str] = (),
    dry_run: bool = False,
    links: bool = True,
    overwrite: bool = False,
    download: bool = True,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Mending:
    """Repair a broken model folder without the run that it came from.

    Without `out` and without `in_place` nothing is written; the result holds the plan.

    Args:
        path: The folder.
        out: A new folder, which appears whole or not at all; `path` is not touched.
        base: The model training started from: a folder or a name on the hub. It tells names and shapes, and
            gives files that the folder lacks.
        in_place: Whether the folder itself is changed: all of it or nothing, whenever the process dies.
        layout: How experts lie: `hub`, one by one as published; `v5`, together, as transformers 5 has them in
            memory. None is as the base has them, else as published.
        max_shard_size: The largest file of tensors, as `5GB`; None leaves files as large as they are.
        only: The repairs to make; all of them where it is empty.
        skip: Repairs not to make.
        dry_run: Write nothing, whatever else is said.
        links: Whether weights that stay as they are may be hard links in `out`. Whoever then writes into such
            a file changes both folders; replacing it does not.
        overwrite: Replace `out` if it exists.
        download: Whether a base that is not on this machine may be fetched from the hub.
        workers: Threads; by default one per core, at most four.
        progress: Told how far it is.

    Memory:
        Headers and small files; 32 MiB for tensor data where files are written anew.

    Raises:
        InputError: `path` is no folder, or something is still writing it.
        BaseModelError: The base that was named is missing or unreadable.
        OutputError: The result cannot be written where it was asked for.
        VerificationError: What was written is not what it should be; nothing is changed then.
        OptionError: An option means nothing.
    """
    began = time.monotonic()
    folder = Path(path)
    _require_sense(out, in_place=in_place)
    chosen = _chosen(only, skip)
    writes = not dry_run and (out is not None or in_place)
    recovered = _recovered(folder, may_write=in_place and not dry_run)
    reference = None if base is None else str(base)
    scene = _scene(folder, reference, download=download)
    limit = None if max_shard_size is None else parse_size(max_shard_size)
    plan = plan_mending(scene, layout=layout, max_file_bytes=limit, chosen=chosen)
    crew, progress = workers or default_workers(), progress or Silence()
    target: Path | None = None
    if writes and not plan.is_refused:
        target = folder if out is None else Path(out)
        if out is not None:
            names = _carried(scene, plan)
            mend_into(plan, target, names, links=links, overwrite=overwrite, workers=crew, progress=progress)
        elif plan.changes:
            mend_in_place(plan, workers=crew, progress=progress)
    written = plan.written_bytes if target is not None else 0
    return Mending(plan, target, recovered, written, time.monotonic() - began)


def _require_sense(out: str | Path | None, *, in_place: bool) -> None:
    if out is not None and in_place:
        raise OptionError("--in-place", "and an output exclude each other", hint="Leave one of them out.")


def _chosen(only: Collection[str], skip: Collection[str]) -> frozenset[str]:
    """Return the repairs that may be made.

    Raises:
        OptionError: A name is not that of a repair.
    """
    unknown = sorted({*only, *skip} - set(EVERY_REPAIR))
    if unknown:
        expected = ", ".join(EVERY_REPAIR)
        raise OptionError("--only/--skip", "names no repair", saw=", ".join(unknown), expected=expected)
    return frozenset(only or EVERY_REPAIR) - frozenset(skip)


def _recovered(folder: Path, *, may_write: bool) -> bool:
    """Complete what a process had begun that died, if the folder may be changed; return whether it had.

    Raises:
        InputError: It had, and the folder may not be changed now.
    """
    if may_write:
        return recover_folder(folder) if folder.is_dir() else False
    if is_being_mended(folder):
        raise InputError(
            folder,
            "is being mended, or was when the process died",
            hint=f"If that process is dead, complete its work first: unshard mend {folder} --in-place",
        )
    return False


def _scene(folder: Path, reference: str | None, *, download: bool) -> Scene:
    """Return what there is to mend.

    Raises:
        InputError: Something is still writing the folder.
    """
    found = read_model_folder(folder)
    if found.is_growing:
        raise InputError(
            folder,
            "is still being written",
            saw="unfinished files in it",
            hint="Wait until the download or the save has ended; remove what a dead one left.",
        )
    return describe_scene(found, reference=reference, download=download)


def _carried(scene: Scene, plan: MendPlan) -> tuple[str, ...]:
    """Return the small files that a new folder gets as they are."""
    gone = {file.name for file in scene.weights.files} | set(plan.leftovers)
    if not any(file.name.endswith(".bin") for file in plan.weights):
        gone |= {name for name in scene.folder.names if name.endswith(".bin.index.json")}
    unreadable = {file.name for file in scene.folder.unreadable}
    return tuple(name for name in scene.folder.names if name not in gone and name not in unreadable)
