"""Carrying a plan out: in the folder itself, or into a new one."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from unshard.base.side_files import outside_links
from unshard.engines.local import run_plan
from unshard.errors import OutputError, OutputPermissionError, VerificationError, listed
from unshard.mending.mend_plan import MendPlan
from unshard.mending.staging import staged_changes
from unshard.mending.weight_plans import PlannedWeights
from unshard.plan import OutputFile, Plan, SideFile
from unshard.progress import Progress, Silence
from unshard.proof.bytes import verify_bytes
from unshard.readers.folders import Tree
from unshard.readers.weights.weight_index import describe_weight_index, require_agreement
from unshard.readers.weights.weights_file import describe_weights_file
from unshard.storage.files import InputFile
from unshard.storage.folders import new_folder, require_outside, require_space

_BUDGET_BYTES = 32 << 20


def require_mendable(plan: MendPlan) -> None:
    """Raise unless the files of a folder that have to change may change where they are.

    Raises:
        OutputError: Files are links, or lie in another folder, too, which would change with this one.
        OutputPermissionError: They, or the folder, may not be written, or belong to somebody else.
        NoSpaceError: There is no room for what is written.
    """
    if not _may_write(plan.path):
        raise OutputPermissionError(plan.path, "may not be changed by this user", hint=_elsewhere(plan))
    for name in _changed_names(plan):
        _require_own(plan, plan.path / name)
    for file in plan.weights:
        if file.fate == "header" and file.source is not None:
            _require_alone(plan, plan.path / file.source)
    require_space(plan.path / "new", plan.written_bytes)


def _changed_names(plan: MendPlan) -> Iterator[str]:
    for file in plan.weights:
        if file.source is not None and file.changes:
            yield file.source
    yield from (text.name for text in plan.texts if os.path.lexists(plan.path / text.name))


def _require_own(plan: MendPlan, path: Path) -> None:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise OutputError(
            path,
            "is a link: what it leads to would change for everybody who uses it",
            saw=os.path.realpath(path),
            hint=_elsewhere(plan),
        )
    is_ours = status.st_uid == os.geteuid() or os.geteuid() == 0
    if not is_ours or not _may_write(path):
        owner = f"mode {stat.filemode(status.st_mode)}, owner {status.st_uid}"
        raise OutputPermissionError(path, "may not be changed by this user", saw=owner, hint=_elsewhere(plan))


def _may_write(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _require_alone(plan: MendPlan, path: Path) -> None:
    links = path.lstat().st_nlink
    if links > 1:
        raise OutputError(
            path,
            "lies in another folder, too, which would change with this one",
            saw=f"{links} hard links",
            expected="1",
            hint=_elsewhere(plan),
        )


def _elsewhere(plan: MendPlan) -> str:
    return f"Mend into a new folder: unshard mend {plan.path} {plan.path}-mended"


def mend_in_place(plan: MendPlan, *, workers: int, progress: Progress) -> None:
    """Change the folder of a plan: all of it, or nothing.

    Raises:
        OutputError: The folder cannot be changed.
        VerificationError: What was made is not what it should be; the folder is as it was.
    """
    require_mendable(plan)
    made = [f for f in plan.weights if f.fate in ("copied", "written")]
    with staged_changes(plan.path, verify=lambda: verify_result(plan, plan.path)) as staging:
        run_plan(
            _as_plan(plan, [_of(file) for file in made], []),
            staging.new,
            workers=workers,
            durable=True,
            progress=progress,
        )
        for file in made:
            _verify_file(plan, staging.new / file.name, _of(file), workers=workers)
        names = {f.source: f.name for f in plan.weights if f.source and f.fate in ("unchanged", "header")}
        for file in plan.weights:
            goes = file.fate == "removed" or (file in made and file.source not in (None, file.name))
            if goes and file.source is not None:
                staging.remove(file.source)
        staging.rename({before: after for before, after in names.items() if before != after})
        for file in made:
            staging.put(staging.new / file.name, file.name)
        for file in plan.weights:
            if file.fate == "header":
                assert file.source is not None
                assert file.header is not None
                staging.patch(file.source, file.name, file.header)
        for text in plan.texts:
            if text.after is None:
                staging.remove(text.name)
            else:
                staging.write(text.name, _content(text.after))


def mend_into(
    plan: MendPlan,
    target: Path,
    names: tuple[str, ...],
    *,
    links: bool,
    overwrite: bool,
    workers: int,
    progress: Progress,
) -> None:
    """Write the mended folder as a new one; it appears whole or not at all.

    Args:
        plan: The plan.
        target: The new folder.
        names: The small files of the folder.
        links: Whether weights that stay as they are may be hard links to those of the folder.
        overwrite: Whether what is at `target` may be replaced.
        workers: Threads.
        progress: Told how far it is.

    Raises:
        OutputError: It cannot be written.
        VerificationError: What was written is not what it should be.
    """
    require_outside(target, [plan.path])
    same = [file for file in plan.weights if file.fate == "unchanged"]
    made = [file for file in plan.weights if file.fate not in ("unchanged", "removed")]
    changed = {text.name for text in plan.texts}
    kept = {name: plan.path / name for name in names if name not in changed}
    outside = outside_links(kept)
    copies = [SideFile(n, None, p, "the folder") for n, p in kept.items() if n not in outside]
    texts = [text.after for text in plan.texts if text.after is not None]
    require_space(target, sum(_of(file).size for file in made))
    with new_folder(target, overwrite=overwrite, durable=True) as folder:
        linked = [
            file for file in same if links and _link(plan.path / (file.source or ""), folder / file.name)
        ]
        side = [
            *copies,
            *texts,
            *(
                SideFile(file.name, None, plan.path / (file.source or ""), "the folder")
                for file in same
                if file not in linked
            ),
        ]
        run_plan(
            _as_plan(plan, [_of(file) for file in made], side),
            folder,
            workers=workers,
            durable=True,
            progress=progress,
        )
        for file in made:
            _verify_file(plan, folder / file.name, _of(file), workers=workers)
        verify_result(plan, folder)


def _link(source: Path, target: Path) -> bool:
    """Return whether `target` could be made a hard link to a file; links to it are followed."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another file system, one without links, or somebody else's file
        return False
    return True


