"""Proof of a model, from what lies on disk: bytes, structure, the record of training, and forward passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from unshard.base import Base, ExpectedTensor, find_base
from unshard.base.of_model import base_of_model
from unshard.base.search import CONFIG
from unshard.checkpoint import Checkpoint
from unshard.dtypes import DTYPES
from unshard.engines.workers import default_workers
from unshard.errors import BaseModelError, MatchError, MissingExtraError, OptionError
from unshard.findings import Finding, finding
from unshard.manifest import Manifest, manifest_name, read_manifest
from unshard.match import Choices, answer_questions, match_model, outline_of, questions_for, with_shapes
from unshard.match.adapter_parts import LAYOUT as ADAPTER_LAYOUT
from unshard.match.kept_adapter import keep_adapter
from unshard.progress import Progress, Silence
from unshard.proof.bytes import verify_bytes
from unshard.proof.coverage import used_checksums
from unshard.proof.fingerprint import verify_fingerprint
from unshard.proof.forward import verify_forward
from unshard.proof.levels import Level, bytes_level, forward_level, structure_level
from unshard.proof.merges import verify_merges
from unshard.proof.record import verify_record
from unshard.proof.structure import verify_structure
from unshard.readers import Places, as_paths, open_checkpoint
from unshard.readers.record_files import own_record
from unshard.record.comparing import find_disagreement
from unshard.record.description import Record
from unshard.storage.checksums import Checksum
from unshard.tensors import Tensor
from unshard.writers.adapter_folder import INSIDE


@dataclass(frozen=True, slots=True)
class Verification:
    """What verification found.

    Attributes:
        path: The model that was verified.
        sound: Whether something was compared, and nothing differs.
        levels: Bytes, structure, the record where there is one, forward, and where the record has one the
            fingerprint, in this order.
    """

    path: Path
    sound: bool
    levels: tuple[Level, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What differs, and what a person should know."""
        return tuple(item for level in self.levels for item in level.findings)


