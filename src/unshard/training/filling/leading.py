"""A checkpoint led to the names of a model in training: every name gets its tensor, or nothing is read.

Matching decides names, experts, ties and casts as it does for a published base. What a published model
may be and a module cannot (a resized vocabulary, a tied pair that has diverged) is refused here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from unshard.base import Base
from unshard.checkpoint import Checkpoint
from unshard.errors import BaseModelError, MatchError, Mismatch
from unshard.findings import Finding, finding
from unshard.match import (
    Answers,
    Choices,
    Model,
    Outline,
    Question,
    match_model,
    outline_of,
    questions_for,
    with_shapes,
)
from unshard.recipes.recomputable import recomputable_kind
from unshard.recipes.ties import has_row_per_token
from unshard.tensors import CastTensor, Tensor

# Answers questions that tensor bytes decide; every rank asks the same and gets the same.
Answering = Callable[[tuple[Question, ...]], Answers]

# What is told of a model that is written, and means nothing for one that is filled.
_OF_WRITING = frozenset(("U401", "U501", "U502", "U503"))
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Led:
    """The tensors that a model in training gets.

    Attributes:
        tensors: By their names in the module, in its shapes and dtypes.
        findings: What a person should know.
    """

    tensors: Mapping[str, Tensor]
    findings: tuple[Finding, ...]


def lead(
    checkpoint: Checkpoint, base: Base, answering: Answering, *, strict: bool, lora_alpha: float | None
) -> Led:
    """Return the tensors of a checkpoint by the names of the module that `base` describes.

    Args:
        checkpoint: What lies on disk.
        base: The module, as a base.
        answering: Answers questions.
        strict: Whether every name must get a tensor, and every tensor a name.
        lora_alpha: The numerator of an adapter's scale, where no file tells it.

    Raises:
        MatchError: Tensors are missing, unexpected, or of other shapes or kinds of dtypes; all of them are
            named.
        UnshardError: The checkpoint is not what it should be; as `plan_conversion` says.
    """
    assert base.expected is not None
    checkpoint = with_shapes(checkpoint, base, accept_inferred=False)
    outline = _outlined(checkpoint, base, lora_alpha)
    answers = answering(questions_for(outline))
    try:
        model = match_model(outline, dtype="base", answers=answers)
    except MatchError as error:
        wrong, hint = error.mismatches, error.hint
    else:
        tensors = {**model.tensors, **_twins(outline, model, base)}
        wrong, hint = tuple(_unlike(tensors, base)), None
    if not wrong:
        findings = [item for item in model.findings if item.code not in _OF_WRITING]
        ordered = {name: tensors[name] for name in base.expected if name in tensors}
        return Led(ordered, (*checkpoint.findings, *findings, *_casts(ordered), *_computed(ordered, base)))
    if strict or not _is_partial(wrong, base):
        raise unfitting(checkpoint, wrong, _resizing(wrong) or hint)
    checkpoint, base, told = _without(checkpoint, base, outline, wrong)
    led = lead(checkpoint, base, answering, strict=True, lora_alpha=lora_alpha)
    return replace(led, findings=(*told, *led.findings))


def _outlined(checkpoint: Checkpoint, base: Base, lora_alpha: float | None) -> Outline:
    """Return what names and shapes tell, after what training did to the tensors was undone.

    Raises:
        BaseModelError: An adapter has to be merged into weights that nobody named.
    """
    try:
        return outline_of(checkpoint, base, Choices(dtype="base", lora_alpha=lora_alpha))
    except BaseModelError as error:
        if base.path.is_dir():
            raise
        raise BaseModelError(
            checkpoint.path,
            "has to be merged into the weights that it was trained on, and these are nowhere",
            saw=f"`{base.path}`, where the model in training was loaded from",
            hint="Name their folder: load_full(model, path, base=...). To go on with the adapter itself, "
            "give the model an adapter (peft.get_peft_model) before it is wrapped.",
        ) from error


def _is_partial(mismatches: Sequence[Mismatch], base: Base) -> bool:
    """Return whether a checkpoint and a module lack parts of one another, and else fit."""
    assert base.expected is not None
    missing = {mismatch.name for mismatch in mismatches if mismatch.kind == "missing"}
    others = {mismatch.kind for mismatch in mismatches} - {"missing", "unexpected"}
    return not others and not base.expected.keys() <= missing


def _twins(outline: Outline, model: Model, base: Base) -> dict[str, Tensor]:
    """Return tensors for names that the configuration ties, and the module holds one by one."""
    assert base.expected is not None
    twins = dict[str, Tensor]()
    for group in outline.ties.groups:
        given = next((name for name in group.members if name in model.tensors), None)
        for name in group.members:
            if given is not None and name in base.expected and name not in model.tensors:
                dtype = base.expected[name].dtype
                tensor = _uncast(model.tensors[given])
                twins[name] = tensor if dtype in (None, tensor.dtype) else CastTensor(tensor, dtype)
    return twins


def _uncast(tensor: Tensor) -> Tensor:
    return tensor.source if isinstance(tensor, CastTensor) else tensor


def _unlike(tensors: Mapping[str, Tensor], base: Base) -> Iterator[Mismatch]:
    """Yield what the module cannot take, and what it needs and does not get."""
    assert base.expected is not None
    for name, wanted in base.expected.items():
        if name not in tensors:
            if not recomputable_kind(name, wanted.shape or ()):
                yield Mismatch("missing", name, expected=str(wanted.shape))
        elif tensors[name].shape != wanted.shape:
            yield Mismatch("shape", name, str(tensors[name].shape), str(wanted.shape))
        elif tensors[name].dtype != wanted.dtype:
            yield Mismatch("dtype", name, str(tensors[name].dtype), str(wanted.dtype))
    for name, tensor in tensors.items():
        if name not in base.expected:
            kept = base.ties.get(name)
            one = None if kept is None else f"the numbers of `{kept}`, with which the module ties it"
            yield Mismatch("unexpected", name, str(tensor.shape), one)


def unfitting(checkpoint: Checkpoint, mismatches: Sequence[Mismatch], hint: str | None) -> MatchError:
    """Return the error that tells everything that does not fit, in the words of whoever trains."""
    kinds = dict.fromkeys(mismatch.kind for mismatch in mismatches)
    parts = [_summary([each for each in mismatches if each.kind == kind]) for kind in kinds]
    if hint is None or "--base" in hint:
        hint = (
            "Build the module from the configuration of the model that was saved. With strict=False, what "
            "is missing stays as it is, and what has no place is left out."
        )
    problem = f"does not fit the model in training, which was left as it was: {'; '.join(parts)}"
    return MatchError(checkpoint.path.name, problem, mismatches=mismatches, hint=hint)


_WORDS = {
    "missing": "missing in it",
    "unexpected": "without a place in the model",
    "shape": "of another shape",
    "dtype": "of another kind of dtype",
    "value": "not what the configuration gives",
}


def _summary(alike: Sequence[Mismatch]) -> str:
    """Return "2 tensors are missing in it (`a`, `b`)"."""
    count = "1 tensor is" if len(alike) == 1 else f"{len(alike)} tensors are"
    shown = [
        f"`{each.name}`" + "".join(f" {word} {fact}" for word, fact in _facts(each))
        for each in alike[:_SHOWN]
    ]
    rest = f" and {len(alike) - _SHOWN} more" if len(alike) > _SHOWN else ""
    return f"{count} {_WORDS[alike[0].kind]} ({', '.join(shown)}{rest})"


def _facts(mismatch: Mismatch) -> Iterator[tuple[str, str]]:
    if mismatch.saw is not None:
        yield "saw", mismatch.saw
    if mismatch.expected is not None:
        yield "expected", mismatch.expected


def _resizing(mismatches: Sequence[Mismatch]) -> str | None:
    """Return what to do where the vocabulary alone is of another size."""
    rows = {each.saw.strip("(").split(",")[0] for each in mismatches if each.saw and each.kind == "shape"}
    resized = all(each.kind == "shape" and has_row_per_token(each.name) for each in mismatches)
    if not resized or len(rows) != 1:
        return None
    return f"Resize the vocabulary before the model is wrapped: model.resize_token_embeddings({rows.pop()})."


def _without(
    checkpoint: Checkpoint, base: Base, outline: Outline, mismatches: Sequence[Mismatch]
) -> tuple[Checkpoint, Base, list[Finding]]:
    """Return checkpoint and module without what only one of them has, and what is told of it."""
    assert base.expected is not None
    missing = {each.name for each in mismatches if each.kind == "missing"}
    unexpected = [each.name for each in mismatches if each.kind == "unexpected"]
    sources = outline.sources
    dropped = {name for target in unexpected for name in outline.origins(sources.get(target, target))}
    kept = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in dropped}
    needed = {name: each for name, each in base.expected.items() if name not in missing}
    told = [told_of_left(sorted(missing))] if missing else []
    if unexpected:
        saw = f"{len(unexpected)} tensors without a place in the model"
        told.append(finding("U161", subject=_first(unexpected), saw=saw))
    return replace(checkpoint, tensors=kept), replace(base, expected=needed), told


def told_of_left(names: Sequence[str], why: str = "the checkpoint does not hold them") -> Finding:
    """Return that tensors of the model were left as they were."""
    return finding("U160", subject=_first(names), saw=f"{len(names)} tensors: {why}")


def _first(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _casts(tensors: Mapping[str, Tensor]) -> Iterator[Finding]:
    """Yield one finding for every pair of dtypes between which tensors are cast."""
    casts = dict[tuple[str, str], int]()
    for tensor in tensors.values():
        if isinstance(tensor, CastTensor):
            pair = str(tensor.source.dtype), str(tensor.dtype)
            casts[pair] = casts.get(pair, 0) + 1
    for (old, new), count in casts.items():
        subject = f"{count} of {len(tensors)} tensors"
        yield finding("U163", subject=subject, saw=f"{old} on disk, {new} in the model")


def _computed(tensors: Mapping[str, Tensor], base: Base) -> Iterator[Finding]:
    """Yield that buffers which the module computes stay as they are where the checkpoint lacks them."""
    assert base.expected is not None
    if left := [name for name in base.expected if name not in tensors]:
        yield told_of_left(left, "the module computes them itself")
