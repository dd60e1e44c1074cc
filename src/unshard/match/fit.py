"""Whether a draft is what the model needs: names, shapes, kinds of dtypes, sizes."""

from __future__ import annotations

from collections.abc import Iterator

from unshard.base import Base
from unshard.base.configuration import lookup_int
from unshard.errors import AmbiguousModelError, Mismatch, UnshardError, UnsupportedLayoutError
from unshard.match.draft import Draft
from unshard.match.dtype_policy import dtype_of, is_quantised
from unshard.match.mismatches import Evidence, match_error
from unshard.match.names import model_prefixes
from unshard.match.needs import Needs, Shape
from unshard.match.outline import Outline
from unshard.match.vocabulary import find_resize
from unshard.recipes.families import sizes_of
from unshard.recipes.leftovers import adapter_kind
from unshard.recipes.quantised import quantisation_kind
from unshard.recipes.ties import has_row_per_token, is_output_head


def require_plain(outline: Outline) -> None:
    """Raise unless the tensors are a model without adapters.

    Raises:
        UnsupportedLayoutError: There are some that were not merged into it.
    """
    known = set() if outline.needs is None else outline.needs.expected.keys()
    names = [source for source, target in outline.naming.names.items() if target not in known]
    adapters = [name for name in names if adapter_kind(name)]
    if adapters:
        raise UnsupportedLayoutError(
            outline.checkpoint.path,
            f"holds a {adapter_kind(adapters[0])} that is not merged into the model",
            saw=f"{len(adapters)} tensors, `{adapters[0]}` first",
            hint="Merge it before saving (PEFT's merge_and_unload), or use the adapter folder with PEFT.",
        )


def effective_policy(outline: Outline, policy: str) -> str:
    """Return `keep` for a quantised model of which only the configuration is known: nothing may be cast."""
    tensors = outline.tensors
    whole = any(map(quantisation_kind, tensors)) or any(is_quantised(t.dtype) for t in tensors.values())
    return "keep" if policy == "base" and whole and outline.needs is None else policy


def check_fit(draft: Draft, *, policy: str, tokens: int | None) -> None:
    """Add everything to a draft that keeps it from being the model its base describes."""
    needs, base = draft.outline.needs, draft.outline.base
    draft.mismatches += [
        Mismatch("missing", name, expected="an output head") for name in draft.outline.ties.missing
    ]
    if base is None:
        return
    if needs is None:
        draft.mismatches += _sizes_unlike(draft, base)
    else:
        draft.mismatches += _names_unlike(draft, needs)
        draft.mismatches += _shapes_unlike(draft, base, needs, tokens)
    draft.mismatches += _dtypes_unlike(draft, policy)


def fit_error(draft: Draft) -> UnshardError:
    """Return the error for a draft that does not fit: several models, or one that is not the base's.

    Returns:
        AmbiguousModelError where several whole models lie in the checkpoint, else MatchError.
    """
    outline = draft.outline
    assert outline.base is not None
    tensors = outline.tensors
    shapes = {source: tensor.shape for source, tensor in tensors.items()}
    prefixes = [] if outline.needs is None else model_prefixes(shapes, outline.needs)
    below = [prefix for prefix in prefixes if prefix]
    if len(prefixes) > 1:
        places = [f"below `{prefix}`" if prefix else "at the top" for prefix in prefixes]
        return AmbiguousModelError(
            outline.checkpoint.path,
            "holds several models that each fit the base",
            saw=f"one {', one '.join(places)}",
            hint=f"Take one of them with --select, for example --select {below[0].rstrip('.')}",
        )
    return match_error(
        outline.checkpoint.path.name,
        Evidence(outline.shapes, outline.needs, outline.base, tuple(draft.mismatches), tuple(below)),
    )


def _names_unlike(draft: Draft, needs: Needs) -> Iterator[Mismatch]:
    """Yield what is missing, and what nothing explains."""
    groups = [group for group in draft.outline.ties.groups if group.kept in draft.kept]
    tied = {name for group in groups for name in group.members}
    shapes = draft.outline.shapes
    for name in sorted(needs.required - draft.kept.keys() - tied):
        shape = needs.expected[name].shape
        yield Mismatch("missing", name, expected=None if shape is None else str(shape))
    explained = needs.expected.keys() | tied | draft.outline.ties.untied
    for name in draft.kept:
        if name not in explained:
            yield Mismatch("unexpected", name, saw=str(shapes[name]))


def _shapes_unlike(draft: Draft, base: Base, needs: Needs, tokens: int | None) -> Iterator[Mismatch]:
    """Yield tensors of other shapes, and note a vocabulary that training resized."""
    tensors = draft.outline.tensors
    ours = {name: tensors[source].shape for name, source in draft.kept.items()}
    wanted = {name: t.shape for name, t in needs.expected.items() if t.shape is not None and name in ours}
    draft.resize = find_resize(ours, wanted, base.config, tokens=tokens)
    resized = () if draft.resize is None else draft.resize.names
    for name, shape in wanted.items():
        if ours[name] != shape and name not in resized:
            yield Mismatch("shape", name, str(ours[name]), str(shape))
    embeddings = {ours[name] for name in ours if has_row_per_token(name) and not is_output_head(name)}
    for name, shape in ours.items():
        if is_output_head(name) and name not in needs.expected and shape not in embeddings:
            yield Mismatch("shape", name, str(shape), " or ".join(map(str, sorted(embeddings))))


def _dtypes_unlike(draft: Draft, policy: str) -> Iterator[Mismatch]:
    """Yield tensors whose numbers no cast turns into what is wanted."""
    outline = draft.outline
    for name, source in draft.kept.items():
        tensor = outline.tensors[source]
        wanted = dtype_of(name, tensor, policy=policy, base=outline.base, needs=outline.needs)
        needed = (
            outline.needs.expected[name].dtype if outline.needs and name in outline.needs.expected else None
        )
        other_kind = (
            needed is not None
            and "float" in (needed.kind, tensor.dtype.kind)
            and needed.kind != tensor.dtype.kind
        )
        if other_kind or (is_quantised(tensor.dtype) and wanted != tensor.dtype):
            yield Mismatch("dtype", name, str(tensor.dtype), str(needed or wanted))


def _sizes_unlike(draft: Draft, base: Base) -> Iterator[Mismatch]:
    """Yield what contradicts the sizes of a configuration, where no weights of the base tell more.

    Only for names whose sizes stand at one known place: those of Llama and its many relatives.
    """
    shapes: dict[str, Shape] = draft.outline.shapes
    embedding = "model.embed_tokens.weight"
    if embedding not in shapes or len(shapes[embedding]) != 2:
        return
    sizes = sizes_of({name: shape for name, shape in shapes.items() if name.startswith("model.")})
    for key, saw in (("hidden_size", sizes.hidden), ("num_hidden_layers", sizes.layers)):
        said = lookup_int(base.config, key)
        if (
            said is not None
            and saw is not None
            and saw != said
            and "num_nextn_predict_layers" not in base.config
        ):
            yield Mismatch("shape", embedding, f"{key} {saw}", f"{key} {said}, as config.json says")
