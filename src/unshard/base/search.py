"""Finding the base: named by the user, or in and beside the checkpoint.

In this order: what the user named (`--base`), which always wins; the checkpoint's own folder and those
above it, up to the run; the hints its reader found, such as `model_name` in train_params.yaml. A hint
that leads nowhere is told, and is an error only where the user gave it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from unshard.base.configuration import all_levels, parse_config, read_config, text_levels
from unshard.base.description import Base
from unshard.base.expectation import Expectation, expected_from_weights
from unshard.base.locating import folder_named, locate_base, locate_tokenizer, shortened
from unshard.base.side_files import (
    code_files_of,
    makes_tokenizer,
    outside_links,
    side_files_of,
    with_own_tokenizer,
)
from unshard.checkpoint import BaseHint, Checkpoint
from unshard.errors import BaseModelError
from unshard.findings import Finding, finding

CONFIG = "config.json"
_CODE_KEYS = ("auto_map", "trust_remote_code", "_attn_implementation_internal")


def find_base(
    checkpoint: Checkpoint, *, reference: str | None, download: bool, model_class: bool = True
) -> tuple[Base | None, tuple[Finding, ...]]:
    """Return the base of a checkpoint, or None where there is none, and what a person should know.

    Args:
        checkpoint: What training left.
        reference: What the user named: a folder, or a model on the hub; None to look for it.
        download: Whether files of a model on the hub may be fetched.
        model_class: Whether transformers may be asked what the model needs, where the base's own
            weights do not tell; importing it takes seconds.

    Raises:
        BaseModelError: The base that the user named is missing or unreadable, or the one that was
            found is damaged.
    """
    findings: list[Finding] = []
    if reference is not None:
        folder = locate_base(reference, download=download)
        named = _read_base(folder, reference, "--base")
        findings += _unused_hints(checkpoint, folder, reference, named.config)
        base: Base | None = named
    else:
        base, findings = _look_around(checkpoint, download=download)
    if base is None:
        return None, tuple(findings)
    base, more = _with_side_files(base, checkpoint, download=download)
    return _with_expectation(base, checkpoint, model_class=model_class), (*findings, *more)


def _read_base(folder: Path, reference: str, origin: str, *, implicit: bool = False) -> Base:
    content, config = read_config(folder / CONFIG)
    return Base(folder, reference, origin, content, config, None, None, found_implicitly=implicit)


def _look_around(checkpoint: Checkpoint, *, download: bool) -> tuple[Base | None, list[Finding]]:
    """Return the first base that lies in or beside the checkpoint, or that a hint leads to."""
    findings: list[Finding] = []
    for folder in _folders_above(checkpoint):
        if (folder / CONFIG).is_file():
            where = "beside the tensors" if folder == _folder_of(checkpoint) else "above the checkpoint"
            base = _read_base(folder, str(folder), f"{CONFIG} {where}", implicit=True)
            if _is_of_a_model(base):
                return base, [*findings, _told(base)]
            findings.append(_of_no_model(folder))
    if CONFIG in checkpoint.embedded:
        base = _embedded(checkpoint)
        return base, [*findings, _told(base)]
    for hint in checkpoint.base_hints:
        try:
            folder = locate_base(hint.reference, download=download, revision=hint.revision)
            base = _read_base(folder, hint.reference, hint.origin, implicit=True)
        except BaseModelError as error:
            findings.append(_leads_nowhere(hint, error))
            continue
        return base, [*findings, _told(base)]
    return None, findings


def _embedded(checkpoint: Checkpoint) -> Base:
    """Return the base whose configuration lies inside the checkpoint."""
    content = checkpoint.embedded[CONFIG]
    folder = _folder_of(checkpoint)
    return Base(
        path=folder,
        reference=str(checkpoint.path),
        origin="config.json inside the checkpoint",
        config_bytes=content,
        config=parse_config(content, folder / CONFIG),
        expected=None,
        expected_from=None,
        embedded={name: text for name, text in checkpoint.embedded.items() if name != CONFIG},
        found_implicitly=True,
    )


def _is_of_a_model(base: Base) -> bool:
    """Return whether a configuration is a model's: training scripts have files of that name, too."""
    return bool({"model_type", "architectures"} & base.config.keys())


def _of_no_model(folder: Path) -> Finding:
    return finding(
        "U606",
        subject=folder / CONFIG,
        saw="it names neither `model_type` nor `architectures`, so it is of the training, not of a model",
        remedy="Name the base with --base.",
    )


def _folder_of(checkpoint: Checkpoint) -> Path:
    return checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent


def _folders_above(checkpoint: Checkpoint) -> Iterator[Path]:
    """Yield the folder of the tensors, then those above it up to the run's."""
    folder = _folder_of(checkpoint)
    yield folder
    if checkpoint.root in folder.parents:
        yield from folder.parents[: folder.parents.index(checkpoint.root) + 1]


def _told(base: Base) -> Finding:
    return finding(
        "U603",
        subject=base.reference,
        saw=f"found by {base.origin}",
        remedy="Name another one with --base if this is not the model that training started from.",
    )


def _leads_nowhere(hint: BaseHint, error: BaseModelError) -> Finding:
    return finding(
        "U606",
        subject=shortened(hint.reference),
        saw=f"named by {hint.origin}: {error.message}",
        remedy=error.hint or "Name the base with --base.",
    )


def _unused_hints(
    checkpoint: Checkpoint, folder: Path, reference: str, config: Mapping[str, object]
) -> list[Finding]:
    """Tell of every model the checkpoint names that is not the one the user named."""
    unused = [
        hint
        for hint in checkpoint.base_hints
        if hint.reference != reference and not _is_folder(hint.reference, folder)
    ]
    types = _model_types(config) if unused else set()
    return [_unused(hint, reference, types) for hint in unused]


