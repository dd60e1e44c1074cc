"""A model folder against its class in transformers, built without weights: names and shapes, exactly."""

from __future__ import annotations

from collections.abc import Iterator

from unshard.base.model_class import expected_from_class
from unshard.checks.evidence import Check, Evidence
from unshard.checks.words import named, quoted
from unshard.findings import Finding, finding
from unshard.recipes.quantised import quantisation_kind
from unshard.recipes.recomputable import recomputable_kind
from unshard.recipes.ties import shared_pairs
from unshard.sizes import counted

_AGAIN = "Convert the training checkpoint again, or name the base to see what else differs: --base BASE"


def _check_class(evidence: Evidence) -> Iterator[Finding]:
    """Yield what the class needs and the folder lacks, and the other way round."""
    folder = evidence.folder
    config = folder.json("config.json") if folder else None
    if folder is None or config is None or not evidence.read_model_class or folder.unreadable:
        return
    shapes = evidence.shapes
    if "quantization_config" in config or any(map(quantisation_kind, shapes)):
        return
    expectation = expected_from_class(config)
    if expectation is None:
        return
    needed, origin = expectation.tensors, expectation.origin
    ties = {
        *expectation.ties.items(),
        *((second, first) for first, second in shared_pairs({*shapes, *needed})),
    }
    tied = {name for pair in ties for name in pair if not shapes.keys().isdisjoint(pair)}
    missing = [
        name
        for name, wanted in needed.items()
        if name not in shapes and name not in tied and not wanted.is_buffer
    ]
    beyond = [
        name
        for name in shapes
        if name not in needed and name not in tied and not recomputable_kind(name, shapes[name])
    ]
    unlike = {
        n: (shapes[n], t.shape) for n, t in needed.items() if n in shapes and t.shape not in (None, shapes[n])
    }
    if missing:
        yield finding(
            "U230",
            subject=named(missing),
            saw=f"{len(missing):,} of {counted(len(needed), 'tensor')} missing; transformers makes them up",
            expected=f"the tensors of {origin}",
            remedy=_AGAIN,
        )
    if beyond:
        yield finding(
            "U231",
            subject=named(beyond),
            saw=f"{counted(len(beyond), 'tensor')} that {origin} does not load",
            expected="none",
            remedy=_AGAIN,
        )
    if unlike:
        name, (saw, wanted) = next(iter(unlike.items()))
        yield finding(
            "U535",
            subject=named(unlike),
            saw=f"{counted(len(unlike), 'tensor')}, {quoted(name)} as {saw}",
            expected=f"{wanted}, in {origin}",
            remedy="Take the config.json of the model that these tensors belong to.",
        )


CHECKS: tuple[Check, ...] = (Check("model_class.tensors", ("U230", "U231", "U535"), _check_class),)