def verify(
    path: str | Path,
    *,
    against: Places | None = None,
    base: str | Path | None = None,
    forward: bool | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Return what the model at `path` is worth, by what lies on disk.

    Args:
        path: A model folder, ours or anybody's, or a file with a state dict.
        against: The training checkpoint, in one place or in several. It is matched to the model's own
            names, shapes and dtypes, and every bit is compared, after the declared cast where the
            dtypes differ.
        base: The model training started from, for the names and shapes a complete model has.
        forward: Whether to load it in transformers and run it, on the sequences of a recorded fingerprint,
            too; None does so where that is installed.
        workers: Threads; by default one per core, at most four.
        progress: Told how far it is.

    Memory:
        For bytes and structure, as `convert`. For the forward pass, one copy of the model.

    Raises:
        InputError: `path` or `against` cannot be read at all.
        BaseModelError: The base cannot be read.
        OptionError: There is nothing to compare it with.
    """
    target, progress = Path(path), progress or Silence()
    crew = workers or default_workers()
    written = open_checkpoint(target, step=None, select=None)
    manifest = read_manifest(_manifest_path(written))
    reference = None if base is None else str(base)
    named = None if reference is None else find_base(written, reference=reference, download=False)[0]
    written = with_shapes(written, named, accept_inferred=False)
    levels = (
        _verify_bytes(written, manifest, against, reference, workers=crew, progress=progress),
        _verify_structure(written, manifest, named),
        *_verify_record(written, workers=crew, progress=progress),
        _verify_forward(written, named, wanted=forward),
        *_verify_fingerprint(written, wanted=forward),
    )
    if all(level.verdict == "not checked" for level in levels):
        raise OptionError(
            target,
            "cannot be verified by itself",
            saw="; ".join(f"{level.name}: {level.evidence[0]}" for level in levels),
            hint="Name the checkpoint it was made from with --against."
            if written.layout.is_model_folder or not written.path.is_dir()
            else "Convert it first: unshard convert. To see whether all of it is there: unshard check.",
        )
    return Verification(target, all(level.verdict != "differs" for level in levels), levels)


def _manifest_path(written: Checkpoint) -> Path:
    folder = written.path if written.path.is_dir() else written.path.parent
    return folder / manifest_name(written.path)


def _verify_bytes(
    written: Checkpoint,
    manifest: Manifest | None,
    against: Places | None,
    reference: str | None,
    *,
    workers: int,
    progress: Progress,
) -> Level:
    """Compare every byte with the source's, and with the digests of the manifest."""
    expected: Mapping[str, Tensor] = {}
    checksums: tuple[Checksum, ...] = ()
    if against is not None:
        try:
            source, expected = _source_tensors(written, manifest, as_paths(against), reference)
        except (MatchError, BaseModelError) as error:
            found = finding("U703", subject=str(against), saw=error.message, remedy=error.hint)
            return Level("bytes", "differs", (error.message,), (found,))
        checksums = used_checksums(source.checksums, expected.values())
    told = {name: t.sha256 for name, t in manifest.tensors.items() if t.sha256} if manifest else {}
    if not expected and not told:
        reason = "nothing to compare with: no manifest with digests; name the checkpoint with --against"
        return Level("bytes", "not checked", (reason,))
    proof = verify_bytes(
        expected,
        {**written.tensors, **_beside(written, manifest)},
        checksums=checksums,
        workers=workers,
        digests=bool(told),
        progress=progress,
    )
    merges = verify_merges(expected, written.tensors, workers=workers, progress=progress)
    if not told:
        return bytes_level(proof, *merges.evidence, findings=merges.findings)
    wrong = tuple(_check_digests(proof.digests, told))
    compared = f"{len(told) - len(wrong):,} of {len(told):,} tensors have the SHA-256 of the manifest"
    return bytes_level(proof, compared, *merges.evidence, findings=(*wrong, *merges.findings))


def _source_tensors(
    written: Checkpoint, manifest: Manifest | None, against: list[Path], reference: str | None
) -> tuple[Checkpoint, Mapping[str, Tensor]]:
    """Return the checkpoint, and its tensors as the written model should hold them.

    The model's own names, shapes and dtypes say what is expected, so this works for any model folder,
    whoever wrote it. An adapter alone is merged into the base's weights again.

    Raises:
        BaseModelError: That takes a base with weights, and there is none.
    """
    options = manifest.options if manifest else {}
    step = options.get("step") if against[0].is_dir() else None  # a file is one step
    source = open_checkpoint(against, step=step, select=options.get("select"))
    choices = Choices(dtype=options.get("dtype", "base"), lora_alpha=options.get("lora_alpha"))
    if written.layout.name == ADAPTER_LAYOUT:
        return source, keep_adapter(source, None, choices).model.tensors
    model = base_of_model(written, "the model that is verified")
    source = with_shapes(source, model, accept_inferred=False)
    if source.layout.name == ADAPTER_LAYOUT:
        found, _ = find_base(source, reference=reference, download=False, model_class=False)
        if found is None:
            hint = "Name the model that the adapter was trained on with --base."
            raise BaseModelError(source.path, "is an adapter, and its base was not found", hint=hint)
        model = replace(model, path=found.path, reference=found.reference, config=found.config)
    outline = outline_of(source, model, replace(choices, dtype="base"))
    answers = answer_questions(questions_for(outline))
    return source, match_model(outline, dtype="base", answers=answers).tensors


def _beside(written: Checkpoint, manifest: Manifest | None) -> Mapping[str, Tensor]:
    """Return the tensors of an adapter that lies in a folder of its own in the model's, by the manifest."""
    is_there = manifest and any(tensor.file.startswith(INSIDE) for tensor in manifest.tensors.values())
    return open_checkpoint(written.path / INSIDE).tensors if is_there else {}


def _check_digests(found: Mapping[str, str], told: Mapping[str, str]) -> list[Finding]:
    wrong = [name for name, digest in told.items() if found.get(name) != digest]
    more = sorted(found.keys() - told.keys())
    return [
        finding(
            "U703",
            subject=name,
            saw=f"SHA-256 {found[name]}" if name in found else "no such tensor",
            expected=f"{told[name]}, as the manifest says"
            if name in told
            else "no such tensor, by the manifest",
            remedy="Convert the checkpoint again, or fetch the folder again from where it came.",
        )
        for name in (*wrong, *more)
    ]


def _verify_structure(written: Checkpoint, manifest: Manifest | None, base: Base | None) -> Level:
    """Compare names, shapes and dtypes with the base's or the manifest's, and the folder with itself."""
    if not written.path.is_dir():
        return Level("structure", "not checked", ("one file, with no configuration beside it",))
    if not written.layout.is_model_folder:
        return Level("structure", "not checked", (f"no model folder, but {written.layout.title}",))
    expected, said_by = _expectation(manifest, base)
    findings = verify_structure(written.path, expected=expected)
    compared = f"names, shapes and dtypes of {len(written.tensors):,} tensors compared with {said_by}"
    return structure_level(compared if expected else "the folder compared with itself", findings)


def _verify_record(written: Checkpoint, *, workers: int, progress: Progress) -> tuple[Level, ...]:
    """Compare a model with the record in its folder, if there is one."""
    unread = tuple(found for found in written.findings if found.code == "U724")
    if unread:
        return (Level("record", "not checked", (unread[0].saw,), unread),)
    if written.record is None or not _is_recorded(written, written.record):
        return ()
    return (verify_record(written.record, written.tensors, workers=workers, progress=progress),)


def _is_recorded(written: Checkpoint, record: Record) -> bool:
    """Return whether a record is meant for these tensors: what else lies in a folder has other names."""
    if written.layout.is_model_folder or written.record_path == own_record(written.path):
        return True
    shapes = {name: tensor.shape for name, tensor in written.tensors.items()}
    is_result = not written.path.is_dir() or written.layout.name == ADAPTER_LAYOUT
    return is_result and find_disagreement(record, shapes) is None


def _expectation(
    manifest: Manifest | None, base: Base | None
) -> tuple[Mapping[str, ExpectedTensor] | None, str]:
    """Return what the model needs, and who says so."""
    if base is not None and base.expected is not None:
        # A resized vocabulary or a declared cast is no damage: the manifest knows of them.
        known = manifest.tensors if manifest else {}
        return {
            name: ExpectedTensor(known[name].shape, DTYPES[known[name].dtype]) if name in known else wanted
            for name, wanted in base.expected.items()
        }, f"{base.reference}'s {base.expected_from}"
    if manifest is not None:
        return {
            name: ExpectedTensor(t.shape, DTYPES[t.dtype])
            for name, t in manifest.tensors.items()
            if not t.file.startswith(INSIDE)
        }, "the manifest"
    return None, ""


def _verify_forward(written: Checkpoint, base: Base | None, *, wanted: bool | None) -> Level:
    """Load the folder in transformers and run it."""
    if wanted is False:
        return Level("forward", "not checked", ("switched off",))
    if not written.path.is_dir() or not written.layout.is_model_folder:
        return Level("forward", "not checked", ("a forward pass needs a model folder",))
    if not (written.path / CONFIG).is_file():
        return Level("forward", "not checked", ("there is no config.json, so no class to load it as",))
    try:
        return forward_level(verify_forward(written.path, base=base))
    except MissingExtraError as error:
        if wanted:
            raise
        note = finding("U702", subject="forward pass", saw=error.problem, remedy=error.hint)
        return Level("forward", "not checked", (error.problem,), (note,))


def _verify_fingerprint(written: Checkpoint, *, wanted: bool | None) -> tuple[Level, ...]:
    """Run the folder on the sequences of its record's fingerprint, if there is one."""
    record = written.record
    if wanted is False or record is None or record.fingerprint is None or not written.path.is_dir():
        return ()
    if not written.layout.is_model_folder:
        return ()
    try:
        return (verify_fingerprint(written.path, record),)
    except MissingExtraError as error:
        note = finding("U714", subject="fingerprint", saw=error.problem, remedy=error.hint)
        return (Level("fingerprint", "not checked", (error.problem,), (note,)),)