def _unused(hint: BaseHint, reference: str, types: set[str]) -> Finding:
    """Return that a model was not used; a warning where it can be looked at and is of another family."""
    try:
        other = _model_types(read_config(locate_base(hint.reference, download=False) / CONFIG)[1])
    except (BaseModelError, ValueError):  # a name with a null byte is no path at all
        other = set()
    subject, named = shortened(hint.reference), f"named by {hint.origin}"
    if not types or not other or types & other:
        return finding("U604", subject=subject, saw=named, expected=f"{reference}, which --base names")
    return finding(
        "U629",
        subject=subject,
        saw=f"{named}, model_type {_in_words(other)}",
        expected=f"model_type {_in_words(types)}, that of {reference}, which --base names",
        remedy=f"Name the model that training started from: --base {shlex.quote(subject)}",
    )


def _model_types(config: Mapping[str, object]) -> set[str]:
    """Return the types of a model and of the language model in it."""
    types = (level.get("model_type") for _, level in text_levels(config))
    return {each for each in types if isinstance(each, str)}


def _in_words(types: set[str]) -> str:
    return " or ".join(shortened(each) for each in sorted(types))


def _is_folder(reference: str, folder: Path) -> bool:
    """Return whether a reference is that very folder."""
    try:
        return folder_named(reference).samefile(folder)
    except (OSError, ValueError):  # a name with a null byte is no path at all
        return False


def _with_side_files(base: Base, checkpoint: Checkpoint, *, download: bool) -> tuple[Base, list[Finding]]:
    """Return the base with every small file of the result, and what is told about them."""
    files, findings = side_files_of(base.path), list[Finding]()
    if base.found_implicitly:
        files = _without_links(files, findings)
    own = _own_tokenizer(base, checkpoint, findings)
    if not own and (base.found_implicitly or not makes_tokenizer({*files, *base.embedded})):
        # Training takes the tokenizer that `tokenizer_name` names, whatever lies beside the model.
        own = _other_tokenizer(base, checkpoint, findings, download=download)
    files = with_own_tokenizer(files, own)
    code = code_files_of(base.path)
    if any(key in level for _, level in all_levels(base.config) for key in _CODE_KEYS):
        findings.append(_code_told(base, code))
        files |= {} if base.found_implicitly else code
    return replace(base, side_files=dict(sorted(files.items()))), findings


def _other_tokenizer(
    base: Base, checkpoint: Checkpoint, findings: list[Finding], *, download: bool
) -> dict[str, Path]:
    """Return the files of the tokenizer that the training parameters name, if they name another."""
    name = checkpoint.training.get("tokenizer_name") if checkpoint.training else None
    if name is None or name == base.reference:
        return {}
    hint = BaseHint(name, "tokenizer_name in the training parameters")
    try:
        files = side_files_of(locate_tokenizer(name, download=download))
        if not makes_tokenizer(files):
            raise BaseModelError(name, "holds no tokenizer")
    except BaseModelError as error:
        findings.append(_leads_nowhere(hint, error))
        return {}
    findings.append(finding("U603", subject=name, saw=f"found by {hint.origin}; only its tokenizer is used"))
    return _without_links(files, findings)


def _own_tokenizer(base: Base, checkpoint: Checkpoint, findings: list[Finding]) -> dict[str, Path]:
    """Return the small files beside the tensors if there is a tokenizer, which goes before all others."""
    own = _without_links(checkpoint.side_files, findings)
    if not makes_tokenizer(own):
        return {}
    if base.path.resolve() != _folder_of(checkpoint).resolve():
        findings.append(finding("U609", subject=base.reference, saw="training saved one beside the tensors"))
    return own


def _without_links(files: Mapping[str, Path], findings: list[Finding]) -> dict[str, Path]:
    """Return the files of a folder that nobody named, without links out of it; tell of those."""
    outside = outside_links(files)
    if outside:
        told = finding(
            "U608",
            subject=", ".join(sorted(outside)),
            saw=f"links out of {files[outside[0]].parent.name}",
            expected="files of the folder itself, or links into the blobs of a hub cache",
            remedy="Replace the links by the files if they are meant to be in the result.",
        )
        if told not in findings:
            findings.append(told)
    return {name: path for name, path in files.items() if name not in outside}


def _code_told(base: Base, code: dict[str, Path]) -> Finding:
    names = ", ".join(code) or "code that is not in the folder"
    if base.found_implicitly:
        return finding(
            "U607",
            subject="config.json",
            saw=f"needs {names}, found in a folder that was not named by you",
            remedy="Read the code; then name the folder with --base to have it copied.",
        )
    return finding("U605", subject="config.json", saw=f"needs {names}", remedy="Read it before you run it.")


def _with_expectation(base: Base, checkpoint: Checkpoint, *, model_class: bool) -> Base:
    """Return the base with what its weights or its class tell of the result."""
    own = {file.path.resolve() for file in checkpoint.files}
    from_weights = expected_from_weights(base.path, apart_from=own)
    chosen: Expectation | None = from_weights
    if model_class and (from_weights is None or not from_weights.is_complete):
        from unshard.base.model_class import expected_from_class

        chosen = expected_from_class(base.config) or from_weights
    if chosen is None:
        return base
    return replace(
        base,
        expected=chosen.tensors,
        expected_from=chosen.origin,
        expected_in_order=chosen.in_order,
        ties=chosen.ties,
    )
