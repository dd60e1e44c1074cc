"""From a checkpoint, a base and a few answers to a complete model — or one error that names all of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from unshard.base import Base
from unshard.findings import Finding, finding
from unshard.match.config_edits import (
    architecture_edits,
    cache_edits,
    check_edits,
    dtype_edits,
    quantisation_edits,
    spelling_edits,
    tie_edits,
)
from unshard.match.draft import Draft, new_draft
from unshard.match.dtype_policy import check_training_precision, dtype_of, main_dtype, require_policy
from unshard.match.fit import check_fit, effective_policy, fit_error, require_plain
from unshard.match.model import Decision, Model
from unshard.match.name_findings import check_names
from unshard.match.orders import check_orders
from unshard.match.outline import Outline
from unshard.match.questions import Answers
from unshard.match.tokens import count_tokens
from unshard.match.vocabulary import vocabulary_edits
from unshard.recipes.quantised import quantisation_kind
from unshard.recipes.ties import has_row_per_token
from unshard.tensors import CastTensor, Tensor


def match_model(outline: Outline, *, dtype: str, answers: Answers) -> Model:
    """Return the model that a checkpoint holds, complete, named and typed as its base says.

    Args:
        outline: What names, shapes and configuration tell.
        dtype: `base`, `keep`, or the dtype of all floating parameters.
        answers: The answers to `questions_for` of the same outline.

    Raises:
        MatchError: Tensors are missing, unexpected, of other shapes, or contradict the configuration;
            all of them are named.
        AmbiguousModelError: The checkpoint holds several models.
        UnsupportedLayoutError: It holds adapters, or quantised weights that would have to be cast.
        OptionError: `dtype` means nothing.
    """
    require_policy(dtype)
    checkpoint, base = outline.checkpoint, outline.base
    require_plain(outline)
    orders = check_orders(_orders(outline, answers), checkpoint.path)
    dtype = effective_policy(outline, dtype)
    draft = new_draft(outline, answers)
    tokens = None if base is None else count_tokens(base.side_files)
    check_fit(draft, policy=dtype, tokens=tokens)
    if draft.mismatches:
        raise fit_error(draft)
    tensors = _typed(draft, dtype)
    edits = {} if base is None else _config_edits(draft, base, tensors)
    findings = (
        *outline.restored.findings,
        *orders,
        *check_names(draft),
        *draft.findings,
        *_check_vocabulary(draft, tokens, tensors),
        *_check_casts(draft, tensors),
        *check_training_precision(checkpoint.training, checkpoint.tensors),
        *([] if base is None else check_edits(base.config, edits)),
    )
    sources = {target: outline.origins(draft.kept[target]) for target in tensors}
    return Model(tensors, sources, tuple(_decisions(draft, tensors)), edits, findings)


def _orders(outline: Outline, answers: Answers) -> dict[str, tuple[bool | None, str]]:
    """Return what answers say of the order of rows, by the names of tensors in the model."""
    names = ((name, outline.naming.names.get(name, name)) for name in outline.restored.arranged)
    return {key[1]: (answers[key].holds, answers[key].evidence) for key in names if key in answers}


def _typed(draft: Draft, policy: str) -> dict[str, Tensor]:
    """Return the tensors of the result in the checkpoint's order, casts included."""
    outline = draft.outline
    targets = {source: target for target, source in draft.kept.items()}
    tensors: dict[str, Tensor] = {}
    for source, tensor in outline.tensors.items():
        if source in targets:
            name = targets[source]
            dtype = dtype_of(name, tensor, policy=policy, base=outline.base, needs=outline.needs)
            tensors[name] = tensor if dtype == tensor.dtype else CastTensor(tensor, dtype)
    return tensors


def _config_edits(draft: Draft, base: Base, tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """Return everything in config.json that the tensors prove wrong."""
    config = base.config
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    floats = {tensor.dtype for tensor in tensors.values() if tensor.dtype.kind == "float"}
    return {
        **architecture_edits(config),
        **dtype_edits(config, main_dtype(tensors), uniform=len(floats) == 1),
        **vocabulary_edits(shapes, config, draft.resize),
        **tie_edits(config, tied=draft.tied, diverged=draft.diverged),
        **cache_edits(config),
        **spelling_edits(config),
        **quantisation_edits(config, plain=not any(map(quantisation_kind, tensors))),
        **draft.outline.restored.edits,
    }


def _decisions(draft: Draft, tensors: Mapping[str, Tensor]) -> Iterator[Decision]:
    """Yield what happens to every tensor of the checkpoint, or to every part of it, and why."""
    outline = draft.outline
    targets = {source: target for target, source in draft.kept.items()}
    made: dict[str, list[str]] = {name: [] for name in outline.checkpoint.tensors}
    for source in outline.tensors:
        for name in outline.origins(source):
            made[name].append(source)
    for name, sources in made.items():
        if name in outline.restored.dropped:
            yield Decision(name, None, outline.restored.dropped[name])
        for source in sources:
            if source in draft.dropped:
                yield Decision(name, None, draft.dropped[source])
                continue
            tensor = tensors[targets[source]]
            reasons = list(_reasons(outline, name, source, len(sources)))
            if not reasons and targets[source] != name:
                reasons.append("renamed")
            if isinstance(tensor, CastTensor):
                reasons.append(f"cast from {tensor.source.dtype} to {tensor.dtype}")
            yield Decision(name, targets[source], ", ".join(reasons))


def _reasons(outline: Outline, name: str, source: str, parts: int) -> Iterator[str]:
    """Yield what was done to a tensor of the checkpoint to make a source of it."""
    together = len(outline.origins(source))
    made = (source,) if outline.regrouped is None else outline.regrouped.origins[source]
    done = [outline.restored.reasons[each] for each in made if each in outline.restored.reasons]
    if done:
        yield done[0]
    elif parts > 1:
        yield f"one of {parts} parts of it"
    elif together > 1:
        yield f"put together with {together - 1} more"
    elif outline.regrouped is not None and outline.tensors[source] is not outline.restored.tensors[made[0]]:
        yield "two dimensions exchanged"


def _check_vocabulary(draft: Draft, tokens: int | None, tensors: Mapping[str, Tensor]) -> Iterator[Finding]:
    """Yield what became of the vocabulary, and whether the tokenizer fits it."""
    rows = [tensor.shape[0] for name, tensor in tensors.items() if has_row_per_token(name) and tensor.shape]
    if draft.resize is not None:
        yield finding(
            "U502",
            subject=", ".join(draft.resize.names),
            saw=f"{draft.resize.rows} rows",
            expected=f"{draft.resize.base_rows}, as the base has",
            remedy="The tokenizer must be the one that training used, with the tokens it added.",
        )
    if rows and tokens is not None and tokens > min(rows):
        yield finding(
            "U503",
            subject="tokenizer",
            saw=f"{tokens} tokens, and {min(rows)} rows",
            expected=f"at most {min(rows)} tokens",
            remedy="Text with the tokens beyond the last row cannot be read; give the tokenizer of training.",
        )


def _check_casts(draft: Draft, tensors: Mapping[str, Tensor]) -> Iterator[Finding]:
    """Yield one finding for every pair of dtypes between which tensors are cast."""
    casts: dict[tuple[str, str], list[str]] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, CastTensor):
            casts.setdefault((str(tensor.source.dtype), str(tensor.dtype)), []).append(name)
    for (old, new), names in casts.items():
        yield finding("U401", subject=f"{len(names)} of {len(tensors)} tensors", saw=f"{old} becomes {new}")
