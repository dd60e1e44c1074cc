"""The table of all tensors: once as text for the page, once as compact data for its script.

The script formats nothing and knows no column: every text is made here, and numbers go along only where
a column is sorted by them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from unshard.report.contents import ReportedTensor
from unshard.report.numbers import cosine, number, percent, shape_text, share_of, visible
from unshard.sizes import format_size

# A number between dots is noted by itself, so that a name is stored once for all layers and experts.
_NUMBER = re.compile(r"(?<=\.)(0|[1-9][0-9]{0,8})(?=\.)")
# Above every finite change, for what has changed from nothing.
_BEYOND = 1e300

Encoding = Literal["plain", "pool", "names"]
_Text = Callable[[ReportedTensor], str]


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        label: Its heading.
        texts: What stands in it, for every tensor; "" where nothing is known.
        keys: Numbers to sort by, or None where it is sorted by its texts.
        encoding: How texts are stored: as they are, once for all that are equal, or as names.
        is_detail: Whether it is shown only when a row is opened.
    """

    label: str
    texts: tuple[str, ...]
    keys: tuple[float, ...] | None = None
    encoding: Encoding = "plain"
    is_detail: bool = False

    @property
    def style(self) -> str:
        """How it is set: numbers to the right, names so that they can be broken."""
        if self.keys is not None:
            return "number"
        return "text" if self.encoding == "names" else "words"

    def data(self) -> dict[str, Any]:
        """Return the column as the script reads it."""
        told: dict[str, Any] = {
            "label": self.label,
            "style": self.style,
            "detail": self.is_detail,
            "keys": self.keys,
        }
        if self.encoding == "plain":
            return {**told, "texts": self.texts}
        items = [_split(text) for text in self.texts] if self.encoding == "names" else []
        pooled = [literals for literals, _ in items] if items else list(self.texts)
        pool, at = _pooled(pooled)
        if self.encoding == "pool":
            return {**told, "pool": pool, "at": at}
        return {
            **told,
            "parts": pool,
            "at": [[i, *numbers] for i, (_, numbers) in zip(at, items, strict=True)],
        }


def columns_of(tensors: Sequence[ReportedTensor]) -> tuple[Column, ...]:
    """Return the columns about which anything is known, those that are shown first."""
    columns = (
        Column("Name", tuple(t.name for t in tensors), encoding="names"),
        _pool(tensors, "Dtype", _dtype),
        _pool(tensors, "Shape", lambda t: shape_text(t.shape), [math.prod(t.shape) for t in tensors]),
        _pool(tensors, "Size", lambda t: format_size(t.nbytes), [t.nbytes for t in tensors]),
        *_change_columns(tensors),
        Column("Source", tuple(_source(t) for t in tensors), encoding="names"),
        _pool(tensors, "File", lambda t: t.file or "", is_detail=True),
        *_statistics_columns(tensors),
        Column("SHA-256", tuple(t.sha256 or "" for t in tensors), is_detail=True),
    )
    known = (column for column in columns if any(column.texts))
    return tuple(replace(column, texts=tuple(map(visible, column.texts))) for column in known)


def _change_columns(tensors: Sequence[ReportedTensor]) -> Iterable[Column]:
    deltas = [t.delta for t in tensors]
    yield Column(
        "Change",
        tuple("" if d is None else percent(d.relative) for d in deltas),
        tuple(-1.0 if d is None else _key(d.relative) for d in deltas),
    )
    yield Column(
        "Cosine",
        tuple("" if d is None else cosine(d.cosine) for d in deltas),
        tuple(2.0 if d is None else round(d.cosine, 6) for d in deltas),
    )
    yield Column(
        "Elements",
        tuple("" if d is None else share_of(d.changed, d.count) for d in deltas),
        tuple(-1.0 if d is None else _key(d.changed / d.count if d.count else 0.0) for d in deltas),
    )
    yield Column(
        "Largest change",
        tuple("" if d is None else number(d.largest) for d in deltas),
        is_detail=True,
    )
    yield Column(
        "Survives the cast",
        tuple(
            "" if d is None or d.survived == d.changed else share_of(d.survived, d.changed) for d in deltas
        ),
        is_detail=True,
    )


def _statistics_columns(tensors: Sequence[ReportedTensor]) -> Iterable[Column]:
    known = [t.statistics for t in tensors]

    def column(label: str, texts: Iterable[str]) -> Column:
        return Column(label, tuple(texts), is_detail=True)

    yield column("Range", (f"{number(s.minimum)} … {number(s.maximum)}" if s else "" for s in known))
    yield column("Mean", (number(s.mean) if s else "" for s in known))
    yield column("Deviation", (number(s.deviation) if s else "" for s in known))
    yield column("Zeros", (f"{s.zeros:,}" if s and s.zeros else "" for s in known))
    yield column("Not a number", (f"{s.nans:,}" if s and s.nans else "" for s in known))
    yield column("Infinite", (f"{s.infinities:,}" if s and s.infinities else "" for s in known))


def _pool(
    tensors: Sequence[ReportedTensor],
    label: str,
    text: _Text,
    keys: Sequence[float] | None = None,
    *,
    is_detail: bool = False,
) -> Column:
    known = None if keys is None else tuple(keys)
    return Column(label, tuple(text(t) for t in tensors), known, "pool", is_detail)


def _dtype(tensor: ReportedTensor) -> str:
    """Return the dtype of a tensor, and before it the one it was cast from."""
    cast = tensor.source_dtype not in (None, tensor.dtype)
    return f"{tensor.source_dtype} → {tensor.dtype}" if cast else tensor.dtype


def _source(tensor: ReportedTensor) -> str:
    """Return where a tensor came from; "" where that is not known."""
    if not tensor.sources:
        return ""
    if tensor.sources == (tensor.name,):
        return "same name"
    more = len(tensor.sources) - 1
    return tensor.sources[0] + (f" and {more:,} more" if more else "")


def _key(value: float) -> float:
    """Return a number to sort by, short enough to be stored often, and finite, as JSON wants it."""
    return float(f"{min(value, _BEYOND):.4g}")


def _split(text: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return a name as the texts between its numbers, and the numbers."""
    words = _NUMBER.split(text)
    return tuple(words[::2]), tuple(map(int, words[1::2]))


def _pooled(items: Sequence[Hashable]) -> tuple[list[Hashable], list[int]]:
    """Return what is in `items` once each, and for every item which of these it is."""
    places: dict[Hashable, int] = {}
    at = [places.setdefault(item, len(places)) for item in items]
    return list(places), at
