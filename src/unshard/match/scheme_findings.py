"""What a person should know of names of another scheme, and why they cannot be translated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from unshard.base import Base
from unshard.base.head_counts import ORIGINALS, HeadCounts
from unshard.errors import UnsupportedLayoutError, listed
from unshard.findings import Finding, finding
from unshard.match.scheme_translation import Translation


@dataclass(frozen=True, slots=True)
class Done:
    """What was done to tensors to translate them.

    Attributes:
        proven: Whether a base has the names and shapes that came out.
        reordered: How many rows of the scheme asked for head counts.
        sizes: The elements of a head.
        lost: Names of tensors that the model has no place for, and why.
    """

    proven: bool
    reordered: int
    sizes: frozenset[int]
    lost: dict[str, str]


def told_of_scheme(chosen: Translation, done: Done, heads: HeadCounts | None) -> Iterator[Finding]:
    """Yield what was done, and what nothing but values can prove."""
    scheme, family = chosen.reading.scheme, chosen.reading.family
    counted = f"{len(chosen.sources)} of {len(chosen.reading.names)} names"
    saw = f"{counted} are those of {scheme.title}: {family.title}"
    remedy = None
    if done.reordered:
        assert heads is not None
        saw += f"; {done.reordered} times rows were arranged by heads: {_described(heads, done.sizes)}"
        remedy = (
            "Shapes do not prove the order of rows in a head; the base's weights do:"
            " unshard check OUT --base BASE --deep"
        )
    expected = "the names and shapes of the base" if done.proven else None
    yield finding("U208", subject=scheme.name, saw=saw, expected=expected, remedy=remedy)
    if done.lost:
        yield finding(
            "U210",
            subject=listed([f"`{name}`" for name in done.lost]),
            saw=f"{len(done.lost)} tensors; each {next(iter(done.lost.values()))}",
            remedy="Compare answers with those in training: other experts may be chosen.",
        )


def told_of_kept(found: Sequence[Translation], lacking: str) -> Finding:
    """Return that names of a scheme are kept where there is no base, since something is not known."""
    scheme = found[0].reading.scheme
    beside = " or ".join(f"`{keys[0]}` in {name}" for name, keys in ORIGINALS.items())
    return finding(
        "U209",
        subject=scheme.name,
        saw=f"names of {scheme.title}, for what may be {_families(found)}; nothing tells {lacking}",
        expected=f"a base, or {beside} beside the checkpoint",
        remedy="Name the model that training started from with --base.",
    )


def undecided(path: Path, base: Base, found: Sequence[Translation], lacking: str) -> UnsupportedLayoutError:
    """Return the error that the base does not tell what translating names takes."""
    return UnsupportedLayoutError(
        path,
        f"has names of {found[0].reading.scheme.title}, and nothing tells {lacking}",
        saw=f"what may be {_families(found)}, and config.json of {base.reference}",
        expected="`num_attention_heads` there" if len(found) == 1 else "a `model_type` of one of them there",
        hint="Name a base of the same model whose config.json is complete: --base BASE",
    )


def impossible(path: Path, chosen: Translation) -> UnsupportedLayoutError:
    """Return the error that names and shapes would come out right, and values wrong."""
    scheme, family = chosen.reading.scheme, chosen.reading.family
    return UnsupportedLayoutError(
        path,
        f"has names of {scheme.title} for {family.title}, which are not translated: {family.obstacle}",
        hint="Convert it with the project's own converter, then: unshard check OUT --base BASE",
    )


def misfit(
    path: Path, chosen: Translation, misfits: Sequence[str], heads: HeadCounts | None
) -> UnsupportedLayoutError:
    """Return the error that tensors cannot be those of a model with these heads."""
    return UnsupportedLayoutError(
        path,
        f"has names of {chosen.reading.scheme.title}, and tensors that do not fit their model",
        saw=listed(list(misfits)),
        expected=None if heads is None else _described(heads, frozenset()),
        hint="The base is of another size or family. Name the one that training started from with --base.",
    )


def _families(found: Sequence[Translation]) -> str:
    return listed([one.reading.family.title for one in found], at_most=6)


def _described(heads: HeadCounts, sizes: frozenset[int]) -> str:
    size = heads.size if heads.size is not None else next(iter(sizes), None)
    rows = "" if size is None else f", {size} rows each"
    return f"{heads.queries} heads, {heads.keys} of keys{rows} ({heads.said_by})"
