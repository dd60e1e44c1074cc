"""What a person should know about names: what was done to them and to experts, and what proves it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from unshard.base import Base
from unshard.findings import Finding, finding
from unshard.match.draft import Draft
from unshard.match.experts import Regrouped, recipes_of_type
from unshard.match.outline import Outline
from unshard.recipes.experts import Recipe

_FUSED = re.compile(r"(^|\.)experts\.(gate_up|up|down)_proj$")


def check_names(draft: Draft) -> Iterator[Finding]:
    """Yield what was done to the names, and whether that could be checked."""
    outline, naming = draft.outline, draft.outline.naming
    total = len(outline.checkpoint.tensors)
    if naming.removed:
        counts = ", ".join(
            f"`{segment}` in {count} of {total} names" for segment, count in naming.removed.items()
        )
        yield finding("U201", subject=", ".join(naming.removed), saw=counts)
    share = f"{naming.changed} of {len(naming.names)} names"
    if naming.prefix or naming.added:
        what = [
            *([f"`{naming.prefix}` was removed from the front"] if naming.prefix else []),
            *([f"`{naming.added}` was added"] if naming.added else []),
        ]
        saw = f"{', '.join(what)}: {share}"
        yield finding("U201", subject=naming.prefix or naming.added, saw=saw, expected=_proof(draft))
    if naming.renaming:
        saw = f"{naming.renaming}: {share}"
        yield finding("U201", subject="names in memory", saw=saw, expected=_proof(draft))
    if outline.regrouped is not None:
        yield from _check_experts(outline.regrouped, total, proof=_proof(draft))
    if outline.needs is None:
        yield _unchecked(outline.base, total)
        yield from _check_fused(outline)
        return
    absent = [name for name in outline.needs.not_loaded if name not in draft.kept]
    if absent:
        yield finding(
            "U206",
            subject=min(absent) + (f" and {len(absent) - 1} more" if len(absent) > 1 else ""),
            saw=f"{len(absent)} tensors that predict further tokens",
            remedy="They only speed up engines that use them, and are in the base.",
        )
    unknown = sum(tensor.shape is None for tensor in outline.needs.expected.values())
    if unknown:
        yield finding(
            "U204",
            subject=outline.checkpoint.path.name,
            saw=f"the shapes of {unknown} of {len(outline.needs.expected)} tensors are not known",
            remedy="Download the base's weights, or install unshard[hf].",
        )


def _check_experts(regrouped: Regrouped, total: int, *, proof: str | None) -> Iterator[Finding]:
    """Yield what was done to experts, and to names that go with it."""
    published = regrouped.side == "published"
    if regrouped.renamed:
        other = "names in memory" if published else "published names"
        saw = f"as transformers 5 translates them: {regrouped.renamed} of {total} names"
        yield finding("U201", subject=other, saw=saw, expected=proof)
    if regrouped.exchanged:
        saw = f"two dimensions of {regrouped.exchanged} tensors were exchanged"
        yield finding("U207", subject="experts", saw=saw, expected=proof)
    if regrouped.before:
        before, after = regrouped.before, regrouped.after
        saw = (
            f"{before} tensors, each with all experts of a layer, are {after} with one expert each"
            if published
            else f"{before} tensors, each with one expert, are {after} with all experts of a layer"
        )
        yield finding("U207", subject="experts", saw=saw, expected=proof)


def _proof(draft: Draft) -> str | None:
    """Return what proves a renaming right, if something does."""
    outline = draft.outline
    if outline.base is None or outline.needs is None:
        return None
    return f"exactly the names that the base has ({outline.base.expected_from})"


def _unchecked(base: Base | None, total: int) -> Finding:
    if base is None:
        saw, remedy = "there is no base", "Name the model that training started from with --base."
    else:
        saw = f"`{base.reference}` has no weights here, and its class could not be asked"
        remedy = 'Download its weights, or pip install "unshard[hf]".'
    return finding("U204", subject=f"{total} tensors", saw=saw, remedy=remedy)


def _check_fused(outline: Outline) -> Iterator[Finding]:
    """Yield that experts lie in one tensor where nothing tells how the model's files have them."""
    fused = [name for name in outline.naming.names.values() if _FUSED.search(name)]
    known = [] if outline.base is None else recipes_of_type(outline.base.config)
    if fused and not (known and all(recipe == Recipe() for recipe in known)):
        yield finding(
            "U204",
            subject=fused[0] + (f" and {len(fused) - 1} more" if len(fused) > 1 else ""),
            saw="all experts of a layer in one tensor, as transformers 5 has them in memory",
            expected="what the model's published files have, and nothing here tells that",
            remedy='Name a base with weights, of which headers are read, or pip install "unshard[hf]".',
        )