def _of(file: PlannedWeights) -> OutputFile:
    assert file.output is not None
    return file.output


def _as_plan(plan: MendPlan, files: list[OutputFile], side_files: list[SideFile]) -> Plan:
    return Plan(plan.path, tuple(files), tuple(side_files), (), (), _BUDGET_BYTES)


def _content(file: SideFile) -> bytes:
    if file.content is not None:
        return file.content
    assert file.copy_of is not None
    source = InputFile.describe(file.copy_of)
    return source.read(0, source.size)


def _verify_file(plan: MendPlan, path: Path, wanted: OutputFile, *, workers: int) -> None:
    """Raise unless every tensor of a file that was written is bit for bit what it was made of.

    Raises:
        VerificationError: One is not.
    """
    written = describe_weights_file(InputFile.describe(path)).tensors
    expected = {placement.name: placement.tensor for placement in wanted.placements}
    proof = verify_bytes(expected, written, checksums=(), workers=workers, digests=False, progress=Silence())
    if proof.findings:
        first = proof.findings[0]
        raise VerificationError(
            plan.path / wanted.name,
            f"is not what it should be, so nothing was changed: {first.subject}",
            saw=first.saw,
            expected=first.expected,
            hint=first.remedy,
        )


def verify_result(plan: MendPlan, folder: Path) -> None:
    """Raise unless a folder, read anew and strictly, holds the tensors of the plan.

    Raises:
        VerificationError: It does not.
        InputError: It cannot be read.
    """
    stem, ending = ("model", "safetensors") if _is_safetensors(plan) else ("pytorch_model", "bin")
    listing = Tree((folder,)).look_into(folder)
    index = describe_weight_index(listing, stem, ending)
    files = {name: describe_weights_file(InputFile.describe(folder / name)).tensors for name in index.files}
    require_agreement(listing, index, files)
    found = {name: (t.shape, t.dtype) for tensors in files.values() for name, t in tensors.items()}
    wanted = {name: (t.shape, t.dtype) for name, t in (plan.tensors or {}).items()}
    wrong = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    if wrong:
        raise VerificationError(
            plan.path,
            f"would not be what it should be, so nothing was changed: {listed(wrong)}",
            saw=f"{len(found):,} tensors",
            expected=f"{len(wanted):,}",
        )


def _is_safetensors(plan: MendPlan) -> bool:
    return any(file.name.endswith(".safetensors") for file in plan.weights)
